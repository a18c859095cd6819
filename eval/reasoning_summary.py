"""From verdicts to numbers: pass@k, avg@k, maj@k and the rates that tell whether they mean anything.

Samples whose verdict is *unknown* (the grader timed out or crashed) leave n instead of counting as wrong; where any
exist, `pass_at_k` also carries the bounds that follow from calling all of them wrong or all of them right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from negpo.data.problems import Problem
from negpo.data.protocols import Protocol
from negpo.eval.bootstrap import Interval, interval, resampled_means
from negpo.eval.passk import analytic_stderr, bootstrap, default_ks, majority_at_k, pass_at_k_curve
from negpo.rewards import vote_keys

Key = tuple[str, int]
Rows = Mapping[Key, Mapping[str, Any]]


def summarise(problems: Sequence[Problem], protocol: Protocol, samples: Rows, verdicts: Rows) -> dict[str, Any]:
    """All numbers of one run.

    Args:
        samples, verdicts: rows by (problem id, sample index), complete for every problem and sample of the protocol.
    """
    keys = [[(problem.id, i) for i in range(protocol.n)] for problem in problems]
    status = [[verdicts[key]["status"] for key in row] for row in keys]
    n = np.array([sum(s != "unknown" for s in row) for row in status])
    c = np.array([sum(s == "correct" for s in row) for row in status])
    counts = [
        {"problem": p.id, "level": p.level, "subject": p.subject, "n": int(a), "c": int(b), "drawn": protocol.n}
        for p, a, b in zip(problems, n, c, strict=True)
    ]
    return {
        "problems": len(problems),
        "samples": len(problems) * protocol.n,
        "n": protocol.n,
        "pass_at_k": _pass_at_k(n, c, protocol.n),
        "maj_at_k": _majority(keys, verdicts, protocol.n),
        "rates": _rates(keys, samples, verdicts),
        "by_level": _groups(counts, "level"),
        "by_subject": _groups(counts, "subject"),
        "tokens": _lengths(keys, samples, verdicts),
        "counts": counts,
    }


def _pass_at_k(n: np.ndarray, c: np.ndarray, drawn: int) -> list[dict[str, Any]]:
    """One entry per k. avg@n, the mean over all samples, is the entry with k = 1."""
    judged = n > 0  # a problem all of whose verdicts are unknown has no estimate
    unknown = bool((n < drawn).any())
    fewest = int(n[judged].min()) if judged.any() else 0
    ks = [k for k in default_ks(drawn) if k <= fewest]
    entries: dict[int, dict[str, Any]] = {k: {"k": k} for k in default_ks(drawn)}
    if ks:
        means = pass_at_k_curve(n[judged], c[judged], ks).mean(axis=0)
        draws = bootstrap(n[judged], c[judged], ks)
        errors = analytic_stderr(n[judged], c[judged], ks)
        for column, k in enumerate(ks):
            bounds = interval(draws[:, column], means[column])
            entries[k] |= {"value": bounds.value, "low": bounds.low, "high": bounds.high}
            entries[k] |= {"sampling_stderr": float(errors[column])}
    if unknown:
        full = np.full(len(n), drawn)
        wrong = pass_at_k_curve(full, c, list(entries)).mean(axis=0)
        right = pass_at_k_curve(full, c + drawn - n, list(entries)).mean(axis=0)
        for k, low, high in zip(entries, wrong, right, strict=True):
            entries[k] |= {"unknown_as_wrong": float(low), "unknown_as_correct": float(high)}
    return list(entries.values())


def _majority(keys: Sequence[Sequence[Key]], verdicts: Rows, drawn: int) -> list[dict[str, Any]]:
    answers = [vote_keys([verdicts[key]["extracted"] for key in row]) for row in keys]
    correct = [[verdicts[key]["status"] == "correct" for key in row] for row in keys]
    entries = []
    for k in default_ks(drawn):
        bounds = mean_interval(majority_at_k(answers, correct, k))
        entries.append({"k": k, "value": bounds.value, "low": bounds.low, "high": bounds.high})
    return entries


def mean_interval(per_problem: np.ndarray, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean over problems with the percentile interval of a problem-level bootstrap."""
    return interval(resampled_means(per_problem[:, None], draws, seed)[:, 0], per_problem.mean())


def _rates(keys: Sequence[Sequence[Key]], samples: Rows, verdicts: Rows) -> dict[str, dict[str, float]]:
    """Shares of samples that hit the length limit, hold no answer, or could not be judged."""
    tests: dict[str, Callable[[Key], bool]] = {
        "truncated": lambda key: samples[key]["finish_reason"] == "length",
        "no_answer": lambda key: verdicts[key]["extracted"] is None and verdicts[key]["status"] == "wrong",
        "unknown": lambda key: verdicts[key]["status"] == "unknown",
    }
    rates = {}
    for name, test in tests.items():
        bounds = mean_interval(np.array([np.mean([test(key) for key in row]) for row in keys]))
        rates[name] = {"value": bounds.value, "low": bounds.low, "high": bounds.high}
    return rates


def _groups(counts: Sequence[Mapping[str, Any]], field: str) -> dict[str, dict[str, Any]]:
    """avg@n and pass@n per level or subject; empty when the benchmark has neither."""
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in counts:
        if row[field] is not None and row["n"] > 0:
            members[row[field]].append(row)
    table = {}
    for name, rows in sorted(members.items()):
        solved = np.array([row["c"] / row["n"] for row in rows])
        bounds = mean_interval(solved)
        table[name] = {
            "problems": len(rows),
            "value": bounds.value,
            "low": bounds.low,
            "high": bounds.high,
            "ever_solved": float(np.mean(solved > 0)),
        }
    return table


def _lengths(keys: Sequence[Sequence[Key]], samples: Rows, verdicts: Rows) -> dict[str, dict[str, float]]:
    """Completion lengths in tokens, split by verdict."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for row in keys:
        for key in row:
            lengths[verdicts[key]["status"]].append(samples[key]["tokens"])
    return {
        status: {"samples": len(values), "mean": float(np.mean(values)), "median": float(np.median(values))}
        for status, values in sorted(lengths.items())
    }
