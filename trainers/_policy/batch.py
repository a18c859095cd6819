"""Rollouts as aligned tensors, and the plan that turns one rollout batch into micro-batches.

A rollout record is a dict of tensors whose first dimension is the local rows N. ``input_ids`` and ``labels`` are
(N, T), right-padded; every other two-dimensional tensor is (N, T-1) and belongs to ``labels[:, 1:]``; the rest is (N,).
"""

from typing import Any

import torch
from torch import Tensor

from negpo.data.qa import IGNORE

Record = dict[str, Tensor]
MicroBatch = dict[str, Any]  # a record of rows to train on, and the Reduction of their loss
WIDE = ("input_ids", "labels")  # (N, T); other token tensors are one narrower
EMPTY, DUMMY, REAL = 0, 1, 2  # kinds of micro-batch: nothing to run, a forward for the other ranks' sake, rows


def align_rows(output: Record, per_token: dict[str, Tensor]) -> Record:
    """TRL's left-padded prompts and right-padded completions as one right-padded block.

    ``output``: prompt_ids, prompt_mask (N, P), completion_ids, completion_mask (N, C). ``per_token``: (N, C) values of
    completion tokens. Returns input_ids, labels (N, T), lengths (N,) and each of ``per_token`` as (N, T-1) float32.
    """
    kept = torch.cat([output["prompt_mask"], output["completion_mask"]], 1).bool()
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    lengths = kept.sum(1)
    width = int(lengths.max())
    # A stable sort moves the real tokens to the front and keeps their order.
    order = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    real = torch.arange(width, device=ids.device) < lengths.unsqueeze(1)
    is_answer = torch.zeros_like(kept)
    is_answer[:, output["prompt_ids"].shape[1] :] = output["completion_mask"].bool()
    ids = torch.where(real, ids.gather(1, order), 0)
    record = {
        "input_ids": ids,
        "labels": torch.where(real & is_answer.gather(1, order), ids, IGNORE),
        "lengths": lengths,
    }
    for name, values in per_token.items():
        padded = torch.cat([values.new_zeros(output["prompt_ids"].shape), values], 1).gather(1, order)
        record[name] = torch.where(record["labels"] != IGNORE, padded.float(), 0.0)[:, 1:]
    return record


def take(record: Record, rows: Tensor) -> Record:
    """The given rows (R,), trimmed to the longest of them."""
    width = int(record["lengths"][rows].max())
    picked = {}
    for name, tensor in record.items():
        value = tensor[rows]
        picked[name] = value if value.ndim == 1 else value[:, : width if name in WIDE else width - 1].contiguous()
    return picked


def put(record: Record, rows: Tensor, other: Record) -> Record:
    """``record`` with ``rows`` replaced by the rows of ``other``; both are widened to the longer of the two."""
    width = max(record["input_ids"].shape[1], other["input_ids"].shape[1])
    merged = {}
    for name, tensor in record.items():
        left, right = (_widen(x, name, width) for x in (tensor, other[name]))
        merged[name] = left.clone().index_copy(0, rows, right)
    return merged


def _widen(tensor: Tensor, name: str, width: int) -> Tensor:
    if tensor.ndim == 1:
        return tensor
    missing = (width if name in WIDE else width - 1) - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing), value=IGNORE if name == "labels" else 0)


def attention_mask(record: Record) -> Tensor:
    """(N, T) int64, 1 on prompt and answer."""
    width = record["input_ids"].shape[1]
    return (torch.arange(width, device=record["lengths"].device) < record["lengths"].unsqueeze(1)).long()


def answer_mask(record: Record) -> Tensor:
    """(N, T-1) bool, True where an answer token is predicted."""
    return record["labels"][:, 1:] != IGNORE


def tokens_of(record: Record) -> Record:
    """Only what a forward reads."""
    return {name: record[name] for name in ("input_ids", "labels", "lengths", "group") if name in record}


def prompt_lengths(record: Record) -> Tensor:
    """(N,) tokens before the first labelled one: what the rows of a group have in common."""
    answers = record["labels"] != IGNORE
    return torch.where(answers.any(1), answers.int().argmax(1), 0)


def dummy_row(device: torch.device) -> Record:
    """The smallest row that a model can be run on: two tokens, the second labelled."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    labels = torch.tensor([[IGNORE, 0]], device=device)
    return {"input_ids": ids, "labels": labels, "lengths": torch.tensor([2], device=device)}


def by_length(rows: Tensor, record: Record, size: int) -> list[Tensor]:
    """``rows`` (R,) in micro-batches of at most ``size`` rows of similar length, the longest last."""
    ordered = rows[record["lengths"][rows].argsort(stable=True)]
    first = len(ordered) % size  # the short micro-batch gets the shortest rows
    return [part for part in (ordered[:first], *ordered[first:].split(size)) if len(part)]


def by_group(rows: Tensor, record: Record, size: int) -> list[Tensor]:
    """``rows`` (R,) in micro-batches of at most ``size`` rows that hold groups together where they fit."""
    parts: list[list[int]] = []
    groups: dict[int, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(int(record["group"][row]), []).append(row)
    for members in sorted(groups.values(), key=lambda rows: int(record["lengths"][rows].max())):
        for piece in (members[i : i + size] for i in range(0, len(members), size)):
            if parts and len(parts[-1]) + len(piece) <= size:
                parts[-1] += piece
            else:
                parts.append(piece)
    return [torch.tensor(part, device=rows.device) for part in parts]


def plan_updates(record: Record, updates: int, size: int, *, groups: bool = False) -> list[list[Tensor]]:
    """For every optimiser step the micro-batches of rows to run: live ones, sorted by length or kept in ``groups``.

    ``record`` needs lengths, live (N,) bool and group (N,) the global group number. Group g belongs to step g mod
    ``updates``: groups stay whole, and the assignment does not depend on the number of processes.
    """
    plans = []
    for update in range(updates):
        rows = (record["live"] & (record["group"] % updates == update)).nonzero().squeeze(1)
        plans.append((by_group if groups else by_length)(rows, record, size))
    return plans


def fill_slots(record: Record, parts: list[Tensor], forwards: int, slots: int) -> list[Record]:
    """The ``slots`` micro-batches of one optimiser step, the last ``forwards`` of which run the model on every process.

    Each has its ``kind``; those that are REAL hold one of ``parts``.
    """
    kinds = [EMPTY] * (slots - forwards) + [DUMMY] * (forwards - len(parts)) + [REAL] * len(parts)
    waiting = iter(parts)
    return [(take(record, next(waiting)) if kind == REAL else {}) | {"kind": torch.tensor(kind)} for kind in kinds]


def update_totals(record: Record, updates: int) -> Tensor:
    """(updates, 2) float64: answer tokens and rows that count in each step's normaliser (``selected`` ones)."""
    tokens = answer_mask(record).sum(1).double() * record["selected"]
    totals = torch.zeros(updates, 2, dtype=torch.float64, device=tokens.device)
    values = torch.stack([tokens, record["selected"].double()], 1)
    return totals.index_add(0, record["group"] % updates, values)


def repetition(token_ids: list[int], *, n: int = 8, shortest: int = 32) -> float | None:
    """Share of the n-grams of a completion that occurred before in it; None for one too short to say."""
    if len(token_ids) < shortest:
        return None
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams)


def loops(completions: list[list[int]], *, limit: float = 0.5) -> tuple[int, int]:
    """``(looping, judged)``: completions that mostly repeat themselves, among those long enough to judge."""
    values = [value for ids in completions if (value := repetition(ids)) is not None]
    return sum(value > limit for value in values), len(values)
