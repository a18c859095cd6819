"""Groups to tensors: every completion is a row, pairs and lists are indices into the rows."""

from collections.abc import Sequence
from typing import Any

import torch

from negpo.data.collate import pad_batch
from negpo.data.preference_encode import Group
from negpo.data.qa import IGNORE

Tensors = dict[str, torch.Tensor]


def collate_groups(groups: Sequence[Group], pad_id: int, references: Sequence[Sequence[Any]] | None = None) -> Tensors:
    """R rows of G groups, group after group.

    ``input_ids``, ``attention_mask``, ``labels`` (R, T) int64, right-padded; ``group`` (R,) index into the batch;
    ``sign`` (R,); ``score`` (R,) float32, NaN where there is none; ``shared`` (R,) tokens at the front that are the
    whole prompt of the group (0 where it was cut); ``source`` (G,) row of the data file. ``references[g][k]``, the
    log-probs of the labels of completion k, become ``ref_logps`` (R, T-1) float32.
    """
    rows = [group.row(k) for group in groups for k in range(len(group))]
    batch = pad_batch(rows, pad_id)
    members = [(place, group, k) for place, group in enumerate(groups) for k in range(len(group))]
    nan = float("nan")
    batch["group"] = torch.tensor([place for place, _, _ in members])
    batch["sign"] = torch.tensor([group.signs[k] for _, group, k in members])
    batch["score"] = torch.tensor([nan if group.scores[k] is None else group.scores[k] for _, group, k in members])
    batch["shared"] = torch.tensor([0 if any(group.cuts) else len(group.prompt_ids) for _, group, _ in members])
    batch["source"] = torch.tensor([group.source for group in groups])
    if references is not None:
        mask = batch["labels"][:, 1:] != IGNORE
        batch["ref_logps"] = torch.zeros(mask.shape, dtype=torch.float32)
        values = [torch.tensor(values) for group in references for values in group]
        batch["ref_logps"][mask] = torch.cat(values).float()
    return batch


def pairs_of(group: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """(N, 2) row indices of all (preferred, dispreferred) pairs within groups, in order."""
    better = (group.unsqueeze(1) == group.unsqueeze(0)) & (sign.unsqueeze(1) > 0) & (sign.unsqueeze(0) < 0)
    return better.nonzero()


def lists_of(group: torch.Tensor, chosen: torch.Tensor, groups: int) -> torch.Tensor:
    """(G, K) row indices of the rows of each group where ``chosen`` (R,) is True, -1 where a group has fewer."""
    members = [((group == place) & chosen).nonzero().squeeze(1) for place in range(groups)]
    width = max(1, max(map(len, members)))
    out = group.new_full((groups, width), -1)
    for place, rows in enumerate(members):
        out[place, : len(rows)] = rows
    return out


def take(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``values`` (R, ...) at ``rows`` (any shape); where an index is -1: zeros (False for masks)."""
    picked = values[rows.clamp(min=0)]
    present = (rows >= 0).view(*rows.shape, *[1] * (values.ndim - 1))
    return torch.where(present, picked, torch.zeros((), dtype=values.dtype, device=values.device))
