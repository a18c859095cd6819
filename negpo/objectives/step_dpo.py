"""Per-step DPO on incorrect synthetic solutions, arXiv 2406.14532."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, require_shape, row_vector
from negpo.objectives.dpo import dpo_loss


def step_advantages(step_values: Tensor, prompt_values: Tensor) -> Tensor:
    """``A_i = Q_i - Q_{i-1}`` with ``Q_0`` the value of the bare prompt, arXiv 2406.14532.

    ``step_values`` (B, S) Monte-Carlo success rate after each step, NaN where a solution has fewer steps;
    ``prompt_values`` (B,). Returns (B, S).
    """
    require_shape("prompt_values", prompt_values, (step_values.shape[0],), "(B,), one value per prompt")
    return step_values.diff(dim=-1, prepend=prompt_values.unsqueeze(-1).to(step_values))


def first_pit(step_values: Tensor) -> Tensor:
    """Index (B,) of the first step with the lowest value, where a wrong solution is lost.

    ``step_values`` (B, S) as in ``step_advantages``: NaN where a solution has fewer steps.
    """
    unknown = step_values.isnan()
    if unknown.all(-1).any():
        raise ValueError(
            f"step_values of shape {tuple(step_values.shape)} has a row without any value, expected one or more"
        )
    return step_values.masked_fill(unknown, torch.inf).argmin(dim=-1)


def step_dpo_loss(
    chosen_logps: Tensor,
    chosen_mask: Tensor,
    rejected_logps: Tensor,
    rejected_mask: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    step_ids: Tensor,
    pit: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, Stats]:
    """Per-step DPO, arXiv 2406.14532: DPO of a full correct solution against the wrong one cut after its pit.

        L = mean_b softplus(-beta (r_w - r_l)),   r_l sums only rejected tokens whose step is <= pit_b

    Tensors as in ``dpo_loss``; ``step_ids`` (B, Tl) 0-based step of each rejected token, ``pit`` (B,) last step to keep
    (``first_pit``). Tokens after the pit have no influence.

    Gradient weight: DPO's, zero after the pit. Reference model: the SFT model that produced the wrong solutions.

    Caveat: the pit is only as good as the value estimate; with few roll-outs per prefix it is the first unlucky step.
    The paper's beta and roll-out count could not be confirmed.

    Returns what ``dpo_loss`` returns; the rejected statistics cover the kept prefix.
    """
    require_shape("step_ids", step_ids, tuple(rejected_mask.shape), "(B, Tl), the shape of rejected_mask")
    pit = row_vector("pit", pit, rejected_mask)
    prefix = rejected_mask & (step_ids <= pit.unsqueeze(-1))
    return dpo_loss(chosen_logps, chosen_mask, rejected_logps, prefix, ref_chosen_logps, ref_rejected_logps, beta=beta)
