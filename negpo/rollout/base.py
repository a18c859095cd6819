"""The interface every rollout engine keeps, and the arithmetic of per-sample seeds. Imports no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from negpo.errors import ConfigError, NegpoError

if TYPE_CHECKING:
    import torch
    from torch import nn

PromptKey = int | str
Pair = tuple[int, int]  # (prompt index, sample index)


class EngineError(NegpoError):
    """An engine gave up on a request after bounded retries. `finished` holds every sample that was complete by then."""

    def __init__(self, message: str, *, finished: Sequence[Sample] = ()):
        super().__init__(message)
        self.finished = list(finished)


class StaleWeightsError(EngineError):
    """The engine does not hold the trainer's weights. `layers` names those that differ, where the engine can tell."""

    def __init__(self, message: str, *, layers: Sequence[str] = ()):
        super().__init__(message)
        self.layers = list(layers)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Truncation follows vLLM's order: temperature, min_p, top_k, top_p. `temperature=0` is read as `greedy=True`.

    `logprobs` are those of the sampled tokens under softmax(logits / temperature) *before* truncation, the quantity a
    policy gradient needs; greedy decoding reports temperature 1. One engine cannot provide this in one corner and says
    so (see `vllm_engine`).

    `stop_token_ids=None` means the model's own end-of-sequence ids, `()` means none: only the length ends a sample.
    A sample contains the token that stopped it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    greedy: bool = False
    logprobs: bool = True

    def __post_init__(self) -> None:
        if self.temperature == 0:
            object.__setattr__(self, "greedy", True)
        if self.greedy:
            object.__setattr__(self, "temperature", 1.0)
        limits = {
            "temperature": self.temperature > 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p < 1,
            "n": self.n >= 1,
            "max_new_tokens": self.max_new_tokens >= 1,
        }
        for name, holds in limits.items():
            if not holds:
                raise ConfigError(
                    f"sampling: {name}={getattr(self, name)} is out of range. Use temperature >= 0, 0 < top_p <= 1, "
                    "top_k >= 0 (0 switches it off), 0 <= min_p < 1, n >= 1 and max_new_tokens >= 1."
                )

    @property
    def truncates(self) -> bool:
        """Whether tokens are sampled from less than the whole distribution, which biases importance ratios."""
        return not self.greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)

    def with_stop_ids(self, default: Sequence[int]) -> Sampling:
        """The same settings with `stop_token_ids=None` replaced by the model's own ids."""
        return self if self.stop_token_ids is not None else replace(self, stop_token_ids=tuple(default))


@dataclass(frozen=True)
class Sample:
    """One finished completion. `logprobs` has one entry per token, or is empty when it was not asked for."""

    prompt: int
    index: int
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"


OnSample = Callable[[Sample], None]


class RolloutEngine(Protocol):
    """What evaluation and RL need from an engine, whichever library runs the model."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """What the engine's model computes in."""
        ...

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        prompt_keys: Sequence[PromptKey] | None = None,
        wanted: Sequence[Pair] | None = None,
        on_sample: OnSample | None = None,
    ) -> list[list[Sample]]:
        """Draw `sampling.n` completions per prompt; one inner list per prompt, ordered by sample index.

        A sample's randomness depends on `(sampling.seed, prompt key, sample index)` only, so a run that was interrupted
        asks for what it lacks with `wanted` and gets the same samples. Keys default to the position in `prompt_ids`.
        `on_sample` is called as soon as a sample is complete, from the calling thread; an exception it raises ends
        the call.

        Raises:
            EngineError: the engine died or ran out of memory and retries did not help; names the requests.
            ConfigError: a prompt is empty or cannot fit, or a setting is beyond this engine.
        """
        ...

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs at temperature 1 of tokens 1, 2, ... of every sequence, as the engine's model sees them."""
        ...

    def sync(self, model: nn.Module) -> SyncReport:
        """Copy the trainer's weights in and prove that they arrived.

        Raises:
            StaleWeightsError: the engine's log-probs or layers still differ from the trainer's.
        """
        ...

    def stale_layers(self, model: nn.Module) -> list[str]:
        """Names of the trainer's weights that the engine holds in another version; empty where it cannot look."""
        ...

    def close(self) -> None:
        """Free the engine's memory and processes. Calling it twice is harmless."""
        ...


