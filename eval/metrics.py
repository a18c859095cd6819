"""The measures of unlearning and reasoning evaluations as pure functions: arrays in, float64 out.

Losses ("nll") are length-normalised negative log-likelihoods in nats: the sum over an answer's tokens by their number.
Formulas follow locuslab/open-unlearning unless a function names another source (OpenUnlearning, arXiv 2506.12618; TOFU,
arXiv 2401.06121; MUSE, arXiv 2407.06460). NaN goes through; averages over nothing raise ValueError.
"""

import math
import zlib
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from negpo.eval.statistics import ks_test, vector

EPS = 1e-10  # open-unlearning adds it to denominators; it decides the value once a model has collapsed
MIN_VARIANCE = 1e-6  # floor of the vocabulary variance in min-k++

TruthRatio = Literal["wrong_over_correct", "correct_share"]
Aggregation = Literal["closer_to_1_better", "true_better", "prob_mean"]


def probability(nll: ArrayLike) -> np.ndarray:
    """exp(−nll), elementwise: the geometric mean probability of an answer's tokens."""
    return np.exp(-np.asarray(nll, dtype=np.float64))


def normalised_probability(correct_nll: ArrayLike, wrong_nll: ArrayLike, *, eps: float = EPS) -> np.ndarray:
    """p / (p + Σ_j q_j + eps) from losses (N,) and (N, J): the correct answer's share among the options, (N,).

    ``eps=0`` is the original TOFU evaluator's.
    """
    correct, wrong = _correct_and_wrong(correct_nll, wrong_nll)
    p = np.exp(-correct)
    return p / (p + np.exp(-wrong).sum(axis=1) + eps)


def truth_ratio(correct_nll: ArrayLike, wrong_nll: ArrayLike, *, kind: TruthRatio = "wrong_over_correct") -> np.ndarray:
    """Truth ratio per row, (N,), from losses of the correct answer (N,) and of J wrong answers (N, J).

    With C = exp(−correct) and W = exp(−mean_j wrong_j), the geometric mean over wrong answers: W / (C + 1e-10), or for
    ``kind="correct_share"`` C / (C + W + 1e-10), which is what the ``prob_mean`` aggregation averages.
    """
    correct, wrong = _correct_and_wrong(correct_nll, wrong_nll)
    c, w = np.exp(-correct), np.exp(-wrong.mean(axis=1))
    if kind == "wrong_over_correct":
        return w / (c + EPS)
    if kind == "correct_share":
        return c / (c + w + EPS)
    raise ValueError(f"kind must be 'wrong_over_correct' or 'correct_share', not {kind!r}")


def aggregate_truth_ratio(ratio: ArrayLike, how: Aggregation) -> float:
    """One number from per-row truth ratios (N,).

    ``closer_to_1_better``: mean min(r, 1/(r + 1e-10)), for the forget set, where a model that never saw it is near 1;
    ``true_better``: mean max(0, 1 − r), for everything that must stay known;
    ``prob_mean``: plain mean, for ratios of kind ``correct_share``.
    """
    r = vector(ratio, "ratio")
    if how == "closer_to_1_better":
        return float(np.minimum(r, 1 / (r + EPS)).mean())
    if how == "true_better":
        return float(np.maximum(0.0, 1 - r).mean())
    if how == "prob_mean":
        return float(r.mean())
    raise ValueError(f"how must be 'closer_to_1_better', 'true_better' or 'prob_mean', not {how!r}")


