"""Conditions on an audit's numbers, for the exit status of a pipeline: ``utility>=0.9*target``.

A condition is NAME, one of ``>= <= > <``, and a number, or ``target`` or ``retain`` with an optional factor in front
and an optional number added: ``forget_quality>0.05``, ``mia_min_k<=retain+0.1``, ``forget_Q_A_ROUGE<1.2*retain``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from negpo.errors import ConfigError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
ALIASES = {"utility": "model_utility"}
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_CONDITION = re.compile(
    rf"\s*(?P<name>\w+)\s*(?P<op>>=|<=|>|<)\s*"
    rf"(?:(?P<number>-?(?:{_NUMBER}))|(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<control>target|retain)"
    rf"(?:\s*(?P<sign>[+-])\s*(?P<shift>{_NUMBER}))?)\s*"
)


@dataclass(frozen=True)
class Requirement:
    """``metric op bound`` with bound = factor · control + shift; ``control`` None: the bound is ``shift`` alone."""

    text: str
    metric: str
    op: str
    control: str | None
    factor: float
    shift: float

    def bound(self, target: Mapping[str, float], retain: Mapping[str, float]) -> float:
        if self.control is None:
            return self.shift
        return self.factor * {"target": target, "retain": retain}[self.control][self.metric] + self.shift


@dataclass(frozen=True)
class Outcome:
    """A condition applied to one model."""

    model: str
    requirement: str
    metric: str
    value: float
    bound: float
    met: bool


def parse_requirements(texts: Sequence[str], known: Collection[str]) -> list[Requirement]:
    """Read conditions. ConfigError for one that does not parse, or names a metric that is not in ``known``."""
    return [_parse(text, known) for text in texts]


def check_requirements(
    requirements: Sequence[Requirement],
    model: str,
    values: Mapping[str, float],
    target: Mapping[str, float],
    retain: Mapping[str, float],
) -> list[Outcome]:
    """Apply every condition to one model's values; NaN meets none."""
    outcomes = []
    for requirement in requirements:
        value, bound = values[requirement.metric], requirement.bound(target, retain)
        met = OPERATORS[requirement.op](value, bound)
        outcomes.append(Outcome(model, requirement.text, requirement.metric, value, bound, met))
    return outcomes


def refuse_unavailable(requirements: Sequence[Requirement], missing: Mapping[str, str]) -> None:
    """Raise ConfigError when a condition names a number that the data at hand cannot give, with the reason."""
    for requirement in requirements:
        if requirement.metric in missing:
            raise ConfigError(
                f"--require {requirement.text!r}: {requirement.metric} will not be there: {missing[requirement.metric]}"
            )


def _parse(text: str, known: Collection[str]) -> Requirement:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--require {text!r} is not a condition. Write NAME, one of >= <= > <, and a number or target or retain, "
            "for example 'forget_quality>0.05' or 'utility>=0.9*target'"
        )
    name = ALIASES.get(match["name"], match["name"])
    if name not in known:
        raise ConfigError(
            f"--require {text!r}: there is no metric {match['name']!r} in this suite. Known are "
            f"{', '.join(sorted({*known, *ALIASES}))}"
        )
    if match["control"] is None:
        return Requirement(text, name, match["op"], None, 0.0, float(match["number"]))
    shift = float(match["shift"] or 0) * (-1 if match["sign"] == "-" else 1)
    return Requirement(text, name, match["op"], match["control"], float(match["factor"] or 1), shift)