@dataclass(frozen=True)
class SyncReport:
    """What a verified sync measured. Gaps are |engine - trainer| over the probe tokens, in nats.

    `bytes_sent` counts the tensors handed over: every weight, or the adapter's factors alone.
    """

    max_gap: float
    mean_gap: float
    tolerance: float
    tokens: int
    seconds: float
    bytes_sent: int = 0


def request_seed(seed: int, prompt_key: PromptKey, sample_index: int) -> int:
    """63-bit seed of one sample: the same on every machine and engine, and unrelated for neighbouring inputs."""
    text = f"{seed}\x1f{type(prompt_key).__name__}\x1f{prompt_key}\x1f{sample_index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Request:
    """One completion to draw: where it belongs, what it continues, and its seed."""

    prompt: int
    index: int
    prompt_ids: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        return f"prompt {self.prompt} sample {self.index} ({len(self.prompt_ids)} prompt tokens)"


def plan_requests(
    prompt_ids: Sequence[Sequence[int]],
    sampling: Sampling,
    prompt_keys: Sequence[PromptKey] | None = None,
    wanted: Sequence[Pair] | None = None,
) -> list[Request]:
    """Every completion that `generate` was asked for, after checking what the caller passed."""
    keys = range(len(prompt_ids)) if prompt_keys is None else prompt_keys
    if len(keys) != len(prompt_ids):
        raise ConfigError(
            f"prompt_keys has {len(keys)} entries for {len(prompt_ids)} prompts; pass one key per prompt."
        )
    if len(set(keys)) != len(prompt_ids):
        raise ConfigError("prompt_keys repeats a key: two prompts would get the same random numbers. Make them unique.")
    empty = [position for position, ids in enumerate(prompt_ids) if len(ids) == 0]
    if empty:
        raise ConfigError(f"prompt {empty[0]} has no tokens; give it at least a beginning-of-sequence token.")
    pairs = (
        [(p, s) for p in range(len(prompt_ids)) for s in range(sampling.n)] if wanted is None else sorted(set(wanted))
    )
    outside = [pair for pair in pairs if not (0 <= pair[0] < len(prompt_ids) and 0 <= pair[1] < sampling.n)]
    if outside:
        raise ConfigError(
            f"wanted names (prompt, sample) {outside[0]}, but there are {len(prompt_ids)} prompts with n={sampling.n}."
        )
    ids = [tuple(map(int, row)) for row in prompt_ids]
    return [Request(p, s, ids[p], request_seed(sampling.seed, keys[p], s)) for p, s in pairs]


class Collector:
    """Gathers samples as they finish, hands each to `on_sample` once, and knows which requests are still open."""

    def __init__(self, requests: Sequence[Request], prompts: int, on_sample: OnSample | None):
        self._open = {(r.prompt, r.index): r for r in requests}
        self._prompts, self._on_sample = prompts, on_sample
        self.finished: list[Sample] = []

    def add(self, sample: Sample) -> None:
        # A retried batch may finish a sample again that was handed out before the failure.
        if self._open.pop((sample.prompt, sample.index), None) is None:
            return
        if not all(map(math.isfinite, sample.logprobs)):
            raise EngineError(
                f"a log-prob of prompt {sample.prompt} sample {sample.index} is not finite: the engine's weights are "
                "damaged, or its dtype overflows.",
                finished=self.finished,
            )
        self.finished.append(sample)
        if self._on_sample is not None:
            self._on_sample(sample)

    @property
    def open(self) -> list[Request]:
        return list(self._open.values())

    def result(self) -> list[list[Sample]]:
        rows: list[list[Sample]] = [[] for _ in range(self._prompts)]
        for sample in sorted(self.finished, key=lambda s: s.index):
            rows[sample.prompt].append(sample)
        return rows


def name_requests(requests: Sequence[Request], shown: int = 3) -> str:
    """`prompt 3 sample 0 (12 prompt tokens), ... and 5 more`, for error messages."""
    more = f" and {len(requests) - shown} more" if len(requests) > shown else ""
    return ", ".join(map(str, requests[:shown])) + more
