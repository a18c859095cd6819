"""Membership inference: does the forget set still look like training data, compared with rows never trained on?

Scores are oriented so that higher means *less* likely a member; AUC has the forget set as label 0 and the holdout as
label 1. 1.0: the forget set is clearly more likely than the holdout; 0.5: indistinguishable; below: over-unlearned.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from negpo.data.qa import IGNORE, Item
from negpo.eval.metrics import zlib_score
from negpo.eval.statistics import auc_interval, roc_auc, tpr_at_fpr

Scores = dict[str, np.ndarray]
LOW_ERROR_RATES = (0.01, 0.001)


def attack_scores(
    results: Sequence[Mapping[str, Any]], texts: Sequence[str], *, reference: Sequence[float] | None = None
) -> Scores:
    """Scores (N,) by attack from detailed scoring results and the answers' texts.

    ``reference``: losses (N,) of the same answers under a reference model, for the reference attack.
    """
    nll = np.array([float(result["nll"]) for result in results])
    scores = {
        "loss": nll,
        "min_k": np.array([float(result["min_k"]) for result in results]),
        "min_k_plus_plus": np.array([float(result["min_k_plus_plus"]) for result in results]),
        "zlib": np.array([zlib_score(loss, text) for loss, text in zip(nll, texts, strict=True)]),
    }
    if reference is not None:
        scores["reference"] = nll - np.asarray(reference, dtype=np.float64)
    return scores


def attack_aucs(forget: Scores, holdout: Scores) -> dict[str, float]:
    """AUC of every attack."""
    return {name: roc_auc(values, holdout[name]) for name, values in forget.items()}


def attack_details(forget: Scores, holdout: Scores) -> dict[str, dict[str, Any]]:
    """What a bare AUC hides, by attack: DeLong's 95 % interval, and the share of forget rows found at low error.

    ``tpr_at_fpr`` maps 1 % and 0.1 % to the share of forget rows that score below (more like a member than) all but
    that share of the holdout rows; with fewer holdout rows than 1 / rate that means below every one of them.
    """
    return {
        name: {
            "interval": list(auc_interval(values, holdout[name])),
            "interval_method": "DeLong, logit scale, 95 %",
            "tpr_at_fpr": {str(rate): tpr_at_fpr(-holdout[name], -values, rate) for rate in LOW_ERROR_RATES},
            "n_forget": len(values),
            "n_holdout": len(holdout[name]),
        }
        for name, values in forget.items()
    }


def gradient_norms(model: Any, items: Sequence[Item], *, p: Literal[1, 2, "inf"] = 2) -> np.ndarray:
    """Mean over parameter tensors of the p-norm of the gradient of each item's mean loss, float64 (N,).

    As the reference does it: batch 1, the last labelled token left out, the model in training mode (dropout active).
    Gradients that a running training step has accumulated are not touched.
    """
    from negpo.logprobs import model_token_logprobs

    order = float("inf") if p == "inf" else float(p)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = {module: module.training for module in model.modules()}
    norms = []
    model.train()
    try:
        for item in items:
            ids = torch.tensor([item["input_ids"]], device=parameters[0].device)
            labels = torch.tensor([without_last_label(item["labels"])], device=ids.device)
            if not bool((labels != IGNORE).any()):
                norms.append(float("nan"))
                continue
            batch = model_token_logprobs(model, ids, torch.ones_like(ids), labels, packing="padded")
            loss = -batch.logps.sum() / batch.mask.sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            sizes = [gradient.norm(order) for gradient in gradients if gradient is not None]
            norms.append(float(torch.stack(sizes).double().mean()))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return np.array(norms)


def without_last_label(labels: Sequence[int]) -> list[int]:
    """``labels`` with the last labelled position ignored."""
    labels = list(labels)
    labelled = [index for index, label in enumerate(labels) if label != IGNORE]
    if labelled:
        labels[labelled[-1]] = IGNORE
    return labels
