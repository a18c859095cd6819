"""Rollout engines: one small interface, three real implementations, and a proof after every weight sync.

| engine | where | same samples in another batching |
|---|---|---|
| `transformers` | embedded default, CPU or GPU | same noise, last bits may differ; `deterministic=True`: same bits |
| `vllm` | in-process, GPU or the CPU build | same noise per request; kernels may round differently by batch |
| `vllm-server` | a running `vllm serve` | as `vllm` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from negpo.errors import ConfigError
from negpo.rollout.base import (
    EngineError,
    RolloutEngine,
    Sample,
    Sampling,
    StaleWeightsError,
    SyncReport,
    request_seed,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINES = ("transformers", "vllm", "vllm-server")

__all__ = [
    "ENGINES",
    "EngineError",
    "RolloutEngine",
    "Sample",
    "Sampling",
    "StaleWeightsError",
    "SyncReport",
    "make_engine",
    "request_seed",
]


def make_engine(
    name: str,
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> RolloutEngine:
    """Start an engine.

    Args:
        name: one of `ENGINES`.
        model: for `transformers` a module (decoded with in place, nothing is copied) or a checkpoint folder; for
            `vllm` a checkpoint folder; for `vllm-server` the server's address, `http://host:port`.
        tokenizer: needed for stop strings; its end-of-sequence id stops samples by default.
        options: keyword arguments of the engine's class.

    Raises:
        ConfigError: unknown name, or a model of the wrong kind for this engine.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine '{name}' does not exist; choose one of {', '.join(ENGINES)}.")
    if name == "transformers":
        from negpo.rollout.transformers_engine import TransformersEngine

        module = TransformersEngine.load(model) if isinstance(model, str) else model
        return TransformersEngine(module, tokenizer, **options)
    if not isinstance(model, str):
        wants = "the address of a running server" if name == "vllm-server" else "a checkpoint folder (save_pretrained)"
        raise ConfigError(f"engine '{name}' wants {wants} as its model, got {type(model).__name__}.")
    if name == "vllm":
        from negpo.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(model, tokenizer, **options)
    from negpo.rollout.vllm_server import VLLMServerEngine

    return VLLMServerEngine(model, tokenizer, **options)
