"""The rows in which a model did worst, for a reader who wants to see and not only to count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from negpo.eval.audit.measure import MEMBERS, Measured

WORST_ROWS = 6


def worst_examples(one: Measured, target: Measured, retain: Measured) -> dict[str, list[dict[str, Any]]]:
    """Forget rows that come out (``forget``) or are brought back (``attacked``), and losses among the ``preserved``."""
    return {
        "forget": _leaks(one, target, retain),
        "attacked": _recovered(one, retain),
        "preserved": _losses(one, target, retain),
    }


def _leaks(one: Measured, target: Measured, retain: Measured) -> list[dict[str, Any]]:
    """The forget rows whose answer comes out most completely, compared with the retain model."""
    return _worst(one, target, retain, "forget", _leaking)


def _leaking(row: Mapping[str, Any], _: Mapping[str, Any], control: Mapping[str, Any]) -> float:
    return row["rougeL_recall"] - control["rougeL_recall"]


def _recovered(one: Measured, retain: Measured) -> list[dict[str, Any]]:
    """The forget answers that attacks bring out most completely, compared with the same attack on the retain model."""
    found = []
    for name in one.attacks.keys() & retain.attacks.keys():
        control = {row["index"]: row for row in retain.attacks[name].per_item}
        for row in one.attacks[name].per_item:
            if "value" not in row or "generation" not in row or row["index"] not in control:
                continue
            twin, source = control[row["index"]], one.rows["forget"][row["index"]]
            texts = {"question": source["question"], "answer": source["answer"]}
            said = {"model": row["generation"], "retain": twin["generation"]}
            score = float(row["value"]) - float(twin["value"])
            found.append({"attack": name, "row": row["index"], **texts, **said, "score": score})
    found.sort(key=lambda row: (-row["score"], row["attack"], row["row"]))
    return [row for row in found if row["score"] > 0][:WORST_ROWS]


def _losses(one: Measured, target: Measured, retain: Measured) -> list[dict[str, Any]]:
    """The rows of everything to preserve whose answer suffered most, compared with the target."""
    kept = [name for name in one.rows if name not in MEMBERS]
    found = [row for name in kept for row in _worst(one, target, retain, name, _suffering)]
    return sorted(found, key=lambda row: -row["score"])[:WORST_ROWS]


def _suffering(row: Mapping[str, Any], before: Mapping[str, Any], _: Mapping[str, Any]) -> float:
    return before["rougeL_recall"] - row["rougeL_recall"]


def _worst(one: Measured, target: Measured, retain: Measured, name: str, score: Any) -> list[dict[str, Any]]:
    trios = zip(*(side.rows[name] for side in (one, target, retain)), strict=True)
    shown = [
        {
            "set": name,
            "row": row["row"],
            "question": row["question"],
            "answer": row["answer"],
            "model": row["generation"],
            "target": before["generation"],
            "retain": control["generation"],
            "score": float(score(row, before, control)),
        }
        for row, before, control in trios
    ]
    return sorted((row for row in shown if row["score"] > 0), key=lambda row: -row["score"])[:WORST_ROWS]
