"""Trainers, one file for each method. Everything is imported on first use: ``import negpo.trainers`` costs nothing."""

from importlib import import_module
from typing import Any

from negpo.methods import TABLE

# method of `negpo train METHOD`: (module, trainer, config)
METHODS: dict[str, tuple[str, str, str]] = {
    name: (method.module, method.trainer, method.config) for name, method in TABLE.items()
}

# method -> the module that says what its recipes hold beside its config: model, data, verifier
SCRIPTS = {name: f"negpo.trainers._script.{method.family}" for name, method in TABLE.items()}

_HOMES = {name: module for module, *names in METHODS.values() for name in names} | {
    "PolicyTrainer": "negpo.trainers._policy.base",
    "PolicyConfig": "negpo.trainers._policy.config",
    "UnlearnTrainer": "negpo.trainers._unlearn.base",
    "UnlearnConfig": "negpo.trainers._unlearn.config",
    "PreferenceTrainer": "negpo.trainers._preference.base",
    "PreferenceConfig": "negpo.trainers._preference.config",
    "DisplacementCallback": "negpo.trainers._preference.displacement",
    "U2A": "negpo.trainers.u2a",
    "OverUnlearningCallback": "negpo.trainers._run.callbacks",
    "UtilityFloorCallback": "negpo.trainers._run.callbacks",
    "run_training": "negpo.trainers._script",
}

__all__ = ["METHODS", "SCRIPTS", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
