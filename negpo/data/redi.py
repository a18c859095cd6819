"""REDI's training sets (arXiv 2505.24850) from sampled and graded traces.

Two sources give the same ``GradedProblem``: rows of OpenR1-Math-Raw, and folders written by ``negpo eval``. The paper's
rules: problems marked valid, source cn_k12 left out, a trace is right when both judges of Open-R1 say so, all others
are wrong; stage 1 keeps every right trace, stage 2 pairs the first right with the first wrong one, and drops prompts
over 800 tokens and traces over 19,000.

One deviation: the released script calls a trace wrong when a judge's flag is missing; here a flag that is neither true
nor false makes the trace unknown, and an unknown trace is never a negative.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from negpo.data.chat import chat_ids, render
from negpo.data.io import read_jsonl
from negpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
FLAGS = ("llama_verification", "math_verify_reparsed_answer")


@dataclass(frozen=True)
class GradedProblem:
    """One question with its traces in order. ``right[i]`` is True, False, or None where no judge could tell; ``index``
    counts the problems that were read, ``identity`` is the problem's own id where the source has one."""

    question: str
    traces: list[str]
    right: list[bool | None]
    source: str
    index: int
    identity: str = ""


@dataclass
class REDIReport:
    """Counts of what came in, what was made and what was dropped, by reason."""

    problems: int = 0
    traces: int = 0
    positives: int = 0
    pairs: int = 0
    dropped: Counter = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, int]]:
        """(what, how many) for a table."""
        made = [("problems read", self.problems), ("traces read", self.traces)]
        made += [("right traces (stage 1)", self.positives), ("pairs (stage 2)", self.pairs)]
        return made + [(f"dropped: {name}", count) for name, count in sorted(self.dropped.items())]


@dataclass(frozen=True)
class REDIFilters:
    """The paper's limits; None switches one off. Lengths are tokens of ``tokenizer`` (prompts with chat template)."""

    max_prompt_tokens: int | None = 800
    max_trace_tokens: int | None = 19_000
    excluded_sources: tuple[str, ...] = ("cn_k12",)
    require_finished: bool = True


def from_openr1(rows: Iterable[Row], filters: REDIFilters, report: REDIReport, file: str) -> list[GradedProblem]:
    """Problems of OpenR1-Math-Raw: ``problem``, ``generations``, ``correctness`` with one list per judge."""
    found = []
    for index, row in enumerate(rows):
        report.problems += 1
        if missing := [name for name in ("problem", "generations", "correctness") if name not in row]:
            raise DataError(f"found fields {sorted(row)}", file=file, row=index, field=missing[0])
        if str(row.get("problem_is_valid", "Yes")).strip().lower() != "yes":
            report.dropped["problems not marked valid"] += 1
        elif row.get("source") in filters.excluded_sources:
            report.dropped[f"problems of source {row['source']}"] += 1
        elif not row["problem"] or not row["generations"]:
            report.dropped["problems without text or traces"] += 1
        elif (right := _both_judges(row)) is None:
            report.dropped["problems with another number of flags than traces"] += 1
        else:
            report.traces += len(right)
            found.append(GradedProblem(row["problem"], row["generations"], right, str(row.get("source")), index))
    return found


def _both_judges(row: Row) -> list[bool | None] | None:
    flags = [(row["correctness"] or {}).get(name) for name in FLAGS]
    if any(not isinstance(values, list | tuple) or len(values) != len(row["generations"]) for values in flags):
        return None
    return [_both(*pair) for pair in zip(*flags, strict=True)]


def _both(one: Any, other: Any) -> bool | None:
    """Right when both are true, wrong as soon as one is false, else unknown."""
    if one is False or other is False:
        return False
    return True if one is True and other is True else None


