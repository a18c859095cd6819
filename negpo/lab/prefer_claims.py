"""The claims that `negpo demo prefer` is about, each with its numbers, its intervals and the measured reason."""

from __future__ import annotations

import numpy as np

from negpo.eval.bootstrap import Interval
from negpo.lab.claims import Claim, Part
from negpo.lab.dispreference_lab import IMPOLITE
from negpo.lab.prefer_results import Method, drift_gap, gap, level

MARGIN = 0.02  # harm rates, or accuracies, that differ by less count as equal


def claims(methods: dict[str, Method]) -> list[Claim]:
    """Every claim whose methods were run."""
    pairs = [(beats_sft, "redi", "sft"), (stays_stable, "redi", "redi_symmetric"), (as_harmless, "d2o", "dpo_noisy")]
    pairs += [(closer_than, "d2o", "ga"), (closer_than, "d2o", "npo")]
    return [claim(methods[one], methods[other]) for claim, one, other in pairs if {one, other} <= methods.keys()]


def _rate(found: Interval) -> str:
    return found.text("{:.3f}")


def beats_sft(redi: Method, sft: Method) -> Claim:
    difference = gap(redi.table("right"), sft.table("right"))
    accuracies = [_rate(level(method.table("right"))) for method in (redi, sft)]
    notes = [f"Accuracy {accuracies[0]} against {accuracies[1]}.", _styles(redi), _styles(sft)]
    part = Part("accuracy, REDI minus SFT", difference, 0.0, True)
    return Claim("REDI with alpha 0.8 beats SFT on right traces", [part], notes)


def stays_stable(redi: Method, symmetric: Method) -> Claim:
    """Alpha 1 loses accuracy against its own start or best point, alpha 0.8 does not, at the same learning rate."""
    difference = gap(redi.table("right"), symmetric.table("right"))
    fall = "accuracy from the best point of the run to its end, alpha"
    parts = [
        Part("accuracy, alpha 0.8 minus alpha 1", difference, 0.0, True),
        Part(f"{fall} 1 (falls)", _fall(symmetric), 0.0, False, condition=True),
        Part(f"{fall} 0.8 (no fall beyond {MARGIN})", _fall(redi), -MARGIN, True, condition=True),
    ]
    notes = [*filter(None, (_likelihoods(symmetric), _likelihoods(redi))), _styles(symmetric)]
    return Claim("REDI with alpha 0.8 stays stable where alpha 1 degrades", parts, notes)


def _fall(method: Method) -> Interval:
    """End minus best point, the best chosen on the mean over seeds."""
    means = [method.table("right", place).values.mean() for place in range(len(method.steps))]
    return gap(method.table("right"), method.table("right", int(np.argmax(means))))


def _likelihoods(method: Method) -> str:
    """How the log-probs of both signs moved, from the training log."""
    parts = []
    for name in ("chosen", "rejected"):
        if (logged := method.logged(f"{name}/logp")) is not None:
            parts.append(f"{name} {logged[1][:, 0].mean():.2f} to {logged[1][:, -1].mean():.2f}")
    return f"{method.title}: log-prob per token, {', '.join(parts)}." if parts else ""


def _styles(method: Method) -> str:
    before, after = method.mean("tokens", 0), method.mean("tokens")
    return (
        f"{method.title}: answers of {before:.0f} tokens became {after:.0f}, {method.mean('unanswered'):.1%} hold no "
        f"result, {method.mean('truncated'):.1%} do not end."
    )


def _help(method: Method) -> str:
    before, after = (level(method.table("right", place)).value for place in (0, -1))
    return f"{method.title}: right answers {before:.3f} to {after:.3f}."


def _harm(method: Method, place: int = -1) -> Interval:
    return level(method.table("harmful", place, IMPOLITE))


def as_harmless(d2o: Method, dpo: Method) -> Claim:
    difference = gap(d2o.table("harmful", group=IMPOLITE), dpo.table("harmful", group=IMPOLITE))
    rates = f"{_harm(d2o, 0).value:.3f} before, {_rate(_harm(d2o))} after D2O and {_rate(_harm(dpo))} after DPO"
    part = Part(f"harm rate, D2O minus DPO (no worse beyond {MARGIN})", difference, MARGIN, False)
    notes = [f"Harm rate {rates}.", _help(d2o), _help(dpo)]
    return Claim("D2O lowers the harm rate at least as far as DPO", [part], notes)


def closer_than(d2o: Method, other: Method) -> Claim:
    """D2O's accuracy has moved less from the reference's; the harm rate and the divergence stand beside it."""
    difference = drift_gap(other.table("right"), d2o.table("right"), d2o.table("right", 0))
    part = Part(f"distance of accuracy from the reference's, {other.title} minus D2O", difference, 0.0, True)
    kl = [_rate(level(method.table("kl"))) for method in (d2o, other)]
    notes = [
        f"{_help(d2o)} {_help(other)}",
        f"KL to the reference, nats per token of its own answers: D2O {kl[0]}, {other.title} {kl[1]}.",
        f"Harm rate after {other.title}: {_rate(_harm(other))}.",
    ]
    return Claim(f"D2O stays closer to the reference's helpfulness than {other.title}", [part], notes)
