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
    reference = experiment.retain.last.forget_logp if experiment.retain else math.nan
    if forgot and kept:
        tone, headline = "good", "Forgot and kept"
    elif math.isnan(share):
        tone, headline = "warn", "No verdict: the target itself has no utility"
    elif share < BROKEN:
        tone, headline = "bad", "Broke the model"
    elif forgot:
        tone, headline = "warn", f"Forgot, and lost {1 - share:.0%} of its utility"
    elif point.forget_logp > reference:
        tone, headline = "bad", "Did not forget"
    elif kept:
        tone, headline = "warn", "Overshot: the answers are now suspiciously unlikely"
    else:
        tone, headline = "bad", f"Overshot, and lost {1 - share:.0%} of its utility"
    return Verdict(tone, headline, " ".join(_reasons(experiment, run, share, reference)))


def _reasons(experiment: Experiment, run: RunResult, share: float, reference: float) -> list[str]:
    point, start = run.last, experiment.start
    best = max(run.points, key=lambda item: item.forget_quality)
    peak = f" (peak {best.forget_quality:.2g} at step {best.step})" if best.step != point.step else ""
    reasons = [
        f"Forget quality {point.forget_quality:.2g}{peak}; utility {point.utility:.2f}, {share:.0%} of the target's.",
        f"Forget answers went from {start.forget_logp:.2f} to {point.forget_logp:.2f} nats per token; a model that "
        f"never saw them is at {reference:.2f}.",
    ]
    if weights := [entry["forget/grad_weight"] for entry in run.log if "forget/grad_weight" in entry]:
        reasons.append(
            f"Mean gradient weight on forget tokens: {weights[0]:.2f} at the start, {weights[-1]:.2g} at the end."
        )
    if share < KEPT:
        lost = min(PARTS, key=lambda name: point.metrics[name] / max(start.metrics[name], 1e-9))
        reasons.append(f"Largest loss: {PARTS[lost]}, {start.metrics[lost]:.2f} to {point.metrics[lost]:.2f}.")
    return reasons


def crossing(points: Sequence[Point], measure: Callable[[Point], float], level: float) -> float | None:
    """Utility where `measure`, falling along the run, first reaches `level`: linear between evaluations, or None."""
    for before, after in pairwise(points):
        high, low = measure(before), measure(after)
        if high > level >= low:
            part = (high - level) / (high - low)
            return before.utility + part * (after.utility - before.utility)
    return None


def equal_forgetting(experiment: Experiment, run: RunResult) -> dict[str, float | None]:
    """Utility of `run` at the moment its forgetting equals the retain model's, by three measures of forgetting.

    Probability and log-likelihood of the forget answers at the retain model's level, and forget quality at 0.05.
    Probabilities are interpolated on a log scale.
    """
    points = experiment.trajectory(run)
    quality = crossing(points, lambda point: -math.log10(max(point.forget_quality, 1e-300)), -math.log10(FORGOTTEN))
    if experiment.retain is None:
        return {"forget quality 0.05": quality}
    goal = experiment.retain.last
    return {
        "answer probability": crossing(points, _log_probability, _log_probability(goal)),
        "answer log-likelihood": crossing(points, lambda point: point.forget_logp, goal.forget_logp),
        "forget quality 0.05": quality,
    }


def _log_probability(point: Point) -> float:
    return math.log(max(point.metrics["forget_Q_A_Prob"], 1e-30))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest."""
    return fmean(values), min(values), max(values)