def from_eval(folder: Path, questions: dict[str, str], filters: REDIFilters, report: REDIReport) -> list[GradedProblem]:
    """Problems of a folder written by ``negpo eval`` (samples.jsonl, verdicts.jsonl); ``questions`` by problem id."""
    for name in ("samples.jsonl", "verdicts.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; it is not a folder written by `negpo eval`")
    status = {(row["problem"], row["sample"]): row["status"] for row in read_jsonl(folder / "verdicts.jsonl")}
    traces: dict[str, list[tuple[int, str, bool | None]]] = {}
    for row in read_jsonl(folder / "samples.jsonl"):
        if row["problem"] not in questions:
            raise ConfigError(
                f"{folder} has samples of problem {row['problem']!r}, which the benchmark lacks; pass --data"
            )
        report.traces += 1
        if filters.require_finished and row.get("finish_reason") == "length":
            report.dropped["traces cut by the sampling limit"] += 1
            continue
        verdict = {"correct": True, "wrong": False}.get(status.get((row["problem"], row["sample"]), "unknown"))
        traces.setdefault(row["problem"], []).append((row["sample"], row["text"], verdict))
    first = report.problems
    report.problems += len(questions)
    return [
        GradedProblem(
            questions[key],
            [text for _, text, _ in sorted(found)],
            [right for _, _, right in sorted(found, key=lambda item: item[0])],
            folder.name,
            index,
            key,
        )
        for index, (key, found) in enumerate(traces.items(), start=first)
    ]


def build_sets(
    problems: Sequence[GradedProblem],
    tokenizer: "PreTrainedTokenizerBase",
    filters: REDIFilters,
    report: REDIReport,
    *,
    seed: int = 42,
    system_prompt: str | None = None,
) -> tuple[list[Row], list[Row]]:
    """(stage 1 rows: prompt, completion, label), (stage 2 rows: prompt, chosen, rejected), in the shuffled order.

    Prompts are conversations. The order is that of ``datasets.Dataset.shuffle(seed)`` on everything that was read.
    """
    rank = np.argsort(np.random.default_rng(seed).permutation(report.problems))
    order = sorted(problems, key=lambda problem: rank[problem.index])
    positives: list[Row] = []
    pairs: list[Row] = []
    for problem in order:
        prompt = [{"role": "user", "content": problem.question}]
        if system_prompt:
            prompt.insert(0, {"role": "system", "content": system_prompt})
        right = [i for i, verdict in enumerate(problem.right) if verdict is True]
        wrong = [i for i, verdict in enumerate(problem.right) if verdict is False]
        report.dropped["traces no judge could decide"] += len(problem.traces) - len(right) - len(wrong)
        origin = {"source": problem.source, "original_index": problem.index}
        for i in right:
            positives.append({"prompt": prompt, "completion": _said(problem.traces[i]), "label": True, **origin})
        if not (right and wrong):
            missing = "right" if wrong else "wrong"
            report.dropped[f"problems without a {missing} trace (no pair)"] += 1
        elif not (reason := _too_long(problem, prompt, (right[0], wrong[0]), tokenizer, filters)):
            chosen, rejected = (_said(problem.traces[side[0]]) for side in (right, wrong))
            places = {"chosen_index": right[0], "rejected_index": wrong[0]}
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **origin, **places})
        else:
            report.dropped[reason] += 1
    report.dropped = +report.dropped
    report.positives, report.pairs = len(positives), len(pairs)
    return positives, pairs


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _too_long(
    problem: GradedProblem, prompt: list[Row], traces: Iterable[int], tokenizer: Any, filters: REDIFilters
) -> str | None:
    """Why a pair goes, or None. Equal traces go too: they teach nothing but cancel."""
    chosen, rejected = (problem.traces[i] for i in traces)
    if chosen == rejected:
        return "pairs of identical traces"
    longest = filters.max_prompt_tokens
    if longest is not None and len(chat_ids(tokenizer, render(tokenizer, prompt, ask=True))) > longest:
        return f"pairs with a prompt over {longest} tokens"
    limit = filters.max_trace_tokens
    if limit is not None and any(len(tokenizer(text)["input_ids"]) > limit for text in (chosen, rejected)):
        return f"pairs with a trace over {limit} tokens"
    return None
