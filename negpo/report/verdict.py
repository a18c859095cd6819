"""From numbers to sentences: did a run forget, did it keep, and by which measured quantities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from negpo.report.results import Experiment, Point, RunResult

FORGOTTEN = 0.05  # forget quality above which a KS test at 5 % no longer tells a model from the retain model
KEPT = 0.9  # share of the target's utility that counts as kept
BROKEN = 0.5  # share below which a model counts as broken
OVERSHOT = 2.0  # multiple of the retain model's loss above which answers are not forgotten but conspicuously unlikely
PARTS = {
    "retain_Q_A_Prob": "probability of retain answers",
    "retain_Q_A_ROUGE": "ROUGE on retain answers",
    "retain_Truth_Ratio": "truth ratio on retain answers",
    "ra_Q_A_Prob_normalised": "probability of real authors",
    "ra_Q_A_ROUGE": "ROUGE on real authors",
    "ra_Truth_Ratio": "truth ratio on real authors",
    "wf_Q_A_Prob_normalised": "probability of world facts",
    "wf_Q_A_ROUGE": "ROUGE on world facts",
    "wf_Truth_Ratio": "truth ratio on world facts",
}


@dataclass(frozen=True)
class Verdict:
    """`tone` is good, warn or bad; `headline` the finding; `why` what was measured."""

    tone: str
    headline: str
    why: str


def judge(experiment: Experiment, run: RunResult) -> Verdict:
    """The verdict on the end of `run` (not on its best moment, which nobody knows without the retain model)."""
    point, start = run.last, experiment.start
    share = point.utility / start.utility if start.utility else math.nan
    forgot, kept = point.forget_quality > FORGOTTEN, share >= KEPT
    goal = experiment.retain.last if experiment.retain else start
    lost = "" if kept else f", and lost {1 - share:.0%} of its utility"
    if math.isnan(share):
        tone, headline = "warn", "No verdict: the target itself has no utility"
    elif share < BROKEN:
        tone, headline = "bad", "Broke the model"
    elif forgot:
        tone, headline = "good" if kept else "warn", f"Forgot{lost or ' and kept'}"
    elif point.forget_logp > goal.forget_logp:
        tone, headline = "bad", f"Did not forget{lost}"
    elif point.forget_logp > OVERSHOT * goal.forget_logp and point.log_truth_ratio < goal.log_truth_ratio:
        tone, headline = "warn", f"Forgot the wording, not the facts{lost}"
    else:
        tone, headline = "bad", f"Overshot{lost}"
    return Verdict(tone, headline, " ".join(_reasons(experiment, run, share, goal)))


def _reasons(experiment: Experiment, run: RunResult, share: float, goal: Point) -> list[str]:
    point, start = run.last, experiment.start
    best = max(run.points, key=lambda item: item.forget_quality)
    peak = f" (peak {best.forget_quality:.2g} at step {best.step})" if best.step != point.step else ""
    reasons = [
        f"Forget quality {point.forget_quality:.2g}{peak}; utility {point.utility:.2f}, {share:.0%} of the target's.",
        f"Forget answers went from {start.forget_logp:.2f} to {point.forget_logp:.2f} nats per token; a model that "
        f"never saw them is at {goal.forget_logp:.2f}. Wrong answers are {_times(point)} as likely as right ones; for "
        f"that model {_times(goal)}, for the target {_times(start)}.",
    ]
    if weights := [entry["forget/grad_weight"] for entry in run.log if "forget/grad_weight" in entry]:
        reasons.append(
            f"Mean gradient weight on forget tokens: {weights[0]:.2f} at the start, {weights[-1]:.2g} at the end."
        )
    if share < KEPT:
        lost = min(PARTS, key=lambda name: point.metrics[name] / max(start.metrics[name], 1e-9))
        reasons.append(f"Largest loss: {PARTS[lost]}, {start.metrics[lost]:.2f} to {point.metrics[lost]:.2f}.")
    return reasons


def _times(point: Point) -> str:
    """Geometric mean truth ratio, as a factor."""
    return f"{math.exp(point.log_truth_ratio):.2g} times"


def crossing(points: Sequence[Point], measure: Callable[[Point], float], level: float) -> float | None:
    """Utility where `measure`, falling along the run, first reaches `level`: linear between evaluations, or None."""
    for before, after in pairwise(points):
        high, low = measure(before), measure(after)
        if high > level >= low:
            part = (high - level) / (high - low)
            return before.utility + part * (after.utility - before.utility)
    return None


def equal_forgetting(experiment: Experiment, run: RunResult) -> dict[str, float | None]:
    """Utility of `run` at the moment its forgetting equals the retain model's, by four measures of forgetting.

    Probability (interpolated on a log scale), ROUGE-L and extraction strength of the forget answers at the level of the
    retain model, and forget quality at 0.05.
    """
    points = experiment.trajectory(run)
    quality = crossing(points, lambda point: -math.log10(max(point.forget_quality, 1e-300)), -math.log10(FORGOTTEN))
    if experiment.retain is None:
        return {"forget quality 0.05": quality}
    goal = experiment.retain.last
    return {
        "answer probability": crossing(points, _log_probability, _log_probability(goal)),
        **{
            title: crossing(points, _metric(name), goal.metrics[name])
            for title, name in (("answer ROUGE-L", "forget_Q_A_ROUGE"), ("extraction strength", "extraction_strength"))
            if name in goal.metrics
        },
        "forget quality 0.05": quality,
    }


def _metric(name: str) -> Callable[[Point], float]:
    return lambda point: point.metrics[name]


def _log_probability(point: Point) -> float:
    return math.log(max(point.metrics["forget_Q_A_Prob"], 1e-30))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest."""
    return fmean(values), min(values), max(values)
