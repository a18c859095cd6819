"""From the runs of `negpo demo rlvr` to estimates with intervals.

Every quantity is first a value per test problem, so that all methods are compared on the same problems of the same
seed. Intervals are those of `negpo.eval.bootstrap`, over seeds and problems within each. The estimate of one problem
already carries the noise of its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from negpo.eval.bootstrap import Estimate, Floats, estimate
from negpo.eval.passk import default_ks, pass_at_k_curve
from negpo.report.results import RUN_FILE

BASE = "base"
GROUP = 16  # answers per group in the lab recipes; says how often a group of a level is all wrong


@dataclass(frozen=True)
class Results:
    """Results of all runs: seed -> name -> content of its `results.json`. Every seed has the same names.

    Runs whose verifier erred are called `method-error`; they stand beside the others, in `noisy`.
    """

    seeds: Mapping[int, Mapping[str, Mapping[str, Any]]]

    @property
    def names(self) -> list[str]:
        """Names of the runs with the verifier as it is, `base` first."""
        return [name for name in next(iter(self.seeds.values())) if "-" not in name]

    @property
    def noisy(self) -> list[str]:
        """Names of the runs whose verifier erred."""
        return [name for name in next(iter(self.seeds.values())) if "-" in name]

    @property
    def world(self) -> str:
        return self.runs(BASE)[0].get("world", "arithmetic")

    @property
    def style(self) -> str:
        """What answers of the style that is watched do."""
        return self.runs(BASE)[0].get("style", "carry out every operation")

    def runs(self, name: str) -> list[Mapping[str, Any]]:
        """The run of that name in every seed."""
        return [runs[name] for runs in self.seeds.values()]

    def title(self, name: str) -> str:
        return self.runs(name)[0]["title"]

    @property
    def levels(self) -> list[str]:
        return sorted({row["level"] for row in self.runs(BASE)[0]["problems"]})

    @property
    def ks(self) -> list[int]:
        """The k that every problem of every run has samples for."""
        return default_ks(min(row["n"] for name in self.names for run in self.runs(name) for row in run["problems"]))


def load_results(out: Path, seeds: Sequence[int], names: Sequence[str]) -> Results:
    """Read what the child processes left under `out`."""

    def read(seed: int, name: str) -> dict[str, Any]:
        return json.loads((out / f"seed{seed}" / name / RUN_FILE).read_text(encoding="utf-8"))

    return Results({seed: {name: read(seed, name) for name in (BASE, *names)} for seed in seeds})


# ---- values per problem ----------------------------------------------------------------------------------------------


def rows_of(run: Mapping[str, Any], level: str | None = None) -> list[Mapping[str, Any]]:
    return [row for row in run["problems"] if level in (None, row["level"])]


def pass_values(run: Mapping[str, Any], ks: Sequence[int], level: str | None = None) -> Floats:
    """(P, K) unbiased pass@k of every problem."""
    rows = rows_of(run, level)
    return pass_at_k_curve([row["n"] for row in rows], [row["c"] for row in rows], ks)


def area_values(run: Mapping[str, Any], ks: Sequence[int], level: str | None = None) -> Floats:
    """(P, 1) area under the pass@k curve over log k, as a share of the largest possible (NGRPO's score)."""
    curve = pass_values(run, ks, level)
    area = (curve[:, 1:] + curve[:, :-1]).sum(1) / 2 / (len(ks) - 1) if len(ks) > 1 else curve[:, 0]
    return area[:, None]


def entropy_values(run: Mapping[str, Any], level: str | None = None) -> Floats:
    """(P, 2) entropy of an answer in nats, estimated from its samples, and tokens per answer."""
    return np.array([[-row["logp"], row["tokens"]] for row in rows_of(run, level)])


def distinct_values(run: Mapping[str, Any]) -> Floats:
    """(P, 1) different right answers among the samples of a test problem."""
    return np.array([[row.get("distinct", np.nan)] for row in run["problems"]], dtype=np.float64)


def drop_values(run: Mapping[str, Any]) -> Floats:
    """(P, 2) fall and mean change of the log-prob of right answers of before, nats per answer."""
    return np.array([[row["drop"], row["mean"]] for row in run["probe"]["problems"]]).reshape(-1, 2)


def change_values(run: Mapping[str, Any], kind: str) -> Floats:
    """(P, 1) mean change of the log-prob of right answers of one kind, over the problems that had such an answer."""
    return np.array([row[kind] for row in run["probe"]["problems"] if row[kind] is not None]).reshape(-1, 1)


# ---- estimates -------------------------------------------------------------------------------------------------------


def curve(results: Results, name: str, level: str | None = None) -> list[Estimate]:
    """pass@k of one run for every k of `results.ks`."""
    tables = [pass_values(run, results.ks, level) for run in results.runs(name)]
    return [estimate([table[:, [column]] for table in tables]) for column in range(len(results.ks))]


def compare(results: Results, first: str, second: str, values: Callable[[Any], Floats]) -> Estimate:
    """First minus second run in the first column of `values`, problem by problem."""
    pairs = zip(results.runs(first), results.runs(second), strict=True)
    return estimate([values(one)[:, :1] - values(other)[:, :1] for one, other in pairs])


def loss_by_errors(results: Results, name: str, error: str, k: int = 1) -> Estimate:
    """What the errors of the verifier cost a method in pass@k, problem by problem."""
    return compare(results, name, f"{name}-{error}", lambda run: pass_values(run, [k]))


def gap_of_losses(results: Results, first: str, second: str, error: str) -> Estimate:
    """How much more pass@1 the errors cost the first method than the second."""
    names = (first, f"{first}-{error}", second, f"{second}-{error}")
    runs = zip(*(results.runs(name) for name in names), strict=True)
    tables = [[pass_values(run, [1]) for run in group] for group in runs]
    return estimate([clean - noisy - (other - other_noisy) for clean, noisy, other, other_noisy in tables])


def entropy(results: Results, name: str) -> Estimate:
    """Entropy per token in nats on the test problems."""
    return estimate([entropy_values(run) for run in results.runs(name)], lambda means: means[:, 0] / means[:, 1])


def entropy_against(results: Results, first: str, second: str) -> Estimate:
    """Ratio of the entropies per token of two runs."""
    pairs = zip(results.runs(first), results.runs(second), strict=True)
    tables = [np.hstack([entropy_values(one), entropy_values(other)]) for one, other in pairs]
    return estimate(tables, lambda means: means[:, 0] / means[:, 1] / (means[:, 2] / means[:, 3]))


def all_wrong_shares(results: Results) -> dict[str, float]:
    """Per level, how often a group of the model before training holds no right answer."""
    size = min(GROUP, results.ks[-1])
    tables = {level: [1.0 - pass_values(run, [size], level) for run in results.runs(BASE)] for level in results.levels}
    return {level: float(np.mean([table.mean() for table in found])) for level, found in tables.items()}


# ---- along training --------------------------------------------------------------------------------------------------


SMOOTHED = 5  # rollouts in a running mean: their prompts differ in difficulty


def smoothed(run: Mapping[str, Any], quantity: str) -> Floats:
    """Running mean of what was measured on every rollout; entry i ends with rollout i + the width of the mean."""
    values = np.array([rollout[quantity] for rollout in run["rollouts"]])
    width = min(SMOOTHED, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def rollout_mean(results: Results, name: str, quantity: str, level: str) -> float:
    """Mean over all rollouts and seeds that held problems of the level."""
    found = [
        rollout["levels"][level][quantity]
        for run in results.runs(name)
        for rollout in run["rollouts"]
        if level in rollout["levels"]
    ]
    return float(np.mean(found))


def first_and_last(results: Results, name: str, quantity: str) -> tuple[float, float]:
    """Running mean over the first and over the last rollouts, averaged over seeds."""
    lines = [smoothed(run, quantity) for run in results.runs(name)]
    return float(np.mean([line[0] for line in lines])), float(np.mean([line[-1] for line in lines]))


def entropy_at_equal_accuracy(results: Results, first: str, second: str) -> float:
    """Mean ratio of the rollouts' entropies per token of two runs where their shares of right answers are equal.

    NaN where the two never were equally right.
    """
    ratios: list[float] = []
    for one, other in zip(results.runs(first), results.runs(second), strict=True):
        accuracy, found = smoothed(other, "right"), smoothed(other, "entropy")
        order = np.argsort(accuracy)
        for right, entropy_there in zip(smoothed(one, "right"), smoothed(one, "entropy"), strict=True):
            if accuracy.min() <= right <= accuracy.max():
                ratios.append(float(entropy_there / np.interp(right, accuracy[order], found[order])))
    return float(np.mean(ratios)) if ratios else float("nan")


def fall_at_accuracy_of(results: Results, name: str, other: str) -> float:
    """Fall of right answers of run `name` when its rollouts first were as right as those of `other` at its end.

    Mean over the answers of a seed, then over seeds; NaN where that never happened.
    """
    falls = []
    for run, goal in zip(results.runs(name), results.runs(other), strict=True):
        reached = np.flatnonzero(smoothed(run, "right") >= smoothed(goal, "right")[-1])
        points = run["probe"]["curve"]
        if len(reached) and points:
            rollout = reached[0] + min(SMOOTHED, len(run["rollouts"]))
            step = rollout * run["steps"] / len(run["rollouts"])
            falls.append(np.interp(step, [point["step"] for point in points], [point["drop"] for point in points]))
    return float(np.mean(falls)) if falls else float("nan")
