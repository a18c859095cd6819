"""What lm-eval calls for each answer: negpo's extraction and grading in place of its own."""

from negpo.data.problems import BENCHMARKS


def _question(name):
    def doc_to_text(doc):
        return f"Problem: {BENCHMARKS[name].read(doc)['question']}\nAnswer:"

    return doc_to_text


def _gold(name):
    def doc_to_target(doc):
        return BENCHMARKS[name].read(doc)["gold"]

    return doc_to_target


def _results(name):
    def process_results(doc, results):
        """`exact_match` is 1 only for a correct verdict; `unknown` counts what the grader could not decide."""
        from negpo.rewards import grade

        bench = BENCHMARKS[name]
        status = grade(results[0], bench.read(doc)["gold"], kind=bench.kind).status
        return {"exact_match": float(status == "correct"), "unknown": float(status == "unknown")}

    return process_results


math500_text, math500_target, math500_results = _question("math500"), _gold("math500"), _results("math500")
aime24_text, aime24_target, aime24_results = _question("aime24"), _gold("aime24"), _results("aime24")
aime25_text, aime25_target, aime25_results = _question("aime25"), _gold("aime25"), _results("aime25")
amc23_text, amc23_target, amc23_results = _question("amc23"), _gold("amc23"), _results("amc23")
gsm8k_text, gsm8k_target, gsm8k_results = _question("gsm8k"), _gold("gsm8k"), _results("gsm8k")
