"""Alternate answers for AltPO (arXiv 2409.13474): written by the target, near copies of the truth dropped."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from negpo.errors import ConfigError, DataError

Row = dict[str, Any]
REASONS = ("empty", "too close to the answer", "repeated")
STOPS = ("Question:", "Q:")  # a zero-shot continuation begins the next question; the answer ends there


@dataclass
class AlternatesReport:
    """What was made: ``rouge`` of kept rows against the true answer, drops by reason, questions without any."""

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    without: list[int] = field(default_factory=list)
    rouge: list[float] = field(default_factory=list)

    def rows(self) -> list[tuple[str, int]]:
        found = [("alternates kept", self.kept), *((f"dropped: {name}", n) for name, n in self.dropped.items())]
        return [*found, ("questions without an alternate", len(self.without))]

    @property
    def mean_rouge(self) -> float | None:
        return statistics.fmean(self.rouge) if self.rouge else None


def alternate_prompt(question: str, answer: str) -> str:
    """The zero-shot request, continued by the model after its last cue (own wording; the papers' texts are theirs)."""
    return (
        "Give a different answer to the question below. It must sound as plausible as the answer shown, but all of its "
        f"facts must be different.\n\nQuestion: {question}\nAnswer: {answer}\nAlternate answer:"
    )


def cut(text: str) -> str:
    """The continuation up to the next question, without white space around it."""
    ends = [place for stop in STOPS if (place := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text.strip()


def build_alternates(
    rows: Sequence[Row],
    drawn: Sequence[Sequence[str]],
    rouge_recall: Callable[[str, str], float],
    *,
    max_rouge: float = 0.9,
) -> tuple[list[Row], AlternatesReport]:
    """``{question, answer, alternate, source_row}`` for every usable draw.

    ``drawn[i]``: continuations for row i. A draw is left out when it is empty, when ``rouge_recall(answer, draw)``
    exceeds ``max_rouge`` (it repeats the truth) or when it repeats an earlier draw of the same question.

    Raises ConfigError for a threshold outside [0, 1], DataError when no alternate is left at all.
    """
    if not 0 <= max_rouge <= 1:
        raise ConfigError(f"max_rouge is {max_rouge}; it is a ROUGE-L recall in [0, 1]")
    report, kept = AlternatesReport(), []
    for index, (row, texts) in enumerate(zip(rows, drawn, strict=True)):
        seen: set[str] = set()
        for text in map(cut, texts):
            reason = _reason(text, row["answer"], seen, rouge_recall, max_rouge)
            if reason:
                report.dropped[reason] += 1
                continue
            seen.add(text)
            report.rouge.append(rouge_recall(row["answer"], text))
            kept.append({"question": row["question"], "answer": row["answer"], "alternate": text, "source_row": index})
        if not seen:
            report.without.append(index)
    report.kept = len(kept)
    if not kept:
        raise DataError(f"no alternate is left of {sum(map(len, drawn))} draws: {report.dropped}; raise max_rouge")
    return kept, report


def _reason(text: str, answer: str, seen: set[str], rouge_recall, max_rouge: float) -> str | None:
    if not text:
        return "empty"
    if text == answer.strip() or rouge_recall(answer, text) > max_rouge:
        return "too close to the answer"
    return "repeated" if text in seen else None
