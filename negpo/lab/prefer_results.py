"""Results of `negpo demo prefer` read from disk, and intervals over seeds, questions and samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from negpo.errors import DataError
from negpo.eval.bootstrap import Estimate, Floats, Statistic
from negpo.eval.bootstrap import estimate as clustered_estimate
from negpo.report.results import RUN_FILE

DEMO_FILE = "prefer.json"


@dataclass(frozen=True)
class Table:
    """One measured quantity: `values` (seeds, questions), means over `samples` answers each (0: not sampled)."""

    values: Floats
    samples: int = 0


@dataclass(frozen=True)
class Method:
    """All seeds of one run. `runs[s]` is the content of a results file."""

    name: str
    title: str
    part: str
    runs: list[dict[str, Any]]

    @property
    def steps(self) -> list[int]:
        return [point["step"] for point in self.runs[0]["points"]]

    def table(self, quantity: str, place: int = -1, group: str | None = None) -> Table:
        """Shares of `right` or `harmful` answers, or `kl`, at the point `place`; of one group of questions or all."""
        rows, samples = [], 0
        for run in self.runs:
            point = run["points"][place]
            if quantity == "kl":
                rows.append([value for name, found in point["kl"].items() if group in (None, name) for value in found])
                continue
            samples = point["samples"]
            kept = [group in (None, question["group"]) for question in run["questions"]]
            rows.append([count / samples for count, keep in zip(point[quantity], kept, strict=True) if keep])
        shortest = min(map(len, rows))
        return Table(np.array([row[:shortest] for row in rows], dtype=np.float64), samples)

    def mean(self, name: str, place: int = -1) -> float:
        """Mean over seeds of a plain number of a point: `tokens`, `truncated`, `unanswered`."""
        return float(np.mean([run["points"][place][name] for run in self.runs]))

    def logged(self, name: str) -> tuple[list[int], Floats] | None:
        """Steps, and (seeds, steps) of a number of the training log; None where the method does not log it."""
        logs = [{row["step"]: row[name] for row in run["training_log"] if name in row} for run in self.runs]
        steps = sorted(set.intersection(*map(set, logs)))
        return (steps, np.array([[log[step] for step in steps] for log in logs])) if steps else None


def load_methods(folder: Path) -> tuple[dict[str, Method], dict[str, Any]]:
    """Methods in the order of the demo, with the seeds that all of them have, and the demo's own record.

    Raises:
        DataError: `folder` holds no finished run of the demo's seeds.
    """
    demo = json.loads((folder / DEMO_FILE).read_text(encoding="utf-8"))
    methods = {}
    for name in demo["methods"]:
        files = [folder / f"seed{seed}" / name / RUN_FILE for seed in demo["seeds"]]
        if missing := [path for path in files if not path.exists()]:
            raise DataError("the run is not finished; repeat negpo demo prefer", file=str(missing[0]))
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        methods[name] = Method(name, runs[0]["title"], runs[0]["part"], runs)
    return methods, demo


def estimate(statistic: Statistic, *tables: Table) -> Estimate:
    """`statistic` of the tables' means over seeds, with its interval over seeds, questions and answers.

    All tables must have the same shape; they are resampled together, so differences between columns are paired.
    """
    seeds = np.stack([table.values for table in tables], axis=-1)  # (S, Q, tables)
    answers = [table.samples for table in tables]
    return clustered_estimate(list(seeds), statistic, answers=answers, pooled=True, draws=2000)


def level(table: Table) -> Estimate:
    """The mean of one table."""
    return estimate(lambda means: means[:, 0], table)


def gap(first: Table, second: Table) -> Estimate:
    """Mean of `first` minus mean of `second`, paired."""
    return estimate(lambda means: means[:, 0] - means[:, 1], first, second)


def drift_gap(other: Table, ours: Table, start: Table) -> Estimate:
    """How much further `other` is from `start` than `ours`: |other - start| - |ours - start| of the means, paired."""
    return estimate(
        lambda means: np.abs(means[:, 0] - means[:, 2]) - np.abs(means[:, 1] - means[:, 2]), other, ours, start
    )
