"""Every number of one measured model: its value by the TOFU harness's own formulas, and how it varies with the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from negpo.eval import metrics as m
from negpo.eval.audit.attacks import attack_estimate
from negpo.eval.audit.measure import MEMBERS, Measured, Plan
from negpo.eval.audit.resampling import (
    Counts,
    Estimate,
    Resampler,
    Statistic,
    auc_of,
    harmonic_mean,
    ks_distance,
    mean_of,
    mean_of_known,
)
from negpo.eval.mia import Scores
from negpo.eval.retain_log import RetainLog
from negpo.eval.statistics import roc_auc
from negpo.eval.tofu_data import PREFIX
from negpo.eval.tofu_items import row_id
from negpo.eval.tofu_metrics import (
    MEMBERSHIP,
    Summary,
    add_forget_quality,
    add_membership,
    summarise_rows,
    truth_ratios,
)

MODE = "open-unlearning"
MIA = tuple(f"mia_{name}" for name in ("loss", "min_k", "min_k_plus_plus", "zlib", "reference", "gradnorm"))
QUICK_METRICS = (
    *("forget_quality", "forget_truth_ratio", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "model_utility"),
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
STANDARD_METRICS = ("exact_memorization", "extraction_strength", *MIA, "privleak")


@dataclass
class Numbers:
    """``summary``: values, reasons and details as in TOFU's harness; ``estimates``: the same names with intervals.

    ``scores``: membership scores (N,) by set and attack, empty where there is no membership inference.
    """

    summary: Summary
    estimates: dict[str, Estimate] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)


def numbers_of(measured: Measured, retain: Measured, plan: Plan, resampler: Resampler) -> Numbers:
    """All numbers of ``measured``; ``retain`` is the control of forget quality, PrivLeak and the reference attack."""
    summary = summarise_rows(measured.rows, MODE, plan.data.absent, generated=True)
    numbers = Numbers(summary)
    log = _control_log(retain, plan)
    statistics = _row_statistics(measured, plan)
    ratios = truth_ratios(measured.rows["forget"], MODE)
    add_forget_quality(summary, ratios, log.row_ids, log)
    if ratios is not None:
        numbers.estimates["forget_quality"] = _forget_quality(ratios, np.array(log.truth_ratio), resampler)
    if reason := plan.no_membership:
        summary.missing |= dict.fromkeys((*MEMBERSHIP, *MIA), reason)
    else:
        numbers.scores = {name: measured.membership(name, plan, retain) for name in MEMBERS}
        add_membership(summary, numbers.scores["forget"], numbers.scores["holdout"], log)
        statistics |= _membership_statistics(numbers.scores, retain, plan)
    if not plan.settings.detailed:
        for name in ("exact_memorization", "extraction_strength"):
            summary.missing[name] = "not part of the quick suite"
    summary.missing |= measured.not_attacked
    for name, result in measured.attacks.items():
        numbers.estimates[name] = attack_estimate(result, resampler)
    for name, value in summary.metrics.items():
        if name in statistics:
            numbers.estimates[name] = replace(resampler.estimate(statistics[name]), value=value)
    for name in numbers.scores and MIA:  # DeLong's interval does not shrink to a point where the classes separate
        low, high = summary.details[name]["interval"]
        numbers.estimates[name] = replace(numbers.estimates[name], low=low, high=high)
    return numbers


def roc_points(forget: np.ndarray, holdout: np.ndarray) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) where the curve bends: a forget row is found when it scores below.

    A single point of NaN where a score is not a number.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_curve

    scores = np.concatenate([forget, holdout])
    if np.isnan(scores).any():  # no threshold tells them apart
        return [(math.nan, math.nan)]
    order = rankdata(scores, method="dense")  # infinite scores are ordinary ranks
    rates = roc_curve(np.r_[np.ones(len(forget)), np.zeros(len(holdout))], -order)
    return [(float(x), float(y)) for x, y in zip(*rates[:2], strict=True)]


def ks_p_value(distance: float, n: int) -> float:
    """Exact two-sided p-value of a KS distance between two samples of n values each.

    Gnedenko and Korolyuk's series for equal sizes: 2 Σ_k (−1)^(k−1) C(2n, n − kh) / C(2n, n) with h = n · distance.
    """
    if math.isnan(distance):
        return math.nan
    h = round(distance * n)
    if h == 0:
        return 1.0
    terms = sum((-1) ** (k - 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1))
    return min(1.0, 2 * terms / math.comb(2 * n, n))


def _control_log(retain: Measured, plan: Plan) -> RetainLog:
    ratios = truth_ratios(retain.rows["forget"], MODE)
    ids = tuple(row_id(row) for row in plan.data.sets["forget"])
    aucs = {}
    if not plan.no_membership:
        forget, holdout = (retain.membership(name, plan, retain)["min_k"] for name in MEMBERS)
        aucs["min_k"] = roc_auc(forget, holdout)
    known = () if ratios is None else tuple(ratios.tolist())
    return RetainLog(MODE, plan.data.forget, known, aucs, ids, retain.checkpoint.name)


def _forget_quality(ratios: np.ndarray, control: np.ndarray, resampler: Resampler) -> Estimate:
    """The p-value; its interval are the p-values at the ends of the KS distance's interval, its draws distances."""
    distance = resampler.estimate(ks_distance("forget", ratios, control))
    n = len(ratios)
    value, low, high = (ks_p_value(end, n) for end in (distance.value, distance.high, distance.low))
    return Estimate(value, low, high, distance.draws)