def forget_quality(ratio: ArrayLike, reference_ratio: ArrayLike) -> float:
    """p-value of the two-sided two-sample KS test between truth ratios of the model and of the retain model.

    The arrays may differ in length. Use :func:`negpo.eval.statistics.ks_test` for the distance, log p and floor flag.
    """
    return ks_test(ratio, reference_ratio).p_value


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of (nine) non-negative values. A zero gives 0.0, a negative value raises ValueError."""
    array = vector(values, "values")
    if (array < 0).any():
        raise ValueError(f"the harmonic mean needs values >= 0, found {array.min()}")
    if np.isnan(array).any():
        return math.nan
    if (array == 0).any():
        return 0.0
    return float(len(array) / (1 / array).sum())


def original_truth_ratio(
    correct_nll: ArrayLike, wrong_nll: ArrayLike, *, mean: Literal["geometric", "arithmetic"] = "geometric"
) -> np.ndarray:
    """locuslab/tofu's ratio of correct to wrong, C / W without eps, (N,).

    ``geometric`` is its ``aggregate_eval_stat.py`` (W = exp(−mean_j wrong_j)), ``arithmetic`` its ``utils.py``
    (W = mean_j exp(−wrong_j)); the two give different published model utilities.
    """
    correct, wrong = _correct_and_wrong(correct_nll, wrong_nll)
    if mean == "geometric":
        return np.exp(wrong.mean(axis=1) - correct)
    if mean == "arithmetic":
        return np.exp(-correct) / np.exp(-wrong).mean(axis=1)
    raise ValueError(f"mean must be 'geometric' or 'arithmetic', not {mean!r}")


def aggregate_original_truth_ratio(ratio: ArrayLike, how: Literal["closer_to_1_better", "true_better"]) -> float:
    """locuslab/tofu's aggregates of C / W: mean min(x, 1/x) on the forget set, else mean max(0, 1 − 1/x)."""
    x = vector(ratio, "ratio")
    with np.errstate(divide="ignore"):
        inverse = 1 / x
    if how == "closer_to_1_better":
        return float(np.minimum(x, inverse).mean())
    if how == "true_better":
        return float(np.maximum(0.0, 1 - inverse).mean())
    raise ValueError(f"how must be 'closer_to_1_better' or 'true_better', not {how!r}")


