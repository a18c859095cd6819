"""What an audit found, and what it leaves in its folder: ``audit.json`` and one ``items.jsonl`` a model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write, atomic_write_json, strict
from negpo.eval.attacks import AttackResult
from negpo.eval.audit.examples import worst_examples
from negpo.eval.audit.lines import GROUPS, OUTCOMES, Line
from negpo.eval.audit.measure import MEMBERS, Measured
from negpo.eval.audit.numbers import Numbers, roc_points
from negpo.eval.audit.require import Outcome
from negpo.eval.audit.resampling import Estimate

AUDIT_FILE = "audit.json"


@dataclass
class ModelAudit:
    """One model's measurement, numbers and verdict lines. ``warnings``: what a reader must know beside the numbers."""

    measured: Measured
    numbers: Numbers
    lines: list[Line] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.measured.checkpoint.label

    def count(self, group: str) -> dict[str, int]:
        """Lines of a group by outcome."""
        outcomes = [line.outcome for line in self.lines if line.kind.group == group]
        return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}

    def values(self) -> dict[str, float]:
        """Every number by name, those of attacks too, and by group the share of its lines with power that passed."""
        values = dict(self.numbers.summary.metrics)
        values |= {name: result.value for name, result in self.measured.attacks.items()}
        for group in GROUPS:
            counted = self.count(group)
            told = sum(counted.values()) - counted["no power"]
            values[group] = counted["pass"] / told if told else math.nan
        return values


@dataclass
class Audit:
    """The whole audit. ``models`` in the order given; ``outcomes`` of the conditions in ``--require``."""

    manifest: dict[str, Any]
    models: list[ModelAudit]
    target: ModelAudit
    retain: ModelAudit
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return all(outcome.met for outcome in self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "manifest": self.manifest,
            "models": [_model_dict(one, self.target, self.retain) for one in self.models],
            "target": _model_dict(self.target, self.target, self.retain),
            "retain": _model_dict(self.retain, self.target, self.retain),
            "requirements": [asdict(outcome) for outcome in self.outcomes],
        }

    def save(self, folder: Path) -> Path:
        """Write the items of every model, then ``audit.json``, whose presence says that the audit is complete."""
        for one in (*self.models, self.target, self.retain):
            lines = (json.dumps(strict(row), ensure_ascii=False, allow_nan=False) for row in _items(one))
            name = folder_name(one.label) if one.measured.role == "model" else f"{one.label} (control)"
            atomic_write(folder / "models" / name / "items.jsonl", "\n".join(lines) + "\n")
        return atomic_write_json(folder / AUDIT_FILE, self.as_dict())


def folder_name(label: str) -> str:
    """A label as a plain file name."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"


def _items(one: ModelAudit) -> list[dict[str, Any]]:
    rows = [dict(row) for rows in one.measured.rows.values() for row in rows]
    for row in rows:
        for attack, values in one.numbers.scores.get(row["set"], {}).items():
            row[f"mia_{attack}"] = float(values[row["row"]])
    for name, result in one.measured.attacks.items():
        rows += [{"set": f"attack {name}", "row": index, **item} for index, item in enumerate(result.per_item)]
    return rows


def _model_dict(one: ModelAudit, target: ModelAudit, retain: ModelAudit) -> dict[str, Any]:
    summary, checkpoint = one.numbers.summary, one.measured.checkpoint
    return {
        "label": one.label,
        "name": checkpoint.name,
        "role": one.measured.role,
        "sha256": checkpoint.sha256,
        "warnings": one.warnings,
        "metrics": {name: _number(value, one.numbers.estimates.get(name)) for name, value in summary.metrics.items()},
        "missing": summary.missing,
        "details": summary.details,
        "lines": [_line_dict(line) for line in one.lines],
        "groups": {group: one.count(group) for group in GROUPS},
        "attacks": {name: _attack_dict(result) for name, result in one.measured.attacks.items()},
        "roc": _rocs(one.numbers),
        "worst": worst_examples(one.measured, target.measured, retain.measured),
        "seconds": one.measured.seconds,
    }


def _number(value: float, estimate: Estimate | None) -> dict[str, float]:
    return {"value": value} if estimate is None else {"value": value, "low": estimate.low, "high": estimate.high}


def _line_dict(line: Line) -> dict[str, Any]:
    kind = {"group": line.kind.group, "metric": line.kind.metric, "title": line.kind.title, "type": line.kind.rule}
    sides = {name: _number(one.value, one) for name, one in (("retain", line.retain), ("target", line.target))}
    verdict = {name: getattr(line, name) for name in ("limit", "share", "outcome", "rule", "note")}
    return kind | _number(line.model.value, line.model) | verdict | sides


def _attack_dict(result: AttackResult) -> dict[str, Any]:
    """Without the items, which stand in their own file."""
    content = asdict(result)
    del content["per_item"]
    return content


def _rocs(numbers: Numbers) -> dict[str, list[tuple[float, float]]]:
    if not numbers.scores:
        return {}
    forget, holdout = (numbers.scores[name] for name in MEMBERS)
    return {attack: roc_points(values, holdout[attack]) for attack, values in forget.items()}
