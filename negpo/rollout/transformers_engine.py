"""The embedded engine: a transformers model, a batched decode loop, no second copy of the weights.

Rows are sorted by prompt length and left-padded with explicit masks. The samples of a prompt share its prefill, the
key-value cache grows in place, and finished rows leave the batch. Given the model that is being trained, the engine
decodes with those very modules (LoRA adapters included) and `sync` has nothing to copy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from negpo.errors import ConfigError
from negpo.models import evaluating, unwrap
from negpo.rollout.attention import grouped_attention
from negpo.rollout.base import (
    Collector,
    EngineError,
    OnSample,
    Pair,
    PromptKey,
    Request,
    Sample,
    Sampling,
    SyncReport,
    name_requests,
    plan_requests,
)
from negpo.rollout.decoding import Rows
from negpo.rollout.probe import Probe, score_tokens
from negpo.rollout.weights import copy_weights, iter_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersEngine:
    """Generates with a transformers causal language model.

    Args:
        model: the module to decode with, wrapped (DDP, PEFT) or plain. It is used in place: its training flags are
            restored after every call.
        tokenizer: needed for stop strings and for an end-of-sequence id the model's config does not name.
        max_rows: most completions decoded together.
        cache_bytes: most memory for keys and values; default a quarter of what is free.
        retries: how often a batch is halved and tried again after running out of memory.
        deterministic: decode and score every sample alone. Matrix products round differently by batch shape, so this
            is the only way to samples and log-probs that are bit for bit the same in any company, on any number of
            processes (with equal threads, device and versions). It costs what batching gains.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int = 256,
        cache_bytes: int | None = None,
        retries: int = 2,
        deterministic: bool = False,
    ):
        self.model, self.tokenizer = unwrap(model), tokenizer
        self.max_rows, self.retries = (1 if deterministic else max_rows), retries
        self.deterministic = deterministic
        self._cache_bytes = cache_bytes
        self._config = model.config.get_text_config(decoder=True)

    @staticmethod
    def load(path: str) -> PreTrainedModel:
        """A checkpoint in float32 on a CPU, in bfloat16 on a GPU.

        Raises:
            ConfigError: the folder is missing or holds no causal language model.
        """
        from transformers import AutoModelForCausalLM

        cuda = torch.cuda.is_available()
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if cuda else torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model '{path}' cannot be loaded: {error}") from error
        return model.cuda() if cuda else model  # type: ignore[call-arg]

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        prompt_keys: Sequence[PromptKey] | None = None,
        wanted: Sequence[Pair] | None = None,
        on_sample: OnSample | None = None,
    ) -> list[list[Sample]]:
        """See `RolloutEngine.generate`. Log-probs are float32, untruncated, at the sampling temperature."""
        sampling = sampling.with_stop_ids(
            stop_ids_of(getattr(self.model, "generation_config", None), self._config, self.tokenizer)
        )
        requests = plan_requests(prompt_ids, sampling, prompt_keys, wanted)
        self._check(requests, sampling)
        collector = Collector(requests, len(prompt_ids), on_sample)
        max_rows, failures = self.max_rows, 0
        while collector.open:
            try:
                with evaluating(self.model), grouped_attention(self._config):
                    for batch in self._batches(collector.open, sampling, max_rows):
                        self._decode(batch, sampling, collector)
                        failures = 0
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                failures += 1
                if failures > self.retries:
                    raise EngineError(
                        f"transformers engine: out of memory {failures} times, last with {max_rows} rows, while "
                        f"drawing {name_requests(collector.open)}. Lower max_rows, max_new_tokens or n. {error}",
                        finished=collector.finished,
                    ) from error
                max_rows = max(1, max_rows // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return collector.result()

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `RolloutEngine.score`."""
        if self.deterministic:
            return [row for ids in token_ids for row in score_tokens(self.model, [ids])]
        return score_tokens(self.model, token_ids)

    def sync(self, model: nn.Module) -> SyncReport:
        """Nothing to copy when the trainer trains the engine's own module; another model is copied in and proven."""
        if unwrap(model) is self.model:
            return SyncReport(max_gap=0.0, mean_gap=0.0, tolerance=0.0, tokens=0, seconds=0.0)
        started = time.perf_counter()
        sent = copy_weights(model, self.model)
        return Probe.for_model(model).verify(self, model, started=started, bytes_sent=sent)

    def stale_layers(self, model: nn.Module) -> list[str]:
        """See `RolloutEngine.stale_layers`. Parameters are compared bit by bit in the engine's dtype."""
        own = dict(self.model.named_parameters())
        pairs = ((name, own[name], tensor.to(own[name])) for name, tensor in iter_weights(model))
        return [name for name, engine, trainer in pairs if not torch.equal(engine, trainer)]

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; sets the tolerance of the probe."""
        return self.model.dtype

    def close(self) -> None:
        """Let go of the model. The trainer's own module is of course left alone."""
        self.model = None  # type: ignore[assignment]

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        limit = getattr(self._config, "max_position_embeddings", None)
        longest = max(requests, key=lambda r: len(r.prompt_ids), default=None)
        if longest is not None and limit and len(longest.prompt_ids) + sampling.max_new_tokens > limit:
            raise ConfigError(
                f"{longest} and max_new_tokens={sampling.max_new_tokens} exceed the model's {limit} positions. "
                "Shorten the prompt or lower max_new_tokens."
            )
        if sampling.stop_strings and self.tokenizer is None:
            raise ConfigError("stop_strings need a tokenizer; pass one to the engine or use stop_token_ids.")

    def _batches(self, requests: Sequence[Request], sampling: Sampling, max_rows: int) -> Iterator[list[Request]]:
        """Requests by prompt length, cut where a batch would exceed the rows or the cache memory."""
        budget = self._cache_bytes or _free_bytes(self.model.device) // 4
        per_token = _cache_bytes_per_token(self._config, self.model.dtype)
        batch: list[Request] = []
        for request in sorted(requests, key=lambda r: (len(r.prompt_ids), r.prompt, r.index)):
            columns = len(request.prompt_ids) + sampling.max_new_tokens  # sorted: the newest row is the longest
            if batch and (len(batch) == max_rows or (len(batch) + 1) * columns * per_token > budget):
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _decode(self, requests: list[Request], sampling: Sampling, collector: Collector) -> None:
        """Draw one batch to its end."""
        state = Rows(requests, sampling, self.model, self.tokenizer)
        logits = state.prefill()
        for step in range(sampling.max_new_tokens):
            finished = state.take(logits, step)
            for row, reason in finished:
                collector.add(state.sample(row, step, reason))
            state.drop(finished)
            if not state.rows.numel():
                return
            logits = state.forward()


def stop_ids_of(*sources: Any) -> list[int]:
    """End-of-sequence ids of a generation config, a config and a tokenizer together, whichever there are."""
    found: dict[int, None] = {}
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        for token in ids if isinstance(ids, (list, tuple)) else [ids]:
            if token is not None:
                found[int(token)] = None
    return list(found)


def _cache_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30  # systems that do not tell (macOS): assume a laptop


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CPU allocations fail with a plain RuntimeError; only its text tells it from a bug."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate memory" in text
