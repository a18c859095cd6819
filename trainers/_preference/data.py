"""Groups as a training set, and a scored batch with its views: pairs, lists, signs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from negpo.data.preference_batch import collate_groups, lists_of, pairs_of, take
from negpo.data.preference_encode import Group
from negpo.trainers._run.rows import Encoded

UNITS = ("groups", "pairs", "judged", "chosen", "rejected", "chosen_tokens")


@dataclass
class PreferenceDataset(torch.utils.data.Dataset):
    """Indexed by ``(epoch, index)`` like every offline set. ``reference(index, k)``: log-probs of one completion."""

    groups: list[Group]
    seed: int
    reference: Callable[[int, int], Any] | None = None
    rows: list[Encoded] = field(init=False)  # all completions one after the other, for caches and hashes

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Call after ``groups`` changed."""
        self.rows = [group.row(k) for group in self.groups for k in range(len(group))]
        starts = [0]
        for group in self.groups:
            starts.append(starts[-1] + len(group))
        self.starts = starts

    def use_cache(self, cache: Sequence[Any]) -> None:
        """``cache[i]`` belongs to ``rows[i]``."""
        self.reference = lambda index, k: cache[self.starts[index] + k]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index = key[1]
        group = self.groups[index]
        references = None
        if self.reference is not None:
            references = [self.reference(index, k) for k in range(len(group))]
        return {"index": index, "group": group, "references": references}


def collate(items: Sequence[dict[str, Any]], pad_id: int) -> dict[str, dict[str, Tensor]]:
    """``{"rows": ...}`` of ``collate_groups`` plus ``index`` (G,). Nested, so that no top-level ``labels`` exists."""
    references = None if items[0]["references"] is None else [item["references"] for item in items]
    batch = collate_groups([item["group"] for item in items], pad_id, references)
    batch["index"] = torch.tensor([item["index"] for item in items])
    return {"rows": batch}


def unit_counts(rows: dict[str, Tensor]) -> Tensor:
    """(6,) float64 in the order of UNITS."""
    sign = rows["sign"]
    tokens = (rows["labels"][sign > 0, 1:] != -100).sum()
    sizes = [tokens.new_tensor(size) for size in (len(rows["source"]), len(pairs_of(rows["group"], sign)))]
    return torch.stack([*sizes, (sign != 0).sum(), (sign > 0).sum(), (sign < 0).sum(), tokens]).double()


@dataclass
class Scored:
    """R completions of G groups with their log-probs: ``logps``, ``mask``, ``ref_logps`` (R, T-1); ``group``, ``sign``,
    ``score`` (R,); ``real`` (R, T) bool, True on what is not padding; ``hidden`` (R, T, H) for methods that use states.
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor | None
    group: Tensor
    sign: Tensor
    score: Tensor
    groups: int
    real: Tensor
    hidden: Tensor | None = None

    @cached_property
    def pairs(self) -> Tensor:
        """(N, 2) rows of all (chosen, rejected) pairs."""
        return pairs_of(self.group, self.sign)

    def side(self, column: int) -> tuple[Tensor, Tensor]:
        """Log-probs and mask (N, T-1) of the chosen (0) or rejected (1) rows of the pairs."""
        rows = self.pairs[:, column]
        return self.logps[rows], self.mask[rows]

    def ref_side(self, column: int) -> Tensor:
        return self.ref_at(self.pairs[:, column])

    def lists(self, chosen: Tensor | None = None) -> Tensor:
        """(G, K) rows of each group (of those where ``chosen`` (R,) is True), -1 where a group has fewer."""
        chosen = torch.ones_like(self.group, dtype=torch.bool) if chosen is None else chosen
        return lists_of(self.group, chosen, self.groups)

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and mask (*rows.shape, T-1); nothing where an index is -1."""
        return take(self.logps, rows), take(self.mask, rows)

    def ref_at(self, rows: Tensor) -> Tensor:
        if self.ref_logps is None:
            raise ValueError("this method has no reference; has_reference must be True")
        return take(self.ref_logps, rows)
