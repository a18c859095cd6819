"""TOFU's numbers from per-row losses, ROUGE values and attack scores; no model in sight.

Names are open-unlearning's. ``tofu-original`` uses the same names for its own formulas (no eps, C / W) and adds its
second, arithmetic model utility.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from negpo.eval import metrics as m
from negpo.eval.mia import Scores, attack_aucs, attack_details
from negpo.eval.retain_log import RetainLog
from negpo.eval.statistics import ks_test
from negpo.eval.tofu_data import PREFIX

logger = logging.getLogger(__name__)

Rows = dict[str, list[dict[str, Any]]]

MEMBERSHIP = ("mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "privleak")
OVER_UNLEARNED = 0.1  # an AUC below it: the forget set looks less likely than anything unseen


@dataclass
class Summary:
    """``metrics`` by name; ``missing``: why others are not there; ``details``: what a bare number hides."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def summarise_rows(rows: Rows, mode: str, absent: dict[str, str], *, generated: bool) -> Summary:
    """Probability, ROUGE and truth ratio per set, model utility, memorisation. Adds ``truth_ratio`` to the rows."""
    summary = Summary()
    utility: list[float] = []
    arithmetic: list[float] = []
    for name, prefix in PREFIX.items():
        if name not in rows:
            for key in _names(prefix):
                summary.missing[key] = absent[name]
            continue
        values, other = _set_values(name, prefix, rows[name], mode)
        summary.metrics |= values
        if len(values) < 2:
            summary.missing[_names(prefix)[2]] = absent["perturbed"]
        if generated:
            rouge = {f"{prefix}_Q_A_ROUGE": _mean(rows[name], "rougeL_recall")}
            summary.metrics |= rouge
            values |= rouge
        else:
            summary.missing[f"{prefix}_Q_A_ROUGE"] = "generation was switched off"
        if name != "forget":
            utility += values.values()
            arithmetic += [other.get(key, value) for key, value in values.items()]
    if len(utility) == 9:
        summary.metrics["model_utility"] = m.model_utility(utility)
        if mode == "tofu-original":
            summary.metrics["model_utility_arithmetic"] = m.model_utility(arithmetic)
    else:
        summary.missing["model_utility"] = f"{len(utility)} of its 9 parts are there"
    _memorisation(summary, rows["forget"], mode)
    return summary


def add_forget_quality(
    summary: Summary, ratios: np.ndarray | None, row_ids: Sequence[str], log: RetainLog | None, template: str = ""
) -> None:
    """Forget quality against the retain model's log, with distance, sizes, log p and the floor flag in the details.

    ``template``: hash of this evaluation's; another one of the log is said in the details and as a warning.
    """
    if ratios is None:
        summary.missing["forget_quality"] = summary.missing["forget_truth_ratio"]
    elif log is None:
        summary.missing["forget_quality"] = "no retain model: give its log or the model itself"
    else:
        result = ks_test(ratios, log.ratios_for(row_ids))
        summary.metrics["forget_quality"] = result.p_value
        summary.details["forget_quality"] = {**asdict(result), "reference": log.source}
        if template and (note := log.other_template(template)):
            logger.warning(note)
            summary.details["forget_quality"]["note"] = note


def add_membership(summary: Summary, forget: Scores, holdout: Scores, log: RetainLog | None) -> None:
    """AUC of each attack and PrivLeak (on Min-K%, as published), against the retain model's AUC where there is one."""
    aucs = attack_aucs(forget, holdout)
    summary.metrics |= {f"mia_{name}": auc for name, auc in aucs.items()}
    details = attack_details(forget, holdout)
    summary.details |= {f"mia_{name}": detail for name, detail in details.items()}
    reference = log.aucs.get("min_k") if log else None
    summary.metrics["privleak"] = m.privleak(aucs["min_k"], reference)
    summary.details["privleak"] = {
        "auc": aucs["min_k"],
        # PrivLeak falls with the AUC; the retain model's AUC is taken as given
        "interval": [m.privleak(bound, reference) for bound in reversed(details["min_k"]["interval"])],
        "retain_auc": 0.5 if reference is None else reference,
        "retain_auc_measured": reference is not None,
        "over_unlearned": aucs["min_k"] < OVER_UNLEARNED,
    }


def as_retain_log(
    summary: Summary, mode: str, forget: str, ratios: np.ndarray, row_ids: tuple[str, ...], template: str = ""
) -> RetainLog:
    """What other evaluations need of a retain model's."""
    aucs = {name.removeprefix("mia_"): value for name, value in summary.metrics.items() if name.startswith("mia_")}
    return RetainLog(mode, forget, tuple(ratios.tolist()), aucs, row_ids, template=template)


def truth_ratios(rows: list[dict[str, Any]], mode: str) -> np.ndarray | None:
    """Per-row truth ratio (N,) in the mode's own definition; None without perturbed answers."""
    if "perturbed_nll" not in rows[0]:
        return None
    correct, wrong = _losses(rows)
    return m.original_truth_ratio(correct, wrong) if mode == "tofu-original" else m.truth_ratio(correct, wrong)


def _set_values(name: str, prefix: str, rows: list[dict[str, Any]], mode: str) -> tuple[dict, dict]:
    """Probability and truth ratio of one set, and the arithmetic variant of the latter (tofu-original)."""
    probability_name, _, ratio_name = _names(prefix)
    ratios = truth_ratios(rows, mode)
    nll = [row["nll"] for row in rows]
    if name in ("forget", "retain"):
        values = {probability_name: float(m.probability(nll).mean())}
    else:
        eps = 0.0 if mode == "tofu-original" else m.EPS
        wrong = [row["perturbed_nll"] for row in rows]
        values = {probability_name: float(m.normalised_probability(nll, wrong, eps=eps).mean())}
    if ratios is None:
        return values, {}
    for row, ratio in zip(rows, ratios, strict=True):
        row["truth_ratio"] = float(ratio)
    how: Literal["closer_to_1_better", "true_better"] = "closer_to_1_better" if name == "forget" else "true_better"
    if mode == "tofu-original":
        values[ratio_name] = m.aggregate_original_truth_ratio(ratios, how)
        other = m.original_truth_ratio(*_losses(rows), mean="arithmetic")
        return values, {ratio_name: m.aggregate_original_truth_ratio(other, how)}
    values[ratio_name] = m.aggregate_truth_ratio(ratios, how)
    return values, {}


def _memorisation(summary: Summary, rows: list[dict[str, Any]], mode: str) -> None:
    for name in ("exact_memorization", "extraction_strength"):
        if name not in rows[0]:
            summary.missing[name] = f"not part of {mode}"
            continue
        values = np.array([float(row[name]) for row in rows])
        values = values[~np.isnan(values)]  # rows without a token to compare
        summary.metrics[name] = float(values.mean()) if values.size else float("nan")


def _names(prefix: str) -> tuple[str, str, str]:
    normalised = "" if prefix in ("forget", "retain") else "_normalised"
    ratio = "forget_truth_ratio" if prefix == "forget" else f"{prefix}_Truth_Ratio"
    return f"{prefix}_Q_A_Prob{normalised}", f"{prefix}_Q_A_ROUGE", ratio


def _losses(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) losses of the paraphrase, or of the answer on sets without one, and (N, J) of the perturbed answers."""
    correct = np.array([row.get("paraphrase_nll", row["nll"]) for row in rows])
    return correct, np.array([row["perturbed_nll"] for row in rows])


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
