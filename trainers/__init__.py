"""Trainers, one file for each method. Everything is imported on first use: ``import negpo.trainers`` costs nothing."""

from importlib import import_module
from typing import Any

# method of `negpo train METHOD`: (module, trainer, config)
METHODS: dict[str, tuple[str, str, str]] = {
    "ga": ("negpo.trainers.ga", "GradientAscentTrainer", "GradientAscentConfig"),
    "graddiff": ("negpo.trainers.graddiff", "GradDiffTrainer", "GradDiffConfig"),
    "npo": ("negpo.trainers.npo", "NPOTrainer", "NPOConfig"),
    "simnpo": ("negpo.trainers.simnpo", "SimNPOTrainer", "SimNPOConfig"),
    "wga": ("negpo.trainers.wga", "WGATrainer", "WGAConfig"),
    "idkdpo": ("negpo.trainers.idkdpo", "IdkDPOTrainer", "IdkDPOConfig"),
    "rmu": ("negpo.trainers.rmu", "RMUTrainer", "RMUConfig"),
    "catnip": ("negpo.trainers.catnip", "CATNIPTrainer", "CATNIPConfig"),
    "nsr": ("negpo.trainers.nsr", "NSRTrainer", "NSRConfig"),
    "ngrpo": ("negpo.trainers.ngrpo", "NGRPOTrainer", "NGRPOConfig"),
    "nft": ("negpo.trainers.nft", "NFTTrainer", "NFTConfig"),
    "resrl": ("negpo.trainers.resrl", "ResRLTrainer", "ResRLConfig"),
    "topr": ("negpo.trainers.topr", "TOPRTrainer", "TOPRConfig"),
    "raft": ("negpo.trainers.raft", "RAFTTrainer", "RAFTConfig"),
    "reinforce_rej": ("negpo.trainers.reinforce_rej", "ReinforceRejTrainer", "ReinforceRejConfig"),
    "grpo": ("negpo.trainers.grpo", "GroupPolicyTrainer", "GroupPolicyConfig"),
    # preferred and dispreferred answers
    "sft": ("negpo.trainers.sft", "SFTTrainer", "SFTConfig"),
    "redi": ("negpo.trainers.redi", "REDITrainer", "REDIConfig"),
    "d2o": ("negpo.trainers.d2o", "D2OTrainer", "D2OConfig"),
    "dpo": ("negpo.trainers.dpo", "DPOTrainer", "DPOConfig"),
    "simpo": ("negpo.trainers.simpo", "SimPOTrainer", "SimPOConfig"),
    "kto": ("negpo.trainers.kto", "KTOTrainer", "KTOConfig"),
    "step_dpo": ("negpo.trainers.step_dpo", "StepDPOTrainer", "StepDPOConfig"),
    "aft": ("negpo.trainers.aft", "AFTTrainer", "AFTConfig"),
    "lipo": ("negpo.trainers.lipo", "LiPOTrainer", "LiPOConfig"),
    "wpn": ("negpo.trainers.wpn", "WPNTrainer", "WPNConfig"),
}

# methods whose recipes do not describe forget and retain data: their script
SCRIPTS = dict.fromkeys(
    ("nsr", "ngrpo", "nft", "resrl", "topr", "raft", "reinforce_rej", "grpo"), "negpo.trainers._script_rl"
) | dict.fromkeys(
    ("sft", "redi", "d2o", "dpo", "simpo", "kto", "step_dpo", "aft", "lipo", "wpn"), "negpo.trainers._script_preference"
)

_HOMES = {name: module for module, *names in METHODS.values() for name in names} | {
    "PolicyTrainer": "negpo.trainers._rl_base",
    "PolicyConfig": "negpo.trainers._rl_config",
    "UnlearnTrainer": "negpo.trainers._base",
    "UnlearnConfig": "negpo.trainers._config",
    "PreferenceTrainer": "negpo.trainers._preference",
    "PreferenceConfig": "negpo.trainers._preference_config",
    "DisplacementCallback": "negpo.trainers._displacement",
    "U2A": "negpo.trainers.u2a",
    "OverUnlearningCallback": "negpo.trainers._callbacks",
    "UtilityFloorCallback": "negpo.trainers._callbacks",
    "run_training": "negpo.trainers._script",
}

__all__ = ["METHODS", "SCRIPTS", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
