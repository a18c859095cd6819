"""The two shared passes over one data set, and the gradient pass, dealt out over the ranks batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from negpo.eval.audit.sharding import Ranks
from negpo.eval.mia import gradient_norms
from negpo.eval.scoring import Batching, Progress, generate_texts, pad_token, score_items
from negpo.eval.tofu_items import Answer, Prompt


def score_answers(
    model: Any,
    tokenizer: Any,
    answers: Sequence[Answer],
    *,
    detailed: bool,
    mia_k: float,
    batching: Batching,
    ranks: Ranks,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One result per answer, in order: what :func:`negpo.eval.scoring.score_items` keeps of it.

    With ``detailed`` the answers marked so also get memorisation and membership statistics, from the same forward.
    """
    pad_id = pad_token(tokenizer, model)
    more = [detailed and answer.detailed for answer in answers]

    def work(batch: list[int]) -> list[dict[str, Any]]:
        flags = [more[index] for index in batch]
        items = [answers[index].item for index in batch]
        return score_items(model, items, pad_id, detailed=flags, k=mia_k, batching=batching, progress=progress)

    batches: list[list[int]] = []
    for wanted in (True, False):  # apart, since the statistics cost a second look at the vocabulary
        chosen = [index for index, flag in enumerate(more) if flag == wanted]
        split = batching.split([len(answers[index].item["input_ids"]) for index in chosen])
        batches += [[chosen[position] for position in batch] for batch in split]
    return _in_order(batches, ranks.map(work, batches))


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    batching: Batching,
    ranks: Ranks,
    progress: Progress | None = None,
) -> list[str]:
    """One greedy answer per prompt, in order."""

    def work(batch: list[int]) -> list[str]:
        return generate_texts(
            model,
            tokenizer,
            [prompts[index].ids for index in batch],
            max_new_tokens=[prompts[index].max_new_tokens for index in batch],
            batching=batching,
            progress=progress,
        )

    batches = batching.split([len(prompt.ids) for prompt in prompts])
    return _in_order(batches, ranks.map(work, batches))


def gradient_sizes(
    model: Any, answers: Sequence[Answer], *, seed: int, ranks: Ranks, progress: Progress | None = None
) -> list[float]:
    """Gradient norm of each answer's loss, in order; dropout, which the attack keeps active, is drawn per answer."""

    def work(index: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(seed + index)
            norm = float(gradient_norms(model, [answers[index].item])[0])
        if progress:
            progress(1)
        return norm

    return ranks.map(work, range(len(answers)))


def in_stage(report: Callable[[str, int, int], None] | None, stage: str, total: int, ranks: Ranks) -> Progress | None:
    """Progress of ``stage`` as seen from one rank, which does about ``total / world`` of the work."""
    if report is None:
        return None
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(total, done + count * ranks.world)
        report(stage, done, total)

    return advance


def _in_order(batches: list[list[int]], results: list[list[Any]]) -> list[Any]:
    placed: dict[int, Any] = {}
    for batch, values in zip(batches, results, strict=True):
        placed |= zip(batch, values, strict=True)
    return [placed[index] for index in range(len(placed))]
