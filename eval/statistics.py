"""Statistics that evaluations share: rank AUC, the exact Kolmogorov-Smirnov test, standard errors, intervals.

Pure functions: array-likes in, float64 out. NaN in the input gives NaN, unless a function says otherwise.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def vector(values: ArrayLike, name: str, *, empty: bool = False) -> np.ndarray:
    """``values`` as float64 (N,). ValueError when it has another rank, or is empty and must not be."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {array.shape}")
    if not empty and array.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to average or compare")
    return array


def roc_auc(negative: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive's score exceeds a negative's, ties counting one half.

    Membership inference passes the forget scores as ``negative`` (label 0) and the holdout scores as ``positive``
    (label 1). Infinite scores are ordinary ranks. Raises ValueError when one side is empty.
    """
    low, high = vector(negative, "negative scores"), vector(positive, "positive scores")
    if np.isnan(low).any() or np.isnan(high).any():
        return math.nan
    ranks = stats.rankdata(np.concatenate([low, high]))
    wins = ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(wins / (len(low) * len(high)))


def auc_interval(negative: ArrayLike, positive: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of :func:`roc_auc`: DeLong's variance, normal on the logit scale, so inside (0, 1).

    The variance needs two values a side, else the interval is (0, 1). It vanishes at an AUC of 0 or 1, where the normal
    interval would be a point; there the far end is (alpha/2)^(1/n), Clopper-Pearson's for n = the smaller side.
    DeLong et al., Biometrics 44 (1988). NaN in the input gives NaN.
    """
    low, high = vector(negative, "negative scores"), vector(positive, "positive scores")
    auc, n, m = roc_auc(low, high), len(low), len(high)
    if math.isnan(auc):
        return math.nan, math.nan
    if min(n, m) < 2:
        return 0.0, 1.0
    if auc in (0.0, 1.0):
        reach = ((1 - confidence) / 2) ** (1 / min(n, m))
        return (reach, 1.0) if auc else (0.0, 1 - reach)
    # placements: how often each value beats the other side, by midranks within the pooled and the own sample
    ranks = stats.rankdata(np.concatenate([low, high]))
    of_low = 1 - (ranks[:n] - stats.rankdata(low)) / m
    of_high = (ranks[n:] - stats.rankdata(high)) / n
    error = math.sqrt(of_low.var(ddof=1) / n + of_high.var(ddof=1) / m)
    centre, reach = math.log(auc / (1 - auc)), stats.norm.isf((1 - confidence) / 2) * error / (auc * (1 - auc))
    low_end, high_end = (1 / (1 + math.exp(-max(-700.0, min(700.0, end)))) for end in (centre - reach, centre + reach))
    return low_end, high_end


def tpr_at_fpr(negative: ArrayLike, positive: ArrayLike, fpr: float) -> float:
    """Largest share of positives above a threshold that at most a share ``fpr`` of the negatives exceeds.

    With fewer than 1/fpr negatives no negative may exceed it. Ties are never split. NaN in the input gives NaN.
    """
    low, high = vector(negative, "negative scores"), vector(positive, "positive scores")
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr is a share of the negatives, between 0 and 1, not {fpr}")
    if np.isnan(low).any() or np.isnan(high).any():
        return math.nan
    allowed = int(fpr * len(low) + 1e-9)  # 0.01 * 300 is a hair below 3 in some orders of evaluation
    threshold = -math.inf if allowed == len(low) else np.sort(low)[len(low) - 1 - allowed]
    return float((high > threshold).mean()) if allowed < len(low) else 1.0


def binomial_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson (exact) interval of a share."""
    result = stats.binomtest(int(successes), int(n)).proportion_ci(confidence_level=confidence, method="exact")
    return float(result.low), float(result.high)


@dataclass(frozen=True)
class KSResult:
    """Two-sample Kolmogorov-Smirnov test. ``floor``: the samples do not overlap, no smaller p exists at these sizes."""

    p_value: float
    log10_p: float
    statistic: float
    n: int
    n_reference: int
    floor: bool


def ks_test(sample: ArrayLike, reference: ArrayLike) -> KSResult:
    """Two-sided test that two samples share a distribution, exact up to 10 000 values, asymptotic above (as scipy).

    ``log10_p`` stays finite at the floor even where the p-value underflows to 0.
    """
    left, right = vector(sample, "the sample"), vector(reference, "the reference sample")
    n, m = len(left), len(right)
    if np.isnan(left).any() or np.isnan(right).any():
        return KSResult(math.nan, math.nan, math.nan, n, m, False)
    result = stats.ks_2samp(left, right)
    p_value, statistic = float(result.pvalue), float(result.statistic)
    floor = statistic == 1.0
    if p_value > 0:
        log10_p = math.log10(p_value)
    elif floor:  # 2 of the C(n + m, n) orderings separate the samples
        log_orderings = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
        log10_p = (math.log(2) - log_orderings) / math.log(10)
    else:
        log10_p = -math.inf
    return KSResult(p_value, log10_p, statistic, n, m, floor)


def mean_stderr(values: ArrayLike) -> float:
    """Standard error of a mean: sample standard deviation (ddof 1) over sqrt(N); NaN for a single value."""
    array = vector(values, "values")
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def weighted_mean(values: ArrayLike, sizes: ArrayLike) -> float:
    """Mean of group values weighted by group size (lm-eval's ``weight_by_size``)."""
    array, weights = _grouped(values, sizes)
    return float((array * weights).sum() / weights.sum())


def pooled_stderr(stderrs: ArrayLike, sizes: ArrayLike) -> float:
    """Standard error of a size-weighted group mean from its parts' standard errors (lm-eval's pooled formula)."""
    errors, weights = _grouped(stderrs, sizes)
    variance = ((weights - 1) * errors**2 * weights).sum() / (weights.sum() - len(weights))
    return float(math.sqrt(variance / weights.sum()))


def _grouped(values: ArrayLike, sizes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    array, weights = vector(values, "values"), vector(sizes, "sizes")
    if len(array) != len(weights):
        raise ValueError(f"{len(array)} values but {len(weights)} sizes")
    return array, weights
