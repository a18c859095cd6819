"""How the rows of a batch are laid out for the forward, so that little is computed on padding.

``packed`` places several rows one after another in one line of the network's input, with position ids that restart at
every row and no attention mask: transformers 5 reads the restarts as sequence boundaries and builds a block-diagonal
mask. Lines may be longer or shorter than the batch was; attention costs grow with the line, so the number of lines is
chosen by estimated cost and one line is used only where attention ignores the other blocks (FlashAttention).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

# Per token and layer, linear maps cost about 24 H² operations and attention over a line of C tokens 4 C H: C / (6 H).
_ATTENTION_SHARE = 6.0


@dataclass(frozen=True)
class Layout:
    """Network inputs (R, C) and, for every position of the batch (B, T), where it stands in them.

    ``place``: (B, T) int64 index into the R*C flattened positions, -1 for padding that is not computed.
    ``attention_mask`` is None for packed lines and (R, 1, C, C) for shared ones (negpo.logprobs.shared), where several
    positions of the batch may stand in the same place; ``position_ids`` is None where the model's own are right.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    place: Tensor

    @property
    def packed(self) -> bool:
        return self.attention_mask is None or self.attention_mask.ndim == 4


def padded_layout(input_ids: Tensor, attention_mask: Tensor) -> Layout:
    """The batch as it is. Left-padded rows get position ids that start at their first token."""
    left_padded = bool((attention_mask[:, 0] == 0).any())
    positions = (attention_mask.long().cumsum(1) - 1).clamp_(min=0) if left_padded else None
    place = torch.arange(input_ids.numel(), device=input_ids.device).view_as(input_ids)
    return Layout(input_ids, attention_mask, positions, place)


def packed_layout(input_ids: Tensor, attention_mask: Tensor, lines: list[list[int]]) -> Layout:
    """Rows ``lines[r]`` of the batch one after another in line r; the tail of a line is a sequence of its own."""
    real = attention_mask.bool()
    lengths = real.sum(1).tolist()
    width = max(sum(lengths[row] for row in line) for line in lines)
    line_start, starts = [0] * len(lengths), []
    for r, line in enumerate(lines):
        used = 0
        for row in line:
            line_start[row] = r * width + used
            starts.append(r * width + used)
            used += lengths[row]
        starts.append(r * width + min(used, width - 1)) if used < width else None
    device = input_ids.device
    inside = real.long().cumsum(1) - 1
    place = torch.where(real, inside + torch.tensor(line_start, device=device).unsqueeze(1), -1)
    flat_ids = input_ids.new_zeros(len(lines) * width)
    flat_ids[place[real]] = input_ids[real]
    positions = _restarting_positions(starts, len(lines) * width, device).view(len(lines), width)
    return Layout(flat_ids.view(len(lines), width), None, positions, place)


def _restarting_positions(starts: list[int], total: int, device: torch.device) -> Tensor:
    """0, 1, 2, ... from each start to the next; (total,)."""
    begin = torch.zeros(total, dtype=torch.long, device=device)
    index = torch.tensor(starts, device=device)
    begin[index] = index
    return torch.arange(total, device=device) - begin.cummax(0).values


def choose_lines(
    lengths: list[int], batch_width: int, hidden_size: int, *, single: bool = False
) -> list[list[int]] | None:
    """Rows per line at the least estimated cost, or None where the padded batch is at least as cheap.

    ``single`` asks for one line whatever attention would cost (FlashAttention's variable-length kernel).
    """
    n, total = len(lengths), sum(lengths)
    if total == n * batch_width:
        return None
    if single:
        return [list(range(n))]
    fewest = -(-total // max(max(lengths), 1))
    options = {r for r in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, fewest, fewest + 1, fewest + 2, n) if r <= n}
    plans = [_spread(lengths, r) for r in sorted(options)]
    costs = [
        line_cost(len(plan), max(sum(lengths[row] for row in line) for line in plan), hidden_size) for plan in plans
    ]
    best = min(range(len(plans)), key=costs.__getitem__)
    return plans[best] if costs[best] < line_cost(n, batch_width, hidden_size) else None


def line_cost(lines: int, width: int, hidden_size: int) -> float:
    return lines * width * (1.0 + width / (_ATTENTION_SHARE * hidden_size))


def _spread(lengths: list[int], n_lines: int) -> list[list[int]]:
    """Longest rows first, each into the emptiest line."""
    lines: list[list[int]] = [[] for _ in range(n_lines)]
    heap = [(0, r) for r in range(n_lines)]
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        used, r = heapq.heappop(heap)
        lines[r].append(row)
        heapq.heappush(heap, (used + lengths[row], r))
    return lines


def can_repack(attention_mask: Tensor, needed: Tensor) -> bool:
    """Whether every row's mask is one unbroken run and every needed position is inside it."""
    real = attention_mask.bool()
    starts = real.clone()
    starts[:, 1:] &= ~real[:, :-1]
    return bool((starts.sum(1) <= 1).all()) and not bool((needed & ~real).any())
