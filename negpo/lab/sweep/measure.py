"""One cheap measurement of a model: a scoring pass, no generation, row by row for the forget set."""

from __future__ import annotations

from typing import Any

import numpy as np

from negpo.eval.meta_metrics import memorisation_score
from negpo.eval.metrics import aggregate_truth_ratio, model_utility, probability, truth_ratio
from negpo.eval.tofu import TofuData, TofuSettings, evaluate_tofu

ROW_METRICS = ("extraction_strength", "exact_memorization", "paraphrase_probability", "knows_truth", "truth_ratio")
KEPT = ("retain", "real_authors", "world_facts")


def measure(model: Any, tokenizer: Any, data: TofuData) -> dict[str, Any]:
    """``utility`` (harmonic mean of six of TOFU's nine numbers: no ROUGE, so no generation) and ``rows``.

    rows: by metric of ROW_METRICS, one number a forget row; ``knows_truth`` is p_para / (p_para + mean p_pert).
    """
    result = evaluate_tofu(model, tokenizer, data, TofuSettings(generate=False), name="sweep")
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in result.per_item:
        by_set.setdefault(row["set"], []).append(row)
    parts = [value for name in KEPT for value in _kept(name, by_set[name])]
    return {"utility": model_utility(parts), "rows": forget_rows(by_set["forget"])}


def _kept(name: str, rows: list[dict[str, Any]]) -> list[float]:
    """Probability (among the choices, where there are any) and truth ratio of one kept set."""
    nll = np.array([row["nll"] for row in rows])
    wrong = np.array([row["perturbed_nll"] for row in rows])
    right = np.array([row.get("paraphrase_nll", row["nll"]) for row in rows])
    p, others = probability(nll), probability(wrong).sum(-1)
    value = p if name == "retain" else p / (p + others)
    return [float(value.mean()), aggregate_truth_ratio(truth_ratio(right, wrong), "true_better")]


def forget_rows(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The forget set's numbers, row by row."""
    right = np.array([row.get("paraphrase_nll", row["nll"]) for row in rows])
    wrong = np.array([row["perturbed_nll"] for row in rows])
    para, perturbed = probability(right), probability(wrong).mean(-1)
    found = {
        "extraction_strength": np.array([row["extraction_strength"] for row in rows]),
        "exact_memorization": np.array([row["exact_memorization"] for row in rows]),
        "paraphrase_probability": para,
        "knows_truth": para / np.maximum(para + perturbed, 1e-30),
        "truth_ratio": truth_ratio(right, wrong),
    }
    return {name: [float(x) for x in values] for name, values in found.items()}


def forgetting(rows: dict[str, Any], chosen: Any) -> float:
    """OpenUnlearning's memorisation score over the chosen rows: larger is less memorised."""
    means = [float(np.asarray(rows[name], dtype=float)[np.asarray(chosen)].mean()) for name in ROW_METRICS[:4]]
    return memorisation_score(*(min(max(value, 0.0), 1.0) for value in means))
