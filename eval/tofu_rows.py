"""Per-row results of TOFU's sets, filled from a scoring pass and a generation pass; no model in sight."""

from collections.abc import Mapping, Sequence
from typing import Any

from negpo.eval.metrics import rouge_scores
from negpo.eval.tofu_data import TofuData
from negpo.eval.tofu_items import Answer, Prompt
from negpo.eval.tofu_metrics import Rows


def blank_rows(data: TofuData) -> Rows:
    """One result per row and set that holds its place and texts, nothing measured yet."""
    return {
        name: [
            {"set": name, "row": index, "question": row["question"], "answer": row["answer"]}
            for index, row in enumerate(rows)
        ]
        for name, rows in data.sets.items()
    }


def add_losses(rows: Rows, answers: Sequence[Answer], results: Sequence[Mapping[str, Any]]) -> None:
    """Put scoring results into ``nll``, ``paraphrase_nll`` and ``perturbed_nll`` (J,) of the rows they belong to.

    The answer's own result is kept whole: its memorisation and membership statistics too, where it has them.
    """
    for answer, result in zip(answers, results, strict=True):
        row, nll = rows[answer.set][answer.row], float(result["nll"])
        if answer.kind == "perturbed":
            row.setdefault("perturbed_nll", []).append(nll)
        elif answer.kind == "paraphrase":
            row["paraphrase_nll"] = nll
        else:
            row |= {**result, "nll": nll}


def add_generations(rows: Rows, prompts: Sequence[Prompt], texts: Sequence[str]) -> None:
    """Put generated texts, what they are compared with, and their ROUGE values into the rows."""
    for prompt, text in zip(prompts, texts, strict=True):
        row = rows[prompt.set][prompt.row]
        row |= {"generation": text, "ground_truth": prompt.truth, **rouge_scores(prompt.truth, text)}
