"""Trainers, one file for each method. Everything is imported on first use: ``import negpo.trainers`` costs nothing."""

from importlib import import_module
from typing import Any

from negpo.methods import TABLE, of_family

# method of `negpo train METHOD`: (module, trainer, config)
METHODS: dict[str, tuple[str, str, str]] = {
    name: (method.module, method.trainer, method.config) for name, method in TABLE.items()
}

# methods whose recipes do not describe forget and retain data: their script
SCRIPTS = dict.fromkeys(of_family("policy"), "negpo.trainers._script_rl") | dict.fromkeys(
    of_family("preference"), "negpo.trainers._script_preference"
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
