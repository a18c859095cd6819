"""What a sweep's YAML says, and what is refused before the first model is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negpo.data.io import read_yaml
from negpo.errors import ConfigError
from negpo.methods import of_family

WEIGHT_SPACE = ("task_vector", "extrapolation")  # fine-tune, then walk the straight line away from it
METHODS = (*of_family("unlearn"), *WEIGHT_SPACE)
BUDGET = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length")
OWNED = (*BUDGET, "output_dir", "seed", "save_strategy")
KEYS = {
    "lab", "target", "retain_model", "data", "forget", "steps", "batch", "every", "trials", "seeds", "methods",
    "validation", "levels", "stop_below", "settings",
}  # fmt: skip
LEVELS = (0.95, 0.90, 0.80)


@dataclass(frozen=True)
class Split:
    """Which forget rows choose the settings and which are reported. Whole authors (``block`` rows) stay together."""

    validation: tuple[int, ...]
    report: tuple[int, ...]

    def __post_init__(self) -> None:
        if shared := sorted(set(self.validation) & set(self.report)):
            raise ConfigError(
                f"validation and report share the forget rows {shared[:8]}: settings would be chosen on what is "
                "reported. Give disjoint rows"
            )
        if not self.validation or not self.report:
            raise ConfigError("validation and report need at least one forget row each")

    @classmethod
    def of(cls, n: int, block: int) -> Split:
        """Every other block of rows validates, starting with the first."""
        if n < 2 * block:
            raise ConfigError(f"{n} forget rows do not hold two blocks of {block}; lower validation.block")
        rows = range(n)
        return cls(tuple(i for i in rows if i // block % 2 == 0), tuple(i for i in rows if i // block % 2 == 1))


@dataclass(frozen=True)
class SweepSpec:
    """One sweep. ``trials``: settings per method, equal for all; ``steps``: optimiser steps per trial, equal for all.

    lab: size of the embedded world, one per seed; otherwise ``target`` (and ``retain_model``), ``data`` and ``forget``.
    every: steps between measurements. stop_below: share of the target's utility below which a trial is given up after
    two measurements in a row. settings: what all methods share.
    """

    methods: Mapping[str, tuple[dict[str, Any], ...]]
    steps: int
    trials: int
    seeds: tuple[int, ...] = (0,)
    lab: str | None = None
    target: str | None = None
    retain_model: str | None = None
    data: str | None = None
    forget: str | None = None
    batch: int = 8
    every: int = 10
    validation: Mapping[str, Any] = field(default_factory=dict)
    levels: tuple[float, ...] = LEVELS
    stop_below: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "trials", "batch", "every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be a whole number of at least 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)}: give at least one, each once")
        if (self.lab is None) == (self.target is None):
            raise ConfigError("give either lab (an embedded world) or target, data and forget")
        if self.target is not None and not (self.data and self.forget):
            raise ConfigError("target needs data and forget too: the rows to forget and those to keep")
        if not self.levels or any(not 0 < level <= 1 for level in self.levels):
            raise ConfigError(f"levels {list(self.levels)} are shares of the target's utility: above 0, at most 1")
        if not 0 <= self.stop_below < min(self.levels):
            raise ConfigError(f"stop_below={self.stop_below} must lie below the lowest level, {min(self.levels)}")
        self._check_methods()

    def _check_methods(self) -> None:
        if not self.methods:
            raise ConfigError("methods is empty; name at least one")
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ConfigError(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}")
        counts = {name: len(found) for name, found in self.methods.items()}
        if uneven := {name: n for name, n in counts.items() if n != self.trials}:
            raise ConfigError(
                f"trials are not equal: every method needs {self.trials} settings, but "
                + ", ".join(f"{name} has {n}" for name, n in uneven.items())
            )
        for name, found in self.methods.items():
            for number, settings in enumerate(found):
                if taken := sorted(set(OWNED) & set(settings)):
                    raise ConfigError(
                        f"methods.{name}, trial {number}: {', '.join(taken)} belongs to the budget that all share; set "
                        "steps and batch for the whole sweep"
                    )
            if len({repr(sorted(settings.items())) for settings in found}) < len(found):
                raise ConfigError(f"methods.{name} lists the same settings twice: its trials would not be equal")

    def split(self, n: int) -> Split:
        """Validation and report rows of a forget set of ``n`` rows."""
        given = dict(self.validation)
        if {"rows", "report"} & set(given):
            rows = tuple(given.get("rows", ()))
            report = tuple(given.get("report", [i for i in range(n) if i not in set(rows)]))
            if outside := [i for i in (*rows, *report) if not 0 <= i < n]:
                raise ConfigError(f"validation names forget row {outside[0]}; there are rows 0 to {n - 1}")
            return Split(rows, report)
        return Split.of(n, int(given.get("block", 20)))


def read_spec(path: str | Path) -> SweepSpec:
    """A sweep from YAML. Each method has ``grid`` (a list per setting; all combinations) or ``list`` (settings).

    Raises ConfigError that names the file and the key.
    """
    found = read_yaml(path)
    if unknown := sorted(set(found) - KEYS):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}")
    for key in ("methods", "steps", "trials"):
        if key not in found:
            raise ConfigError(f"{path}: {key} is missing")
    try:
        found["methods"] = {name: expand(name, given) for name, given in found["methods"].items()}
        for key in ("seeds", "levels"):
            if key in found:
                found[key] = tuple(found[key])
        return SweepSpec(**found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def expand(name: str, given: Any) -> tuple[dict[str, Any], ...]:
    """All settings of one method: the product of its grid, or its list, each on top of ``fixed``."""
    if (
        not isinstance(given, dict)
        or not set(given) <= {"grid", "list", "fixed"}
        or ("grid" in given) == ("list" in given)
    ):
        raise ConfigError(f"methods.{name} needs either grid or list (and may have fixed)")
    fixed = given.get("fixed") or {}
    if "list" in given:
        return tuple({**fixed, **settings} for settings in given["list"])
    grid = {key: value if isinstance(value, list) else [value] for key, value in given["grid"].items()}
    return tuple({**fixed, **dict(zip(grid, values, strict=True))} for values in itertools.product(*grid.values()))
