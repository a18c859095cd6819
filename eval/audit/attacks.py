"""The attacks of the full suite, and their results as estimates that can be compared between models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from negpo.data.qa import QATemplate
from negpo.errors import NegpoError
from negpo.eval.attacks import Attack, AttackResult
from negpo.eval.attacks.base import AttackData
from negpo.eval.attacks.quantise import Quantise
from negpo.eval.audit.lines import LineKind
from negpo.eval.audit.resampling import Counts, Estimate, Resampler
from negpo.eval.audit.settings import AuditSettings


def audit_attacks(settings: AuditSettings) -> list[Attack]:
    """The attacks of the suite, most expensive first; none but in the full suite."""
    if not settings.attacked:
        return []
    limits: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "batching": settings.batching}
    return [Quantise(bits=8, **limits), Quantise(bits=4, **limits)]


def attack_identity(attack: Attack, seed: int) -> dict[str, Any]:
    """What decides an attack's numbers beside model and data; batches do not."""
    settings = asdict(attack)  # type: ignore[call-overload]  # every attack is a dataclass of its settings
    settings.pop("batching", None)
    return {"attack": attack.name, "settings": settings, "seed": seed}


def attack_or_reason(
    attack: Attack, model: Any, tokenizer: Any, data: AttackData, template: QATemplate, seed: int
) -> dict[str, Any]:
    """The attack's result as JSON; where the data lacks what it needs, ``{"reason": …}``, so that the rest goes on."""
    try:
        return attack.run(model, tokenizer, data, template, seed=seed).to_json()
    except NegpoError as error:
        return {"reason": str(error)}


def line_kind(attack: Attack) -> LineKind:
    """An attack as a verdict line: it may not bring back much more than it finds in the retain model."""
    return LineKind("robust", attack.name, attack.name.replace("_", " ").capitalize(), "leak")


def attack_estimate(result: AttackResult, resampler: Resampler) -> Estimate:
    """The result with draws on the audit's own resamples of the forget rows, paired between models."""
    rows = [row["index"] for row in result.per_item]
    values = np.array([float(row["value"]) for row in result.per_item])

    def statistic(counts: Counts) -> np.ndarray:
        chosen = counts["forget"][:, rows]
        return chosen @ values / np.maximum(chosen.sum(axis=1), 1)

    return Estimate(result.value, result.low, result.high, statistic(resampler.counts))
