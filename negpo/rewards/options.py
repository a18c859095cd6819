"""Options of the default grader. All are off by default: each of them turns some answers from wrong to right."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from negpo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GradeOptions:
    """What a benchmark allows beyond equality.

    ``relative`` and ``absolute``: a response's number x counts for the gold g when
    ``|x - g| <= max(relative * |g|, absolute)``, entry by entry in lists, tuples, intervals and matrices; never for
    two symbolic expressions, never through a change of sign unless ``absolute`` spans it. ``significant_digits``: a
    number counts when it rounds to the gold in the digits that the gold shows (0.0321 for 0.032); it makes wrong
    answers right wherever the gold is short, so it needs at least two shown digits. ``choices``: the options of a
    multiple-choice question ("A)5", "(B) 7", ...) whose gold is a letter; a response that gives a value instead of a
    letter counts when it equals exactly one option, the gold's.

    Raises:
        ConfigError: a tolerance that is negative, not finite, or not below one (relative).
    """

    relative: float = 0.0
    absolute: float = 0.0
    significant_digits: bool = False
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name}={value!r}: a tolerance is a finite number, at least 0")
        if self.relative >= 1:
            raise ConfigError(f"relative={self.relative!r} would accept any number; it must be below 1")
        if not isinstance(self.choices, tuple) or not all(isinstance(choice, str) for choice in self.choices):
            raise ConfigError(f"choices must be a tuple of texts, got {self.choices!r}")

    @property
    def tolerant(self) -> bool:
        """Whether numbers may differ at all."""
        return bool(self.relative or self.absolute or self.significant_digits)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; ``from_dict`` undoes it."""
        return asdict(self) | {"choices": list(self.choices)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GradeOptions:
        return cls(**{**values, "choices": tuple(values.get("choices", ()))})


EXACT = GradeOptions()
