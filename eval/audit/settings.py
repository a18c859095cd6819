"""What an audit measures and what its verdicts tolerate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.eval.scoring import Batching

Suite = Literal["quick", "standard", "full"]
SUITES: tuple[Suite, ...] = ("quick", "standard", "full")


@dataclass(frozen=True)
class AuditSettings:
    """One audit.

    suite: ``quick`` is probability, ROUGE, truth ratio, forget quality and utility; ``standard`` adds memorisation and
    membership inference; ``full`` adds the attacks.

    leak_margin: share of what the target knows beyond the retain model that an unlearned model may keep. A margin in
    units of the controls' difference, as in non-inferiority trials, means the same for a probability, a ROUGE value or
    an AUC, and a target that is no better than the retain model cannot be passed or failed by it.
    utility_margin: share of the retain model's value that may be lost on what must be preserved.
    alpha: level of the KS test of forget quality. confidence: of all intervals, two-sided.
    resamples: bootstrap resamples of the rows, shared by all models so that differences are paired.

    seed: of the bootstrap and of the attacks. mia_k: share of tokens in Min-K%. dtype: in which the caller loads the
    models. limit: first rows of every set only.
    """

    suite: Suite = "standard"
    leak_margin: float = 0.2
    utility_margin: float = 0.1
    alpha: float = 0.05
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    mia_k: float = 0.4
    dtype: str = "auto"
    limit: int | None = None
    max_length: int = 512
    max_new_tokens: int = 200
    template: QATemplate | None = None
    batching: Batching = field(default_factory=Batching)

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ConfigError(f"suite={self.suite!r} is not one of {', '.join(SUITES)}")
        for name in ("leak_margin", "utility_margin", "alpha", "confidence", "mia_k"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is a share: above 0 and below 1")
        for name, least in (("resamples", 100), ("max_new_tokens", 1), ("limit", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}")

    @property
    def detailed(self) -> bool:
        """Whether memorisation and membership inference are measured."""
        return self.suite != "quick"

    @property
    def attacked(self) -> bool:
        return self.suite == "full"

    def describe(self) -> dict[str, Any]:
        """All settings that change numbers or verdicts, for the manifest."""
        names = ("suite", "leak_margin", "utility_margin", "alpha", "confidence", "resamples", "seed", "mia_k", "limit")
        return {name: getattr(self, name) for name in (*names, "dtype", "max_length", "max_new_tokens")}
