"""Numbers about unlearning numbers: aggregates, matched utility, faithfulness and robustness of metrics, flips.

Definitions of OpenUnlearning (arXiv 2506.12618, sec. 4 and app. F) and of UWC (arXiv 2406.09179). Scores lie in [0, 1]
and a larger one means more knowledge, unless said otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from negpo.eval.statistics import roc_auc, vector

EPS = 1e-12


def harmonic(values: ArrayLike) -> float:
    """Harmonic mean of non-negative numbers; 0 when one of them is 0."""
    found = vector(values, "values")
    if (found < 0).any():
        raise ValueError(f"a harmonic mean needs numbers >= 0, the smallest is {found.min()}")
    return 0.0 if (found <= 0).any() else float(len(found) / (1 / found).sum())


def memorisation_score(es: float, em: float, paraphrase_probability: float, truth_ratio: float) -> float:
    """``HM(1 - ES, 1 - EM, 1 - ParaProb, 1 - TR)``: *less* memorised is larger (OpenUnlearning app. F.1).

    ``truth_ratio`` is p_para / (p_para + p_pert), the form in which more knowledge is larger.
    """
    return harmonic([1 - es, 1 - em, 1 - paraphrase_probability, 1 - truth_ratio])


def privacy_score(auc: ArrayLike, retain_auc: ArrayLike) -> float:
    """Harmonic mean over attacks of ``1 - min(|AUC - AUC_retain| / AUC_retain, 1)``."""
    found, reference = vector(auc, "auc"), vector(retain_auc, "retain_auc")
    return harmonic(1 - np.minimum(np.abs(found - reference) / reference, 1))


@dataclass(frozen=True)
class Faithfulness:
    """``auc`` of a metric between models that know and do not, and the threshold with the best accuracy."""

    auc: float
    threshold: float
    accuracy: float


def faithfulness(positive: ArrayLike, negative: ArrayLike) -> Faithfulness:
    """How well a metric separates models that know (P) from models that do not (N).

    Knowledge counts as present from the threshold on; among equally good thresholds the smallest is returned. Raises
    ValueError for a pool of one model: an AUC of one against many says nothing about the metric.
    """
    high, low = vector(positive, "positive"), vector(negative, "negative")
    for name, pool in (("positive", high), ("negative", low)):
        if len(pool) < 2:
            raise ValueError(f"the {name} pool has {len(pool)} model; at least 2 are needed (20 for a usable interval)")
    candidates = np.unique(np.concatenate([high, low]))
    n = len(high) + len(low)
    accuracies = [((high >= t).sum() + (low < t).sum()) / n for t in candidates]
    best = int(np.argmax(accuracies))
    return Faithfulness(roc_auc(low, high), float(candidates[best]), float(accuracies[best]))


def quantisation_robustness(before: ArrayLike, after: ArrayLike, *, how: str = "symmetric") -> np.ndarray:
    """Q per model for a metric before and after quantisation, in [0, 1].

    ``symmetric``: ``1 - |a - b| / (|a| + |b|)``. ``rise``: ``min(before / after, 1)``, which punishes knowledge that
    comes back. ``printed``: the paper's formula as printed, ``min(after / before, 1)``: it punishes a fall and
    forgives the recovery it is meant to punish. 0/0 is 1: nothing changed.
    """
    a, b = vector(before, "before"), vector(after, "after")
    if how == "symmetric":
        total = np.abs(a) + np.abs(b)
        return np.where(total > EPS, 1 - np.abs(a - b) / np.maximum(total, EPS), 1.0)
    if how not in ("rise", "printed"):
        raise ValueError(f"how is {how!r}; choose symmetric, rise or printed")
    top, bottom = (a, b) if how == "rise" else (b, a)
    return np.where(bottom > EPS, np.minimum(top / np.maximum(bottom, EPS), 1), 1.0)


def relearning_robustness(
    before: ArrayLike, after: ArrayLike, retain_before: float, retain_after: float, *, how: str = "fast"
) -> np.ndarray:
    """R per model: unlearned models must not relearn faster than the retain model does.

    ``fast``: ``min(D_retain / D_unlearned, 1)``, 1 where the unlearned model's score does not rise (ours; the paper
    does not say). ``symmetric``: ``1 - |D_u - D_r| / (|D_u| + |D_r|)``.
    """
    rise = vector(after, "after") - vector(before, "before")
    retain = retain_after - retain_before
    if how == "symmetric":
        total = np.abs(rise) + abs(retain)
        return np.where(total > EPS, 1 - np.abs(rise - retain) / np.maximum(total, EPS), 1.0)
    if how != "fast":
        raise ValueError(f"how is {how!r}; choose fast or symmetric")
    return np.where(rise > EPS, np.clip(retain / np.where(rise > EPS, rise, 1.0), 0, 1), 1.0)


def smallest_mixing_ratio(
    ratios: Sequence[float], utilities: Sequence[float], target_utility: float, *, level: float = 0.95
) -> float | None:
    """The smallest share of the original model whose mixture keeps ``level`` of the target's utility, or None."""
    good = [r for r, u in zip(ratios, utilities, strict=True) if u >= level * target_utility]
    return min(good) if good else None


@dataclass(frozen=True)
class Flips:
    """``negative``: right before and wrong after; ``positive``: the reverse; shares of all items. ``p_value``: exact
    two-sided McNemar test that both are equally likely."""

    negative: float
    positive: float
    p_value: float

    @property
    def accuracy_change(self) -> float:
        return self.positive - self.negative


def flips(before: ArrayLike, after: ArrayLike) -> Flips:
    """Paired flips of right (1) and wrong (0) answers to the same items. Equal accuracy can hide many of them."""
    from scipy.stats import binomtest

    old, new = vector(before, "before").astype(bool), vector(after, "after").astype(bool)
    if len(old) != len(new):
        raise ValueError(f"before has {len(old)} items and after {len(new)}; flips compare the same items")
    lost, won = int((old & ~new).sum()), int((~old & new).sum())
    p_value = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    return Flips(lost / len(old), won / len(old), float(p_value))


@dataclass(frozen=True)
class YesNo:
    """``accuracy``, share of yes, ``balanced`` accuracy, and ``gap`` = mean p(yes | true) - mean p(yes | false)."""

    accuracy: float
    yes_rate: float
    balanced: float
    gap: float


def yes_no(p_yes: ArrayLike, true: ArrayLike) -> YesNo:
    """Answers to "Is it true that ...?" from p(yes) normalised over yes and no.

    A model that always says no scores 50 % and looks ignorant; a gap above 0 shows that it knows.
    """
    p, truth = vector(p_yes, "p_yes"), vector(true, "true").astype(bool)
    if truth.all() or not truth.any():
        raise ValueError("the statements are all true or all false; a yes/no probe needs both kinds")
    said = p >= 0.5
    balanced = (said[truth].mean() + (~said[~truth]).mean()) / 2
    gap = p[truth].mean() - p[~truth].mean()
    return YesNo(float((said == truth).mean()), float(said.mean()), float(balanced), float(gap))
