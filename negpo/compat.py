"""Importable but undocumented helpers of other libraries, each behind one function and one contract test."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_TRL_VOCAB_CHUNK = 32768


def has_trl_kernel() -> bool:
    """Whether TRL's log-probability function would run as a Triton kernel here (it also exists, slowly, on a CPU)."""
    from transformers.utils import is_triton_available

    try:
        from trl.kernels import ChunkedLogProbFunction  # noqa: F401
    except ImportError:
        return False
    return is_triton_available()


def trl_token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, logit_map: Any, return_entropy: bool
) -> tuple[Tensor, ...]:
    """``(logps,)`` or ``(logps, entropy)``, float32 (n,), from ``trl.kernels.ChunkedLogProbFunction`` (TRL 1.16).

    hidden (n, H), weight (V, H), labels (n,); logit_map has ``temperature``, ``softcap`` and ``scale``. Matrix products
    run in ``hidden.dtype``, sums in float32.
    """
    from trl.kernels import ChunkedLogProbFunction

    logps, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden,
        weight,
        bias,
        labels,
        logit_map.temperature,
        _TRL_VOCAB_CHUNK,
        logit_map.softcap,
        logit_map.scale,
        ("entropy",) if return_entropy else (),
    )
    return (logps, entropy) if return_entropy else (logps,)


def whole_model_for_generation(model, accelerator, gather_deepspeed3_params: bool):
    """Context in which a wrapped model can generate: unwrapped, gathered under ZeRO-3 (``trl.models``, TRL 1.16)."""
    from trl.models import unwrap_model_for_generation

    return unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather_deepspeed3_params)