def _row_statistics(measured: Measured, plan: Plan) -> dict[str, Statistic]:
    """Means over rows, by metric name, and the harmonic mean of nine of them."""
    found: dict[str, Statistic] = {}
    for name, prefix in PREFIX.items():
        if name not in measured.rows:
            continue
        rows = measured.rows[name]
        normalised = name in ("real_authors", "world_facts")
        nll = [row["nll"] for row in rows]
        values = m.probability(nll)
        if normalised:
            values = m.normalised_probability(nll, [row["perturbed_nll"] for row in rows])
        found[f"{prefix}_Q_A_Prob{'_normalised' if normalised else ''}"] = mean_of(name, values)
        found[f"{prefix}_Q_A_ROUGE"] = mean_of(name, [row["rougeL_recall"] for row in rows])
        ratios = truth_ratios(rows, MODE)
        if ratios is not None and name == "forget":
            found["forget_truth_ratio"] = mean_of(name, np.minimum(ratios, 1 / (ratios + m.EPS)))
        elif ratios is not None:
            found[f"{prefix}_Truth_Ratio"] = mean_of(name, np.maximum(0.0, 1 - ratios))
    parts = [statistic for name, statistic in found.items() if not name.startswith("forget")]
    found["model_utility"] = harmonic_mean(parts)
    if plan.settings.detailed:
        for name in ("exact_memorization", "extraction_strength"):
            found[name] = mean_of_known("forget", [float(row[name]) for row in measured.rows["forget"]])
    return found


def _membership_statistics(scores: Mapping[str, Scores], retain: Measured, plan: Plan) -> dict[str, Statistic]:
    found = {
        f"mia_{attack}": auc_of("forget", "holdout", values, scores["holdout"][attack])
        for attack, values in scores["forget"].items()
    }
    control = auc_of("forget", "holdout", *(retain.membership(name, plan, retain)["min_k"] for name in MEMBERS))
    found["privleak"] = _privleak(found["mia_min_k"], control)
    return found


def _privleak(auc: Statistic, control: Statistic) -> Statistic:
    def statistic(counts: Counts) -> np.ndarray:
        reference = control(counts)
        return -100 * (auc(counts) - reference) / (1 - reference + m.EPS)

    return statistic
