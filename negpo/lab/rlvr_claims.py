"""From the runs of `negpo demo rlvr` to estimates with intervals, and to verdicts on what was claimed about them.

Every quantity is first a value per test problem, so that all methods are compared on the same problems of the same
seed. Intervals come from a bootstrap in two levels: seeds with replacement, then problems within each; with one seed
only the problems are drawn. The estimate of one problem already carries the noise of its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negpo.eval.passk import default_ks, pass_at_k_curve
from negpo.report.results import RUN_FILE

BASE = "base"
GROUP = 16  # answers per group in the lab recipes; says how often a group of a level is all wrong
DRAWS = 4000
KEPT_ENTROPY = 0.8  # share of the entropy before training that counts as kept
LOSS_MARGIN = 0.02  # pass@k below which a loss is not told from none

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (..., C) means of columns -> (...)


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its 95 % interval, and the value of every seed."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]

    def text(self, form: str = "{:+.3f}") -> str:
        """`value (low to high)`."""
        return f"{form.format(self.value)} ({form.format(self.low)} to {form.format(self.high)})"


@dataclass(frozen=True)
class Results:
    """Results of all runs: seed -> name -> content of its `results.json`. Every seed has the same names."""

    seeds: Mapping[int, Mapping[str, Mapping[str, Any]]]

    @property
    def names(self) -> list[str]:
        """Names of the runs, `base` first."""
        return list(next(iter(self.seeds.values())))

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


def drop_values(run: Mapping[str, Any]) -> Floats:
    """(P, 2) fall and mean change of the log-prob of right answers of before, nats per answer."""
    return np.array([[row["drop"], row["mean"]] for row in run["probe"]["problems"]]).reshape(-1, 2)


def change_values(run: Mapping[str, Any], kind: str) -> Floats:
    """(P, 1) mean change of the log-prob of right answers of one kind, over the problems that had such an answer."""
    return np.array([row[kind] for row in run["probe"]["problems"] if row[kind] is not None]).reshape(-1, 1)


# ---- estimates -------------------------------------------------------------------------------------------------------


def first_column(means: Floats) -> Floats:
    return means[..., 0]


def estimate(tables: Sequence[Floats], statistic: Statistic = first_column, *, draws: int = DRAWS) -> Estimate:
    """Mean over seeds of `statistic` of column means, with the interval of the two-level bootstrap.

    Args:
        tables: one (P, C) per seed; rows are problems, columns what the statistic combines. Empty ones do not count;
            if all are empty, the estimate is NaN.
    """
    tables = [table for table in tables if len(table)]
    if not tables:
        return Estimate(np.nan, np.nan, np.nan, ())
    rng = np.random.default_rng(0)
    means = []  # per seed (draws, C)
    for table in tables:
        counts = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws)
        means.append(counts @ table / len(table))
    each = np.stack([statistic(mean) for mean in means])  # (S, draws)
    chosen = rng.integers(len(tables), size=(len(tables), draws))
    low, high = np.quantile(np.take_along_axis(each, chosen, 0).mean(0), [0.025, 0.975])
    values = tuple(float(statistic(table.mean(0))) for table in tables)
    return Estimate(float(np.mean(values)), float(low), float(high), values)


def curve(results: Results, name: str, level: str | None = None) -> list[Estimate]:
    """pass@k of one run for every k of `results.ks`."""
    tables = [pass_values(run, results.ks, level) for run in results.runs(name)]
    return [estimate([table[:, [column]] for table in tables]) for column in range(len(results.ks))]


def compare(results: Results, first: str, second: str, values: Callable[[Any], Floats]) -> Estimate:
    """First minus second run in the first column of `values`, problem by problem."""
    pairs = zip(results.runs(first), results.runs(second), strict=True)
    return estimate([values(one)[:, :1] - values(other)[:, :1] for one, other in pairs])


def entropy(results: Results, name: str) -> Estimate:
    """Entropy per token in nats on the test problems."""
    return estimate([entropy_values(run) for run in results.runs(name)], lambda means: means[..., 0] / means[..., 1])


def entropy_against(results: Results, first: str, second: str) -> Estimate:
    """Ratio of the entropies per token of two runs."""
    pairs = zip(results.runs(first), results.runs(second), strict=True)
    tables = [np.hstack([entropy_values(one), entropy_values(other)]) for one, other in pairs]
    return estimate(tables, lambda means: means[..., 0] / means[..., 1] / (means[..., 2] / means[..., 3]))


# ---- claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One measurable statement: the estimate lies above (or below) `bound`."""

    text: str
    estimate: Estimate
    bound: float
    above: bool

    @property
    def verdict(self) -> str:
        """`holds` or `fails` where the whole interval is on one side of the bound, else `open`."""
        low, high = self.estimate.low, self.estimate.high
        sides = (low > self.bound, high < self.bound)
        holds, fails = sides if self.above else sides[::-1]
        return "holds" if holds else "fails" if fails else "open"


@dataclass(frozen=True)
class Claim:
    """What a paper leads one to expect, and how its parts came out here."""

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def tone(self) -> str:
        found = {part.verdict for part in self.parts}
        return "good" if found == {"holds"} else "bad" if found == {"fails"} else "warn"

    @property
    def headline(self) -> str:
        counts = [sum(part.verdict == verdict for part in self.parts) for verdict in ("holds", "open", "fails")]
        if counts[0] == len(self.parts):
            return "Reproduced"
        if counts[2] == len(self.parts):
            return "Not reproduced"
        if counts[1] == len(self.parts):
            return "Undecided: the interval includes both"
        names = ("hold", "undecided", "do not hold")
        return ", ".join(
            f"{count} of {len(self.parts)} {name}" for count, name in zip(counts, names, strict=True) if count
        )


