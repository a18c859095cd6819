"""Rationales without gold answers: positives by self-consistency, negatives from earlier checkpoints.

After "Quality-guided Contrastive Rationale Distillation" (QCRD): of several sampled traces those that reach the most
frequent answer are taken for right (self-consistency, arXiv 2203.11171), and an earlier, weaker checkpoint of the
student supplies wrong ones. Its quality judge, a discriminator that weighs each rationale, is not here: the share of
votes stands in its place and goes into every row as ``agreement``.

A caveat that the counts show: the vote can be wrong, and then right answers of the earlier checkpoint become negatives.
Where the benchmark has golds, the report says how often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negpo.data.io import read_jsonl
from negpo.errors import ConfigError

Row = dict[str, Any]
Key = Callable[[str], Hashable]


@dataclass(frozen=True)
class Trace:
    """A sampled solution: its text, the answer found in it (None: none), and a judge's verdict where there was one."""

    text: str
    answer: str | None
    right: bool | None = None


@dataclass
class RationaleReport:
    """What was read, made and dropped, by reason, and how good the vote was where golds are known."""

    problems: int = 0
    positives: int = 0
    negatives: int = 0
    votes_judged: int = 0
    votes_right: int = 0
    negatives_judged: int = 0
    negatives_right: int = 0  # right answers that the vote made negatives
    dropped: Counter = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, int]]:
        """(what, how many) for a table."""
        made = [("problems read", self.problems), ("positives", self.positives), ("negatives", self.negatives)]
        made += [("votes that a judge decided", self.votes_judged), ("of these right", self.votes_right)]
        made += [("negatives that a judge decided", self.negatives_judged), ("of these right", self.negatives_right)]
        return made + [(f"dropped: {name}", count) for name, count in sorted(self.dropped.items())]


def traces_of(folder: Path) -> dict[str, list[Trace]]:
    """Traces by problem id of a folder written by ``negpo eval``, in sample order, without those that were cut.

    Raises:
        ConfigError: the folder is not one of an evaluation.
    """
    for name in ("samples.jsonl", "verdicts.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; it is not a folder written by `negpo eval`")
    verdicts = {(row["problem"], row["sample"]): row for row in read_jsonl(folder / "verdicts.jsonl")}
    found: dict[str, list[tuple[int, Trace]]] = {}
    for row in read_jsonl(folder / "samples.jsonl"):
        traces = found.setdefault(row["problem"], [])
        verdict = verdicts.get((row["problem"], row["sample"]), {})
        if row.get("finish_reason") != "length":
            right = {"correct": True, "wrong": False}.get(verdict.get("status", "unknown"))
            traces.append((row["sample"], Trace(row["text"], verdict.get("extracted"), right)))
    return {name: [trace for _, trace in sorted(rows, key=lambda r: r[0])] for name, rows in found.items()}


def build_rationales(
    questions: dict[str, str],
    final: dict[str, list[Trace]],
    earlier: Sequence[dict[str, list[Trace]]],
    report: RationaleReport,
    *,
    min_agreement: float = 0.5,
    max_positives: int = 4,
    max_negatives: int = 4,
    key: Key = str.strip,
) -> list[Row]:
    """One row per problem with both kinds: ``prompt``, ``completions``, ``labels``, ``agreement``.

    Args:
        questions: text by problem id.
        final: traces of the checkpoint that votes.
        earlier: traces of earlier checkpoints, weakest first; negatives are taken in this order.
        min_agreement: least share of all traces (those without an answer count) that must stand behind the answer.
        key: two answers are the same vote when their keys are equal.

    Labels are True for the voted answer and False for another one; a trace of an earlier checkpoint without an answer
    is dropped, because nothing says that it is wrong. AFT, LiPO and KTO take the rows as they are.
    """
    rows = []
    for name, question in questions.items():
        report.problems += 1
        traces = final.get(name, [])
        votes = Counter(key(trace.answer) for trace in traces if trace.answer is not None)
        if not votes:
            report.dropped["problems without an answer to vote on"] += 1
            continue
        (winner, count), *others = votes.most_common()
        if others and others[0][1] == count:
            report.dropped["problems whose vote is a tie"] += 1
            continue
        if count < min_agreement * len(traces):
            report.dropped[f"problems with agreement below {min_agreement:g}"] += 1
            continue
        behind = [trace for trace in traces if trace.answer is not None and key(trace.answer) == winner]
        judged = [trace.right for trace in behind if trace.right is not None]
        report.votes_judged += bool(judged)
        report.votes_right += bool(judged and judged[0])
        positives = _distinct(behind, max_positives)
        negatives = _negatives([trace for run in earlier for trace in run.get(name, [])], winner, key, report)
        negatives = _distinct(negatives, max_negatives)
        if not negatives:
            report.dropped["problems without a differing answer of an earlier checkpoint"] += 1
            continue
        report.positives += len(positives)
        report.negatives += len(negatives)
        report.negatives_judged += sum(trace.right is not None for trace in negatives)
        report.negatives_right += sum(trace.right is True for trace in negatives)
        rows.append(_row(question, positives, negatives, count / len(traces)))
    report.dropped = +report.dropped
    return rows


def pairs_of(rows: Sequence[Row]) -> list[Row]:
    """(prompt, chosen, rejected) of the first positive and the first negative of every row, for pair objectives."""
    pairs = []
    for row in rows:
        first = row["labels"].index(False)
        pairs.append({"prompt": row["prompt"], "chosen": row["completions"][0], "rejected": row["completions"][first]})
    return pairs


def _negatives(traces: Sequence[Trace], winner: Hashable, key: Key, report: RationaleReport) -> list[Trace]:
    report.dropped["earlier traces without an answer"] += sum(trace.answer is None for trace in traces)
    return [trace for trace in traces if trace.answer is not None and key(trace.answer) != winner]


def _distinct(traces: Sequence[Trace], limit: int) -> list[Trace]:
    """The first ``limit`` traces of different text."""
    return list({trace.text: trace for trace in reversed(traces)}.values())[::-1][:limit]


def _row(question: str, positives: Sequence[Trace], negatives: Sequence[Trace], agreement: float) -> Row:
    labels = [True] * len(positives) + [False] * len(negatives)
    return {
        "prompt": [{"role": "user", "content": question}],
        "completions": [[{"role": "assistant", "content": trace.text}] for trace in (*positives, *negatives)],
        "labels": labels,
        "agreement": agreement,
    }
