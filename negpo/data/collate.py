"""Padding. The attention mask comes from the true lengths, so a pad token that equals eos hides nothing."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from negpo.data.qa import IGNORE


def pad_batch(
    items: Sequence[dict[str, Any]],
    pad_id: int,
    *,
    side: Literal["right", "left"] = "right",
    compat: Literal["ou-0.1"] | None = None,
) -> dict[str, torch.Tensor]:
    """Stack items into ``input_ids`` (B, T), ``labels`` (B, T') and ``attention_mask`` (B, T), all int64.

    ``labels`` (padded with -100, absent when no item has them) keep their own length T': on generation items they are
    longer than the input. ``compat="ou-0.1"`` masks every position whose id equals ``pad_id``, prompt tokens included:
    the hole that open-unlearning punches when pad and eos are the same token.
    """
    if not items:
        raise ValueError("cannot pad an empty batch")
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', not {side!r}")
    batch = {"input_ids": _pad([item["input_ids"] for item in items], pad_id, side)}
    if compat == "ou-0.1":
        batch["attention_mask"] = (batch["input_ids"] != pad_id).long()
    else:
        batch["attention_mask"] = _pad([[1] * len(item["input_ids"]) for item in items], 0, side)
    if "labels" in items[0]:
        batch["labels"] = _pad([item["labels"] for item in items], IGNORE, side)
    return batch


def _pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for target, row in zip(out, rows, strict=True):
        where = slice(0, len(row)) if side == "right" else slice(len(target) - len(row), None)
        target[where] = torch.tensor(row, dtype=torch.long)
    return out
