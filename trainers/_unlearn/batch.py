"""Nested batches on the device: what a part holds, how much of it there is, and how parts become one forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Rows = dict[str, torch.Tensor]
UNITS = ("rows", "tokens", "positions")


@dataclass
class Part:
    """Scored rows of one kind: ``logps``, ``mask``, ``ref_logps`` (B, T-1); ``row_id`` (B,).

    ``value``, ``constant`` (B, T): the method's streamed statistic at the states of its positions, ``value[:, t]``
    belonging to ``logps[:, t]``; None where the method has none. ``labels`` (B, T) as in the batch.
    """

    logps: torch.Tensor
    mask: torch.Tensor
    ref_logps: Any  # None where the objective needs no reference
    row_id: torch.Tensor
    labels: Any = None
    value: Any = None
    constant: Any = None


def counts(rows: Rows) -> torch.Tensor:
    """(3,) float64 in the order of UNITS: rows, labelled tokens, all tokens without padding."""
    labelled, real = rows["labels"][:, 1:] != -100, rows["attention_mask"]
    n = torch.tensor(len(real), device=real.device)
    return torch.stack([n, labelled.sum(), real.sum()]).double()


def count(rows: Rows, unit: str) -> torch.Tensor:
    return counts(rows)[UNITS.index(unit)]


def concatenate(parts: list[Rows], pad_id: int) -> Rows:
    """Rows of all parts below each other, right-padded to the longest: input_ids, attention_mask, labels (B, T)."""
    width = max(part["input_ids"].shape[1] for part in parts)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": -100}
    pad = torch.nn.functional.pad
    return {
        name: torch.cat([pad(part[name], (0, width - part[name].shape[1]), value=value) for part in parts])
        for name, value in fill.items()
    }


def single_rows(rows: Rows) -> list[Rows]:
    """Batches of one row each, without their padding."""
    lengths = rows["attention_mask"].sum(1).tolist()
    names = ("input_ids", "attention_mask", "labels")
    return [
        {name: rows[name][i : i + 1, :length] for name in names} | {"row_id": rows["row_id"][i]}
        for i, length in enumerate(lengths)
    ]


def name_rows(part: str, rows: Sequence[int | float]) -> str:
    """``forget row(s) 3, 8``, the first eight of them."""
    return f"{part} row(s) {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
