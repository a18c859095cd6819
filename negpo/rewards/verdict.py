"""What a grader says about one response."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["correct", "wrong", "unknown"]

DEFAULT_GRADER = "negpo/1"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One graded response.

    ``status`` is ``"correct"``, ``"wrong"`` or ``"unknown"``. Unknown means that nobody looked long enough: a timeout,
    a killed worker, a comparison beyond the size limits. It must never be counted as wrong.
    ``reason`` says in words why. ``extracted`` is the answer text found in the response (None if there is none),
    ``source`` the step of the extraction ladder that found it. ``kind`` is the kind of the gold answer, ``mode`` and
    ``grader`` name the rules that were applied, ``seconds`` is the wall-clock time of the decision.
    """

    status: Status
    reason: str
    extracted: str | None = None
    source: str | None = None
    kind: str | None = None
    mode: str = "default"
    grader: str = DEFAULT_GRADER
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        return self.status == "correct"

    @property
    def known(self) -> bool:
        return self.status != "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON lines."""
        return asdict(self)