def exact_memorization(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Share of positions where the teacher-forced argmax equals the label, for the ids (N,) of one answer.

    NaN for N = 0: such rows are left out of averages.
    """
    agree = _agreement(predicted, labels)
    return float(agree.mean()) if agree.size else math.nan


def extraction_strength(predicted: ArrayLike, labels: ArrayLike) -> float:
    """1 − k/N with the smallest k in 0..N−1 from which on all predictions agree, else k = N − 1.

    Ids (N,) of one answer. Never below 1/N for N ≥ 1, and 0.0 for N = 0.
    """
    agree = _agreement(predicted, labels)
    n = agree.size
    if n == 0:
        return 0.0
    wrong = np.flatnonzero(~agree)
    k = min(int(wrong[-1]) + 1, n - 1) if wrong.size else 0
    return 1.0 - k / n


def min_k(logps: ArrayLike, k: float = 0.4) -> float:
    """Min-K%: minus the mean of the max(1, ⌊N·k⌋) smallest log-probs (N,) of one answer; 0.0 for N = 0.

    Higher means less likely a training member (arXiv 2310.16789).
    """
    return _minus_mean_of_smallest(vector(logps, "logps", empty=True), k)


def min_k_plus_plus(logps: ArrayLike, mean: ArrayLike, std: ArrayLike, k: float = 0.4) -> float:
    """Min-K%++: as :func:`min_k` on (logps − mean) / std (arXiv 2404.02936); all (N,), of one answer.

    ``mean`` and ``std`` are those of log p over the vocabulary under the model at each position; std² is kept ≥ 1e-6.
    """
    logps = vector(logps, "logps", empty=True)
    mean, std = vector(mean, "mean", empty=True), vector(std, "std", empty=True)
    if not len(logps) == len(mean) == len(std):
        raise ValueError(f"lengths differ: {len(logps)} logps, {len(mean)} means, {len(std)} stds")
    return _minus_mean_of_smallest((logps - mean) / np.sqrt(np.maximum(std**2, MIN_VARIANCE)), k)


def zlib_score(nll: float, text: str) -> float:
    """Loss per byte of the zlib-compressed text (default level): loss relative to how compressible the answer is."""
    return float(nll) / len(zlib.compress(text.encode("utf-8")))


def privleak(auc: float, reference_auc: float | None = None) -> float:
    """PrivLeak in percent: 100 (s − r) / (r + 1e-10) with s = 1 − auc, r = 1 − reference_auc (None: 0.5).

    ``auc`` is :func:`negpo.eval.statistics.roc_auc` of forget (label 0) against holdout (label 1) scores. Negative: the
    forget set still looks like training data; positive: over-unlearned. Unbounded above when r is small.
    """
    reference = 0.5 if reference_auc is None else float(reference_auc)
    return -100 * (float(auc) - reference) / (1 - reference + EPS)


def relative_difference(value: float, reference: float) -> float:
    """100 (value − reference) / (reference + 1e-10): open-unlearning's ``rel_diff``."""
    return 100 * (float(value) - float(reference)) / (float(reference) + EPS)


def rouge_scores(target: str, prediction: str, *, stemmer: bool = True) -> dict[str, float]:
    """``rouge1_recall``, ``rouge1_f1``, ``rougeL_recall``, ``rougeL_f1`` as the rouge_score package defines them.

    Lower-cased; every character outside [a-z0-9] separates; tokens longer than three characters are Porter-stemmed
    with ``stemmer`` (TOFU, open-unlearning; MUSE's own evaluator does not). An empty side scores 0.
    """
    scores = _rouge_scorer(stemmer).score(target, prediction)
    return {
        f"{kind}_{short}": float(getattr(scores[kind], long))
        for kind in ("rouge1", "rougeL")
        for short, long in (("recall", "recall"), ("f1", "fmeasure"))
    }


def rouge_recall(target: str, prediction: str) -> float:
    """TOFU's ROUGE: ROUGE-L recall of ``target`` in ``prediction``, with the Porter stemmer."""
    return rouge_scores(target, prediction)["rougeL_recall"]


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> float | np.ndarray:
    """Unbiased pass@k, 1 − C(n − c, k) / C(n, k), from n samples of which c are correct (arXiv 2107.03374, eq. 1).

    Exact integer arithmetic with one rounding. Scalars give a float, arrays broadcast to a float64 array. ValueError
    unless 1 ≤ k ≤ n and 0 ≤ c ≤ n, all whole numbers.
    """
    values = np.broadcast(*(np.asarray(value) for value in (n, c, k)))
    out = np.array([_pass_at_k(*triple) for triple in values], dtype=np.float64).reshape(values.shape)
    return float(out) if out.ndim == 0 else out


def muse_min_k(logps: ArrayLike, k: float) -> float:
    """MUSE's own Min-K%: minus the mean of the ⌊N·k⌋ smallest log-probs (N,); NaN when ⌊N·k⌋ = 0."""
    array = np.sort(vector(logps, "logps", empty=True))
    count = int(len(array) * k)
    return float(-array[:count].mean()) if count else math.nan


def muse_privleak(auc: float, retrain_auc: float) -> float:
    """MUSE's own PrivLeak: 100 (auc − retrain) / retrain, with auc high when the holdout looks like training data.

    Equal to :func:`privleak` of 1 − auc up to its eps. The published retrain values are 0.4772 (News), 0.5393 (Books).
    """
    return 100 * (float(auc) - float(retrain_auc)) / float(retrain_auc)


def _correct_and_wrong(correct_nll: ArrayLike, wrong_nll: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    correct, wrong = vector(correct_nll, "correct_nll"), np.asarray(wrong_nll, dtype=np.float64)
    if wrong.ndim != 2 or len(wrong) != len(correct) or wrong.shape[1] == 0:
        raise ValueError(f"wrong_nll must have shape ({len(correct)}, J) with J > 0, not {wrong.shape}")
    return correct, wrong


def _agreement(predicted: ArrayLike, labels: ArrayLike) -> np.ndarray:
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise ValueError(f"predicted and labels must be (N,), not {predicted.shape} and {labels.shape}")
    return predicted == labels


def _minus_mean_of_smallest(values: np.ndarray, k: float) -> float:
    if not 0 <= k <= 1:
        raise ValueError(f"k is a share of the tokens, between 0 and 1, not {k}")
    if values.size == 0:
        return 0.0
    if np.isnan(values).any():  # sorting puts NaN last, where it would go unseen
        return math.nan
    return float(-np.sort(values)[: max(1, int(len(values) * k))].mean())


def _pass_at_k(n, c, k) -> float:
    if any(value != int(value) for value in (n, c, k)):
        raise ValueError(f"n, c and k must be whole numbers, not {n}, {c}, {k}")
    n, c, k = int(n), int(c), int(k)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, but n = {n} samples were generated")
    if not 0 <= c <= n:
        raise ValueError(f"c = {c} correct of n = {n} samples is impossible")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


@cache
def _rouge_scorer(stemmer: bool):
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
