"""The language-model head of any HF causal LM: its module, its effective weight, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from negpo.logprobs.products import Products
from negpo.logprobs.tiles import LogitMap

_WRAPPED = ("module", "_fsdp_wrapped_module", "_orig_mod")


@dataclass(frozen=True)
class HeadSpec:
    """weight (V, H), bias (V,) or None; the model's logit is ``softcap * tanh(logit_scale * (h·w + b) / softcap)``.

    ``products``: precision of its matrix products; None to choose by the dtype of the states.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    products: Products | None = None

    def logit_map(self, temperature: float = 1.0) -> LogitMap:
        return LogitMap(self.logit_scale, self.softcap, temperature)


def unwrap(model: Any) -> Any:
    """The HF causal LM inside DDP, DeepSpeed, FSDP, ``torch.compile`` and PEFT wrappers."""
    while True:
        if isinstance(model, nn.DataParallel):
            raise ValueError("nn.DataParallel is not supported; start with `accelerate launch` to use several GPUs")
        # Wrappers first, by their child's name: DeepSpeed and FSDP answer for any attribute of what they wrap.
        wrapped = next((model._modules[name] for name in _WRAPPED if name in model._modules), None)
        if wrapped is not None:
            model = wrapped
        elif hasattr(model, "get_base_model"):
            if any(config.is_prompt_learning for config in model.peft_config.values()):
                raise ValueError("prompt-learning adapters change the sequence and are not supported; use LoRA")
            model = model.get_base_model()
        elif hasattr(model, "get_output_embeddings"):
            return model
        else:
            raise ValueError(f"{type(model).__name__} has no output embeddings; a causal language model is needed")


def head_module(model: nn.Module) -> Any:
    """The module that turns hidden states into logits (possibly wrapped by PEFT)."""
    base = unwrap(model)
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(base).__name__} has no output embeddings; a causal language model is needed")
    return head


def head_of(model: nn.Module) -> HeadSpec:
    """Head of ``model`` as tensors; gradients flow through them to whatever is trainable (weight, LoRA factors).

    Sharded parameters are returned as they are: call inside the model's forward, or let ``token_logprobs`` gather them.
    """
    scale, softcap = logit_constants(unwrap(model).config)
    weight, bias = _effective(head_module(model))
    if weight.is_meta:
        raise ValueError("the output embeddings are offloaded; load the model without CPU or disk offload of lm_head")
    return HeadSpec(weight, bias, scale, softcap)


def logit_constants(config: Any) -> tuple[float, float | None]:
    """(factor on the logits, soft cap) from a model config; every scoring call checks them against the model itself."""
    text = config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(text, name, None)
        if isinstance(value, int | float):
            return float(value), softcap
    scaling = getattr(text, "logits_scaling", None)
    # MiniCPM3 divides the hidden state before its head, where it is not our business.
    if scaling is None or text.model_type == "minicpm3":
        return 1.0, softcap
    return (float(scaling) if text.model_type == "hyperclovax" else 1.0 / scaling), softcap


def _effective(module: Any) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) with PEFT's ``modules_to_save`` and LoRA on the head taken into account."""
    if hasattr(module, "modules_to_save"):
        adapters = [] if module.disable_adapters else module.active_adapters
        return _effective(module.modules_to_save[adapters[0]] if adapters else module.original_module)
    if not hasattr(module, "base_layer"):
        return module.weight, module.bias
    weight, bias = _effective(module.base_layer)
    if module.disable_adapters or module.merged:
        return weight, bias
    for name in module.active_adapters:
        if name in getattr(module, "lora_A", {}):
            weight = weight + _lora_delta(module, name).to(weight.dtype)
    return weight, bias


def _lora_delta(module: Any, name: str) -> Tensor:
    """LoRA's share of the head weight, (V, H). It costs one extra copy of the head; leave lm_head out to save it."""
    if module.use_dora.get(name, False) or getattr(module, "lora_variant", {}).get(name) is not None:
        raise ValueError(
            "DoRA and other LoRA variants on lm_head are not supported; remove lm_head from target_modules"
        )
    dropout = module.lora_dropout[name]
    if module.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
        raise ValueError(
            f"lora_dropout = {dropout.p} on lm_head cannot be applied without full logits; set lora_dropout=0 or "
            "remove lm_head from target_modules"
        )
    with torch.autocast(module.lora_A[name].weight.device.type, enabled=False):
        return module.get_delta_weight(name)
