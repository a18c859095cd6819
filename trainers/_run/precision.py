"""Which precision weights are trained in: one rule for every trainer.

Weights are float32 whatever the checkpoint is stored in, and products run in bfloat16 under autocast where ``bf16`` is
on. ``weights_dtype=bfloat16`` trains bfloat16 weights themselves: less memory, and most of small updates is rounded
away unless ``bf16_rounding`` says otherwise. float16 weights are refused: their updates under- and overflow.
"""

import logging
import os
from typing import Any

import torch
from torch import nn

from negpo.errors import ConfigError
from negpo.models import unwrap
from negpo.trainers._run.adamw import ROUNDINGS, RoundedAdamW

logger = logging.getLogger(__name__)

WEIGHTS = ("float32", "bfloat16")
ADAMW = ("adamw_torch", "adamw_torch_fused")
LOST_TOO_MUCH = 0.9  # a warning below this share of the update


def check_precision(args: Any) -> None:
    """ConfigError for settings of a config that contradict each other."""
    if args.weights_dtype == "float32":
        if args.bf16_rounding != ROUNDINGS[0]:
            raise ConfigError(
                f"bf16_rounding={args.bf16_rounding} would have no effect: float32 weights are not rounded. Set "
                "weights_dtype=bfloat16, or leave it out"
            )
        return
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in ADAMW:
        raise ConfigError(
            f"weights_dtype=bfloat16 with optim={optimizer}: only {ADAMW[0]} has float32 arithmetic for bfloat16 "
            "weights here. Set optim=adamw_torch, or weights_dtype=float32"
        )
    if args.fp16:
        raise ConfigError("fp16 autocast does not go with weights_dtype=bfloat16; set bf16=true or neither")
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        raise ConfigError(
            "weights_dtype=bfloat16 under DeepSpeed: it keeps float32 master weights itself. Leave weights_dtype out; "
            "its bf16 setting decides what the model computes in"
        )


def loading_options(args: Any, *, adapter: bool) -> dict[str, Any]:
    """``model_init_kwargs`` with the dtype that the rule says. With an ``adapter`` the base is frozen, and may be
    loaded in any dtype but float16.

    Raises ConfigError for a dtype that contradicts ``weights_dtype``.
    """
    options: dict[str, Any] = dict(args.model_init_kwargs or {})
    asked = [_name(options.pop(key)) for key in ("dtype", "torch_dtype") if options.get(key) is not None]
    dtype = asked[0] if asked else args.weights_dtype
    if dtype == "float16":
        raise ConfigError(
            "dtype=float16: float16 weights are not trained (updates under- and overflow). Leave dtype out for float32 "
            "weights with autocast (bf16=true), or set weights_dtype=bfloat16"
        )
    frozen = adapter or "quantization_config" in options
    if frozen:
        return options | {"dtype": dtype}
    if dtype not in ("auto", args.weights_dtype):
        raise ConfigError(
            f"dtype={dtype} contradicts weights_dtype={args.weights_dtype}. Set weights_dtype={dtype} to train such "
            "weights themselves, or leave dtype out: autocast (bf16=true) computes in bfloat16 on float32 weights"
            if dtype in WEIGHTS
            else f"dtype={dtype} is not known; choose one of auto, {', '.join(WEIGHTS)}"
        )
    return options | {"dtype": args.weights_dtype}


def settle_weights(model: Any, args: Any) -> Any:
    """``model`` with its trained weights in ``args.weights_dtype``: a checkpoint's or an object's own is not kept.

    Of a model with an adapter only the adapter is cast. Weights that DeepSpeed has partitioned stay: it keeps float32
    masters. Raises ConfigError for a frozen base in float16.
    """
    wanted = getattr(torch, args.weights_dtype)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    if any(hasattr(p, "ds_id") for p in parameters):
        return model
    adapter = hasattr(model, "peft_config") or getattr(model, "quantization_method", None) is not None
    if adapter and any(p.dtype == torch.float16 for p in parameters):
        raise ConfigError("the base model is in float16; load it in float32 or bfloat16 (dtype)")
    others = {str(p.dtype).removeprefix("torch.") for p in parameters if p.dtype != wanted and p.requires_grad}
    if not others:
        return model
    logger.info("trained weights are cast from %s to %s", ", ".join(sorted(others)), args.weights_dtype)
    if adapter:
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.data = parameter.data.to(wanted)
        return model
    model.to(wanted)
    unwrap(model).config.dtype = wanted  # what is saved says what it is
    return model


def optimizer_for(args: Any, cls: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The optimiser's class and arguments; bfloat16 weights get one with float32 arithmetic."""
    if args.weights_dtype != "bfloat16":
        return cls, options
    kept = {name: options[name] for name in ("lr", "betas", "eps") if name in options}
    return RoundedAdamW, kept | {"rounding": args.bf16_rounding, "seed": args.seed}


class UpdateLog:
    """``update/kept`` of runs on bfloat16 weights, and one warning when too little of the update arrives."""

    def __init__(self, args: Any):
        self._args, self._told = args, False

    def drain(self, optimizer: Any) -> dict[str, float]:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        if not isinstance(inner, RoundedAdamW) or (kept := inner.drain()) is None:
            return {}
        if kept < LOST_TOO_MUCH and not self._told:
            self._told = True
            logger.warning(
                "bfloat16 weights: %.0f %% of the update rounds away (update/kept %.2f, bf16_rounding=%s). Set "
                "bf16_rounding=stochastic or kahan, or weights_dtype=float32",
                100 * (1 - kept),
                kept,
                self._args.bf16_rounding,
            )
        return {"update/kept": kept}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def trained_dtype(model: nn.Module) -> str:
    """The dtype of the weights that are trained, of the first where there are several."""
    dtype = next((p.dtype for p in model.parameters() if p.requires_grad), torch.float32)
    return _name(dtype)