def claims(results: Results) -> list[Claim]:
    """The claims whose methods were all run."""
    needed = (
        (_entropy_claim, {"psr", "nsr"}),
        (_all_wrong_claim, {"ngrpo", "grpo"}),
        (_displacement_claim, {"resrl", "nsr"}),
    )
    return [claim(results) for claim, names in needed if names <= set(results.names)]


def _entropy_claim(results: Results) -> Claim:
    k = results.ks[-1]
    parts = (
        Part("NSR's entropy per token, share of before", entropy_against(results, "nsr", BASE), KEPT_ENTROPY, True),
        Part("NSR's entropy per token as a multiple of PSR's", entropy_against(results, "nsr", "psr"), 1.0, True),
        Part(
            f"pass@{k}, NSR minus before (no loss beyond {LOSS_MARGIN})",
            compare(results, "nsr", BASE, lambda run: pass_values(run, [k])),
            -LOSS_MARGIN,
            True,
        ),
        Part(f"pass@{k}, PSR minus NSR", compare(results, "psr", "nsr", lambda run: pass_values(run, [k])), 0.0, False),
    )
    wordings = float(np.mean([run["right_answers_per_problem"] for run in results.runs(BASE)]))
    notes = (
        f"A question has {wordings:.1f} different right answers here, counted among the samples of before: whoever "
        "becomes right must lose most of the entropy. The curves compare it at equal accuracy.",
        _change(results, ("psr", "nsr"), "distinct", "Share of a group's answers that differ"),
        _change(results, ("psr", "nsr"), "complete", "Share of answers that carry out every operation"),
    )
    return Claim(f"NSR keeps entropy and pass@{k}, PSR loses both (arXiv 2506.01347)", parts, notes)


def all_wrong_shares(results: Results) -> dict[str, float]:
    """Per level, how often a group of the model before training holds no right answer."""
    size = min(GROUP, results.ks[-1])
    tables = {level: [1.0 - pass_values(run, [size], level) for run in results.runs(BASE)] for level in results.levels}
    return {level: float(np.mean([table.mean() for table in found])) for level, found in tables.items()}


def _all_wrong_claim(results: Results) -> Claim:
    shares = all_wrong_shares(results)
    level = max(shares, key=lambda name: shares[name])
    ks = results.ks
    measures: dict[str, Callable[[Any], Floats]] = {
        "area under pass@k": lambda run: area_values(run, ks, level),
        "pass@1": lambda run: pass_values(run, [1], level),
        f"pass@{ks[-1]}": lambda run: pass_values(run, [ks[-1]], level),
    }
    parts = tuple(
        Part(f"{level}, {title}: NGRPO minus GRPO", compare(results, "ngrpo", "grpo", values), 0.0, True)
        for title, values in measures.items()
    )
    rollouts = [_rollout_mean(results, name, "all_wrong", level) for name in ("grpo", "ngrpo")]
    size = min(GROUP, ks[-1])
    notes = (
        f"On {level.lower()} a group of {size} holds no right answer in {shares[level]:.0%} of the cases before "
        f"training, and over training in {rollouts[0]:.0%} (GRPO) and {rollouts[1]:.0%} (NGRPO). GRPO learns nothing "
        "from those.",
    )
    return Claim("NGRPO beats GRPO where groups are all wrong (arXiv 2509.18851)", parts, notes)


def _displacement_claim(results: Results) -> Claim:
    parts = (
        Part(
            "fall of right answers' log-prob (nats per answer), ResRL minus NSR",
            compare(results, "resrl", "nsr", drop_values),
            0.0,
            False,
        ),
    )
    names = [name for name in ("nsr", "w_reinforce", "resrl") if name in results.names]
    kinds: dict[str, Callable[[Any], Floats]] = {
        "right answers that carry out every operation": lambda run: change_values(run, "complete"),
        "those that stop early and are right all the same": lambda run: change_values(run, "partial"),
    }
    notes = (
        f"Fall: {_listed(results, names, drop_values, '{:.2f}')}.",
        *(f"Mean change of {title}: {_listed(results, names, values, '{:+.2f}')}." for title, values in kinds.items()),
        "ResRL also rewards right answers with weight 0.1, as W-REINFORCE does, so that line is the fairer comparison.",
    )
    return Claim("ResRL displaces right answers less than NSR (arXiv 2605.00380)", parts, notes)


def _listed(results: Results, names: Sequence[str], values: Callable[[Any], Floats], form: str) -> str:
    """`NSR 0.10 (0.08 to 0.12), ...` of the first column of `values`."""
    found = {name: estimate([values(run) for run in results.runs(name)]) for name in names}
    return ", ".join(f"{results.title(name)} {one.text(form)}" for name, one in found.items())


def _rollout_mean(results: Results, name: str, quantity: str, level: str) -> float:
    """Mean over all rollouts and seeds that held problems of the level."""
    found = [
        rollout["levels"][level][quantity]
        for run in results.runs(name)
        for rollout in run["rollouts"]
        if level in rollout["levels"]
    ]
    return float(np.mean(found))


def _change(results: Results, names: Sequence[str], quantity: str, title: str) -> str:
    """First against last tenth of the rollouts."""
    texts = []
    for name in names:
        lines = [[rollout[quantity] for rollout in run["rollouts"]] for run in results.runs(name)]
        tenth = max(1, len(lines[0]) // 10)
        first, last = (float(np.mean([line[part] for line in lines])) for part in (slice(tenth), slice(-tenth, None)))
        texts.append(f"{results.title(name)} {first:.0%} to {last:.0%}")
    return f"{title}, first and last rollouts: {', '.join(texts)}."
