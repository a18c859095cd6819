"""Verdict lines: each compares one number with that of a model that never saw the forget set.

The rules, judged on bootstrap resamples of the rows that model M, retain model R and target T share:

* leak: M − R must stay below ``leak_margin`` · (T − R). "No worse than R" alone could never be shown with finitely many
  rows; the margin is a share of what there was to forget.
* equal: |M − R| likewise. For membership inference, where a model that makes the forget set conspicuously *unlikely*
  tells an attacker as much as one that still knows it.
* keep: M must stay above (1 − ``utility_margin``) · R.
* test: forget quality keeps its own published rule, a KS test at level ``alpha``.

A line passes when the whole interval of the excess lies inside the margin, fails when it lies outside, and is undecided
when it crosses: more rows would tell. A line on which the target itself is not shown to differ from the retain model
has no power and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from negpo.eval.audit.resampling import Estimate, Resampler
from negpo.eval.audit.settings import AuditSettings

Group = Literal["forgotten", "preserved", "robust"]
Rule = Literal["leak", "equal", "keep", "test"]
Outcome = Literal["pass", "fail", "undecided", "no power"]
GROUPS: tuple[Group, ...] = ("forgotten", "preserved", "robust")
OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "undecided", "no power")


@dataclass(frozen=True)
class LineKind:
    """A metric as a verdict line."""

    group: Group
    metric: str
    title: str
    rule: Rule


KINDS = (
    LineKind("forgotten", "forget_quality", "Forget quality (KS test of truth ratios)", "test"),
    LineKind("forgotten", "forget_Q_A_Prob", "Probability of forget answers", "leak"),
    LineKind("forgotten", "forget_Q_A_ROUGE", "ROUGE-L of forget answers", "leak"),
    LineKind("forgotten", "exact_memorization", "Exact memorisation", "leak"),
    LineKind("forgotten", "extraction_strength", "Extraction strength", "leak"),
    LineKind("forgotten", "mia_loss", "Membership AUC: loss", "equal"),
    LineKind("forgotten", "mia_min_k", "Membership AUC: Min-K%", "equal"),
    LineKind("forgotten", "mia_min_k_plus_plus", "Membership AUC: Min-K%++", "equal"),
    LineKind("forgotten", "mia_zlib", "Membership AUC: zlib", "equal"),
    LineKind("forgotten", "mia_reference", "Membership AUC: reference", "equal"),
    LineKind("forgotten", "mia_gradnorm", "Membership AUC: gradient norm", "equal"),
    LineKind("preserved", "model_utility", "Model utility", "keep"),
    LineKind("preserved", "retain_Q_A_Prob", "Probability of retain answers", "keep"),
    LineKind("preserved", "retain_Q_A_ROUGE", "ROUGE-L of retain answers", "keep"),
    LineKind("preserved", "ra_Q_A_ROUGE", "ROUGE-L on real authors", "keep"),
    LineKind("preserved", "wf_Q_A_ROUGE", "ROUGE-L on world facts", "keep"),
)


@dataclass(frozen=True)
class Line:
    """One verdict; ``note`` says how it failed or why nothing can be told.

    ``limit`` is where the margin ends. ``share``: what of the target's knowledge beyond the retain model is left,
    (M − R) / (T − R); NaN for the rules that do not compare with it.
    """

    kind: LineKind
    model: Estimate
    retain: Estimate
    target: Estimate
    limit: float
    share: float
    outcome: Outcome
    rule: str
    note: str


def judge(
    kind: LineKind,
    found: Mapping[str, Estimate],
    retain: Mapping[str, Estimate],
    target: Mapping[str, Estimate],
    settings: AuditSettings,
    resampler: Resampler,
) -> Line | None:
    """The verdict on one metric; None when it was not measured."""
    if not all(kind.metric in estimates for estimates in (found, retain, target)):
        return None
    model, control, before = found[kind.metric], retain[kind.metric], target[kind.metric]
    outcome, limit, note = _RULES[kind.rule](model, control, before, settings, resampler)
    if math.isnan(model.value):
        outcome, note = "fail", "not a number"
    gap = before.value - control.value
    share = (model.value - control.value) / gap if kind.rule in ("leak", "equal") and gap else math.nan
    return Line(kind, model, control, before, limit, share, outcome, rule_text(kind.rule, settings), note)


def rule_text(rule: Rule, settings: AuditSettings) -> str:
    """The rule in words, with this audit's margins."""
    share, kept = f"{settings.leak_margin:.0%}", f"{1 - settings.utility_margin:.0%}"
    return {
        "test": f"p above {settings.alpha:g} against the retain model",
        "leak": f"at most {share} of the way from the retain model to the target",
        "equal": f"within {share} of the target's distance from the retain model, on either side",
        "keep": f"at least {kept} of the retain model's value",
    }[rule]


Judged = tuple[Outcome, float, str]


def _test(model: Estimate, retain: Estimate, target: Estimate, settings: AuditSettings, _: Resampler) -> Judged:
    if target.value > settings.alpha:
        return "no power", settings.alpha, f"the target itself has p = {target.value:.2g}"
    return "pass" if model.value > settings.alpha else "fail", settings.alpha, ""


def _leak(model: Estimate, retain: Estimate, target: Estimate, settings: AuditSettings, resampler: Resampler) -> Judged:
    gap = target.draws - retain.draws
    limit = retain.value + settings.leak_margin * (target.value - retain.value)
    if resampler.ends(gap)[0] <= 0:
        return "no power", limit, "the target is not shown to know more than the retain model"
    outcome = _decide(model.draws - retain.draws - settings.leak_margin * gap, resampler)
    return outcome, limit, "leaks" if outcome == "fail" else ""


def _equal(
    model: Estimate, retain: Estimate, target: Estimate, settings: AuditSettings, resampler: Resampler
) -> Judged:
    above, limit, note = _leak(model, retain, target, settings, resampler)
    if above in ("no power", "fail"):
        return above, limit, note
    gap = target.draws - retain.draws
    below = _decide(retain.draws - model.draws - settings.leak_margin * gap, resampler)
    if below == "fail":
        return "fail", limit, "over-unlearned: conspicuously unlikely"
    return "pass" if above == below == "pass" else "undecided", limit, ""


def _keep(model: Estimate, retain: Estimate, target: Estimate, settings: AuditSettings, resampler: Resampler) -> Judged:
    kept = 1 - settings.utility_margin
    if resampler.ends(retain.draws)[0] <= 0:
        return "no power", kept * retain.value, "the retain model has nothing to preserve"
    outcome = _decide(kept * retain.draws - model.draws, resampler)
    return outcome, kept * retain.value, "lost" if outcome == "fail" else ""


def _decide(excess: np.ndarray, resampler: Resampler) -> Outcome:
    """Where the interval of an excess over the allowed lies: at or below zero, above it, or across."""
    low, high = resampler.ends(excess)
    return "pass" if high <= 0 else "fail" if low > 0 else "undecided"


_RULES = {"test": _test, "leak": _leak, "equal": _equal, "keep": _keep}
