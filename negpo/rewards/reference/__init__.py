"""Graders that papers used, rebuilt from their described behaviour so that published numbers can be compared with.

They keep the originals' faults on purpose (factor 100, brackets ignored, units deleted inside words, ...). Use the
default mode for anything new. Every verdict carries the grader's name. A grader with ``slow = True`` calls a computer
algebra system and runs only in worker processes; a hang there is ``unknown``, where the originals say "wrong" or
hang.

Each grader has ``name``, ``slow`` and ``grade(response, gold) -> (correct, extracted)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol


class ReferenceGrader(Protocol):
    name: str
    slow: bool

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        """Whether the response is accepted, and the answer found in it (None: none)."""


@cache
def _hendrycks() -> ReferenceGrader:
    from negpo.rewards.reference.hendrycks import HendrycksGrader

    return HendrycksGrader()


@cache
def _prm800k() -> ReferenceGrader:
    from negpo.rewards.reference.prm800k import Prm800kGrader

    return Prm800kGrader()


@cache
def _qwen() -> ReferenceGrader:
    from negpo.rewards.reference.qwen import QwenGrader

    return QwenGrader()


@cache
def _nsr() -> ReferenceGrader:
    from negpo.rewards.reference.nsr import NsrGrader

    return NsrGrader()


@cache
def _nsr_math() -> ReferenceGrader:
    from negpo.rewards.reference.nsr import NsrGrader

    return NsrGrader(extract_gold=True)


@cache
def _math_verify() -> ReferenceGrader:
    from negpo.rewards.reference.plain_math_verify import MathVerifyGrader

    return MathVerifyGrader()


REFERENCE_GRADERS: dict[str, Callable[[], ReferenceGrader]] = {
    "qwen": _qwen,
    "nsr": _nsr,
    "nsr_math": _nsr_math,
    "hendrycks": _hendrycks,
    "prm800k": _prm800k,
    "math_verify": _math_verify,
}
