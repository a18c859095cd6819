"""Objectives as pure functions of per-token log-probabilities; torch is the only import.

Each loss returns ``(loss, stats)``: a scalar tensor and a flat dict of detached scalar tensors. ``logps``,
``ref_logps`` and ``old_logps`` are (B, T), shifted and gathered; ``mask`` is bool, True on completion tokens. What
stands under False never changes loss or gradient, a row without True leaves every mean, and a batch without True
raises ``ValueError``.
"""

from negpo.objectives.advantages import (
    group_advantages,
    ngrpo_advantages,
    raft_advantages,
    reinforce_rej_advantages,
    signed_advantages,
)
from negpo.objectives.aft import aft_loss
from negpo.objectives.arithmetic import extrapolate_weight, mix_weights
from negpo.objectives.catnip import catnip_loss
from negpo.objectives.ceu import ceu_loss
from negpo.objectives.d2o import d2o_loss
from negpo.objectives.dpo import dpo_loss
from negpo.objectives.kto import kto_loss
from negpo.objectives.likelihood import ga_loss, nll_loss
from negpo.objectives.lipo import lipo_loss
from negpo.objectives.n_pair import n_pair_loss, position_weighted_mean
from negpo.objectives.nft import nft_loss
from negpo.objectives.npo import npo_loss
from negpo.objectives.pdu import dual_update, pdu_loss
from negpo.objectives.policy_gradient import clipped_policy_loss
from negpo.objectives.policy_terms import importance_weights, low_variance_kl, reduce_tokens
from negpo.objectives.redi import redi_loss
from negpo.objectives.resrl import resrl_token_weights
from negpo.objectives.retain import retain_kl
from negpo.objectives.rmu import rmu_control_vector, rmu_loss
from negpo.objectives.sam import perturbed, sam_perturbation
from negpo.objectives.simnpo import simnpo_loss
from negpo.objectives.simpo import simpo_loss
from negpo.objectives.step_dpo import first_pit, step_advantages, step_dpo_loss
from negpo.objectives.token_weighted import satimp_loss, tnpo_loss, wga_loss
from negpo.objectives.topr import topr_loss
from negpo.objectives.u2a import u2a_scores, u2a_update_weights
from negpo.objectives.undial import undial_loss
from negpo.objectives.unpaired_kto import unpaired_kto_loss

__all__ = [
    "aft_loss",
    "catnip_loss",
    "ceu_loss",
    "clipped_policy_loss",
    "d2o_loss",
    "dpo_loss",
    "dual_update",
    "extrapolate_weight",
    "first_pit",
    "ga_loss",
    "group_advantages",
    "importance_weights",
    "kto_loss",
    "lipo_loss",
    "low_variance_kl",
    "mix_weights",
    "n_pair_loss",
    "nft_loss",
    "ngrpo_advantages",
    "nll_loss",
    "npo_loss",
    "pdu_loss",
    "perturbed",
    "position_weighted_mean",
    "raft_advantages",
    "redi_loss",
    "reduce_tokens",
    "reinforce_rej_advantages",
    "resrl_token_weights",
    "retain_kl",
    "rmu_control_vector",
    "rmu_loss",
    "sam_perturbation",
    "satimp_loss",
    "signed_advantages",
    "simnpo_loss",
    "simpo_loss",
    "step_advantages",
    "step_dpo_loss",
    "tnpo_loss",
    "topr_loss",
    "u2a_scores",
    "u2a_update_weights",
    "undial_loss",
    "unpaired_kto_loss",
    "wga_loss",
]
