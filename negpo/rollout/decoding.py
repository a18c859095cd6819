"""One batch of rows on its way through a decode loop, and the cache it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from negpo.models import evaluating as decoding_mode  # noqa: F401 (trainers still import it from here)
from negpo.rollout.base import EngineError, Request, Sample, Sampling
from negpo.rollout.sampling import draw, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROWTH = 64  # spare cache columns per reallocation: a copy every 64 tokens instead of every token


class Rows:
    """The rows of one batch while they are being decoded. B rows are in the batch, N = len(requests) started."""

    def __init__(
        self,
        requests: list[Request],
        sampling: Sampling,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
    ):
        self.requests, self.sampling, self.model, self.tokenizer = requests, sampling, model, tokenizer
        device, steps = model.device, sampling.max_new_tokens
        self.cache = growing_cache(model.config)
        self.rows = torch.arange(len(requests), device=device)  # (B,) positions in `requests`
        self.live = torch.ones(len(requests), dtype=torch.bool, device=device)  # (B,) False: finished, not yet dropped
        self.tokens = torch.zeros(len(requests), steps, dtype=torch.long, device=device)  # (N, steps)
        self.logprobs = torch.zeros(len(requests), steps, device=device)  # (N, steps)
        self.stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        self.noise = None
        if not sampling.greedy:
            noise = np.stack([uniforms(r.seed, steps) for r in requests])
            self.noise = torch.from_numpy(noise).to(device)  # (N, steps)

    def prefill(self) -> Tensor:
        """Run every distinct prompt once, then repeat its cache for its samples. Returns logits (B, V) float32."""
        prompts = list(dict.fromkeys(r.prompt_ids for r in self.requests))
        place = {ids: row for row, ids in enumerate(prompts)}
        input_ids, mask = left_pad(prompts, self.model.device)
        logits = self._run(input_ids, mask, (mask.cumsum(-1) - 1).clamp_min(0))
        owner = torch.tensor([place[r.prompt_ids] for r in self.requests], device=self.model.device)
        self.cache.reorder_cache(owner)  # type: ignore[arg-type]
        future = mask.new_ones(len(owner), self.sampling.max_new_tokens)
        self.mask = torch.cat([mask[owner], future], -1)  # (B, L + steps)
        self.padded = not bool(mask.all())
        self.columns = mask.shape[-1]
        self.position = mask.sum(-1)[owner]  # (B,) position of the next token
        return logits[owner]

    def take(self, logits: Tensor, step: int) -> list[tuple[int, str]]:
        """Draw token `step` of every row; returns (position in the batch, finish reason) of rows that end with it."""
        uniform = None if self.noise is None else self.noise[self.rows, step]
        self.drawn, logprobs = draw(logits, uniform, self.sampling)
        self.tokens[self.rows, step] = self.drawn
        self.logprobs[self.rows, step] = logprobs
        if not torch.isfinite(logprobs).all():
            row = int(self.rows[(~torch.isfinite(logprobs)).nonzero()[0, 0]])
            raise EngineError(
                f"the model's logits are not finite at token {step} of {self.requests[row]}: its weights are damaged "
                "(look for NaN in the last updates), or its dtype overflows."
            )
        stopped = torch.isin(self.drawn, self.stop_ids) & self.live
        if self.sampling.stop_strings:
            stopped |= self._ends_with_stop_string(step) & self.live
        finished = [(row, "stop") for row in stopped.nonzero().flatten().tolist()]
        if step + 1 == self.sampling.max_new_tokens:
            finished += [(row, "length") for row in (self.live & ~stopped).nonzero().flatten().tolist()]
        return finished

    def sample(self, row: int, step: int, reason: str) -> Sample:
        """The finished completion in batch position `row`, its last token at `step`."""
        origin = int(self.rows[row])
        request = self.requests[origin]
        logprobs = self.logprobs[origin, : step + 1].tolist() if self.sampling.logprobs else []
        tokens = self.tokens[origin, : step + 1].tolist()
        return Sample(request.prompt, request.index, tokens, logprobs, reason)  # type: ignore[arg-type]

    def drop(self, finished: Sequence[tuple[int, str]]) -> None:
        """Mark rows as finished and shrink the batch once an eighth of it is idle (shrinking copies the cache)."""
        if not finished:
            return
        self.live[[row for row, _ in finished]] = False
        idle = int((~self.live).sum())
        if idle < len(self.live) and idle * 8 < len(self.live):
            return
        keep = self.live.nonzero().flatten()
        self.rows, self.live, self.mask = self.rows[keep], self.live[keep], self.mask[keep]
        self.position, self.drawn = self.position[keep], self.drawn[keep]
        if len(keep):
            self.cache.reorder_cache(keep)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """One decoding step for the tokens just drawn. Returns logits (B, V) float32."""
        self.columns += 1
        # Without padding no mask is needed: one query token may look at every cached column.
        mask = self.mask[:, : self.columns] if self.padded else None
        logits = self._run(self.drawn[:, None], mask, self.position[:, None])
        self.position = self.position + 1
        return logits

    def _run(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _ends_with_stop_string(self, step: int) -> Tensor:
        """(B,) bool: the text of the last few tokens contains a stop string, so this step completed it."""
        # Every token adds at least a byte, except pieces of a split character: a few tokens of slack cover those.
        window = max(len(s.encode()) for s in self.sampling.stop_strings) + 4
        tails = self.tokens[self.rows, max(0, step + 1 - window) : step + 1].tolist()
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=False)  # type: ignore[union-attr]
        found = [any(stop in text for stop in self.sampling.stop_strings) for text in texts]
        return torch.tensor(found, device=self.rows.device)


class _GrowingLayer(DynamicLayer):
    """A cache layer that appends in place. `DynamicLayer` copies all keys and values for every new token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, d) keys and values; returns all of them as views (B, heads, columns, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: tuple[Tensor, ...] = key_states[:, :, :0], value_states[:, :, :0]
            self._used = 0
        start, self._used = self._used, self._used + key_states.shape[-2]
        if self._used > self._buffers[0].shape[-2]:
            self._buffers = tuple(_widen(b, start, self._used + GROWTH) for b in self._buffers)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._used] = new
        return self._expose()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep or repeat rows: row i becomes the old row `beam_idx[i]`."""
        if self.is_initialized:
            self._buffers = tuple(b.index_select(0, beam_idx) for b in self._buffers)
            self._expose()

    def _expose(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (b[:, :, : self._used] for b in self._buffers)
        return self.keys, self.values


def growing_cache(config: Any) -> DynamicCache:
    """A cache for the model's layer types, with the plain attention layers growing in place."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _widen(buffer: Tensor, used: int, columns: int) -> Tensor:
    wide = buffer.new_empty(*buffer.shape[:2], columns, buffer.shape[-1])
    wide[:, :, :used] = buffer[:, :, :used]
    return wide


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and 0/1 mask, both (P, L) int64. The filler id is 0 and never attended to, whatever 0 means to the model."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
