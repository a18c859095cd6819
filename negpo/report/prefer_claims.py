"""The claims that `negpo demo prefer` is about, each with its numbers, its intervals and the measured reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from negpo.eval.passk import Interval
from negpo.lab.dispreference_lab import IMPOLITE
from negpo.report.prefer_results import Method, Table, drift_gap, gap, level

MARGIN = 0.02  # harm rates, or accuracies, that differ by less count as equal
TONES = {"good": "Holds", "bad": "Does not hold", "warn": "Not decided"}


@dataclass(frozen=True)
class Claim:
    """`tone` is good (holds), bad (does not) or warn (the interval allows both); `why` what was measured."""

    title: str
    tone: str
    why: str

    @property
    def headline(self) -> str:
        return TONES[self.tone]


def claims(methods: dict[str, Method]) -> list[Claim]:
    """Every claim whose methods were run."""
    found = []
    if {"redi", "sft"} <= methods.keys():
        found.append(beats_sft(methods["redi"], methods["sft"]))
    if {"redi", "redi_symmetric"} <= methods.keys():
        found.append(stays_stable(methods["redi"], methods["redi_symmetric"]))
    if {"d2o", "dpo_noisy"} <= methods.keys():
        found.append(as_harmless(methods["d2o"], methods["dpo_noisy"]))
    for other in ("ga", "npo"):
        if {"d2o", other} <= methods.keys():
            found.append(closer_than(methods["d2o"], methods[other]))
    return found


def shown(found: Interval, sign: str = "+") -> str:
    """`+0.012 (−0.003 to +0.027)`."""
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _tone(found: Interval, above: float = 0.0) -> str:
    return "good" if found.low > above else "bad" if found.high <= above else "warn"


def _ends(method: Method) -> tuple[Table, Table]:
    """Right answers at the first and at the last point."""
    return method.table("right", 0), method.table("right")


def beats_sft(redi: Method, sft: Method) -> Claim:
    difference = gap(redi.table("right"), sft.table("right"))
    why = (
        f"Accuracy {shown(level(redi.table('right')), '')} against {shown(level(sft.table('right')), '')}; difference "
        f"{shown(difference)}. {_styles(redi)} {_styles(sft)}"
    )
    return Claim("REDI with alpha 0.8 beats SFT on right traces", _tone(difference), why)


def stays_stable(redi: Method, symmetric: Method) -> Claim:
    """Alpha 1 loses accuracy against its own start or best point, alpha 0.8 does not, at the same learning rate."""
    falls, holds = _fall(symmetric), _fall(redi)
    difference = gap(redi.table("right"), symmetric.table("right"))
    stable = holds.low > -MARGIN
    tone = "good" if difference.low > 0 and falls.high < 0 and stable else "bad" if difference.high <= 0 else "warn"
    why = (
        f"From the best point of its run to the end, accuracy changes by {shown(falls)} with alpha 1 and by "
        f"{shown(holds)} with alpha 0.8; at the end they differ by {shown(difference)}. "
        f"{_likelihoods(symmetric)} {_likelihoods(redi)} {_styles(symmetric)}"
    )
    return Claim("REDI with alpha 0.8 stays stable where alpha 1 degrades", tone, why)


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


def as_harmless(d2o: Method, dpo: Method) -> Claim:
    difference = gap(d2o.table("harmful", group=IMPOLITE), dpo.table("harmful", group=IMPOLITE))
    start = level(d2o.table("harmful", 0, IMPOLITE))
    tone = "good" if difference.high < MARGIN else "bad" if difference.low > MARGIN else "warn"
    rates = [level(method.table("harmful", group=IMPOLITE)) for method in (d2o, dpo)]
    why = (
        f"Harm rate {start.value:.3f} before, {shown(rates[0], '')} after D2O and {shown(rates[1], '')} after DPO; "
        f"difference {shown(difference)}, counted as no worse below {MARGIN}. {_help(d2o)} {_help(dpo)}"
    )
    return Claim("D2O lowers the harm rate at least as far as DPO", tone, why)


def _help(method: Method) -> str:
    before, after = (level(table).value for table in _ends(method))
    return f"{method.title}: right answers {before:.3f} to {after:.3f}."


def closer_than(d2o: Method, other: Method) -> Claim:
    """D2O's accuracy has moved less from the reference's; the harm rate and the divergence stand beside it."""
    difference = drift_gap(other.table("right"), d2o.table("right"), d2o.table("right", 0))
    why = (
        f"Distance of accuracy from the reference's: {other.title} exceeds D2O by {shown(difference)}. {_help(d2o)} "
        f"{_help(other)} KL to the reference, nats per token of its own answers: D2O "
        f"{shown(level(d2o.table('kl')), '')}, {other.title} {shown(level(other.table('kl')), '')}. Harm rate after "
        f"{other.title}: {shown(level(other.table('harmful', group=IMPOLITE)), '')}."
    )
    return Claim(f"D2O stays closer to the reference's helpfulness than {other.title}", _tone(difference), why)
