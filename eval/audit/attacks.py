"""The attacks of the full suite, and their results as estimates that can be compared between models."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np

from negpo.data.qa import QATemplate
from negpo.errors import NegpoError
from negpo.eval.attacks import ATTACKS, Attack, AttackData, AttackResult, Target, make_attack
from negpo.eval.audit.lines import LineKind
from negpo.eval.audit.resampling import Counts, Estimate, Resampler
from negpo.eval.audit.settings import AuditSettings

SHOTS, FOLDS = 4, 5  # fewer where the forget set is small: something must be left to measure


def audit_attacks(settings: AuditSettings, forget_rows: int) -> list[Attack]:
    """The attacks of the suite for a forget set of so many rows; none but in the full suite."""
    if not settings.attacked:
        return []
    small: dict[str, dict[str, int]] = {
        "prompting": {"shots": max(1, min(SHOTS, forget_rows - 1))},
        "linear_probe": {"folds": max(2, min(FOLDS, forget_rows // 2))},
    }
    common = {"max_new_tokens": settings.max_new_tokens, "batching": settings.batching}
    attacks = []
    for name in ATTACKS:
        known = {field.name for field in fields(make_attack(name))}  # type: ignore[arg-type]  # all are dataclasses
        shared = {key: value for key, value in common.items() if key in known}
        attacks.append(make_attack(name, **shared, **small.get(name, {})))
    return attacks


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
        return attack.run(Target(model, tokenizer, template), data, seed=seed).to_json()
    except NegpoError as error:
        return {"reason": str(error)}


def line_kind(attack: Attack) -> LineKind:
    """An attack as a verdict line: it may not bring back much more than it finds in the retain model."""
    return LineKind("robust", attack.name, attack.name.replace("_", " ").capitalize(), "leak")


def attack_estimate(result: AttackResult, resampler: Resampler) -> Estimate:
    """The result with draws on the audit's own resamples of the forget rows, paired between models."""
    measured = [row for row in result.per_item if "value" in row]  # relearning leaves out what it trained on
    rows = [row["index"] for row in measured]
    values = np.array([float(row["value"]) for row in measured])

    def statistic(counts: Counts) -> np.ndarray:
        chosen = counts["forget"][:, rows]
        return chosen @ values / np.maximum(chosen.sum(axis=1), 1)

    return Estimate(result.value, result.low, result.high, statistic(resampler.counts))
