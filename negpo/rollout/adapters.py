"""A LoRA adapter on its way to an engine: checked, written as a folder that vLLM loads, and read back layer by layer.

Only the factors travel, a few MB instead of the whole model, and the base is written by nobody. The scale of every
layer (alpha / r, alpha / sqrt(r) for rsLoRA, patterns) is folded into B in float32, so that the engine needs no rule of
its own: it sees a plain adapter with alpha = r.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError
from negpo.models import gathered
from negpo.rollout.weights import iter_weights

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """One layer's update B A; `b` carries the scale. a: (r, in), b: (out, r), float32 on the CPU."""

    path: str  # the layer's checkpoint name, e.g. model.layers.0.self_attn.q_proj
    a: Tensor
    b: Tensor


def active_adapter(model: nn.Module) -> str | None:
    """Name of the LoRA adapter that the model computes with; None without PEFT or with adapters switched off.

    Raises:
        ConfigError: several adapters are active at once.
    """
    peft = _peft_model(model)
    if peft is None:
        return None
    names = list(getattr(peft, "active_adapters", []))
    if len(names) > 1:
        raise ConfigError(f"adapters {names} are active together; an engine takes one. Activate one, or merge them.")
    return names[0] if names else None


def adapter_rank(model: nn.Module) -> int:
    """The largest rank of the active adapter's layers; 0 without one."""
    name = active_adapter(model)
    if name is None:
        return 0
    return max((layer.r[name] for _, layer in _layers(model) if name in layer.r), default=0)


def check_adapter(model: nn.Module, *, max_rank: int) -> None:
    """What an engine cannot take, by name.

    Raises:
        ConfigError: no LoRA adapter, a variant (DoRA), biases, fully trained modules beside it, LoRA on an embedding
            or head, or a rank above `max_rank`.
    """
    from peft.utils.other import ModulesToSaveWrapper

    name = active_adapter(model)
    if name is None:
        raise ConfigError("the engine was started for adapters, but the model has none; start it without adapter_rank")
    merge = "Use adapter_sync=merge"
    for path, module in _peft_model(model).named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise ConfigError(
                f"{path} is trained as a whole beside the adapter, which an adapter cannot carry. {merge}"
            )
    for path, layer in _layers(model):
        if name in layer.lora_variant:
            raise ConfigError(
                f"{path}: DoRA and other LoRA variants are not loaded by the engine. {merge} or use_dora=false"
            )
        if layer.lora_bias.get(name):
            raise ConfigError(f"{path}: lora_bias=True is not loaded by the engine. {merge} or lora_bias=False")
        if not hasattr(layer.get_base_layer(), "in_features"):
            raise ConfigError(
                f"{path}: LoRA on {type(layer.get_base_layer()).__name__} is not loaded by the engine. {merge}"
            )
        if path.rpartition(".")[2] in ("lm_head", "embed_tokens"):
            raise ConfigError(f"{path}: LoRA on the embedding or the head is not synced as an adapter. {merge}")
        if layer.r[name] > max_rank:
            raise ConfigError(
                f"{path} has rank {layer.r[name]}, the engine was started for ranks up to {max_rank}; start it with "
                f"adapter_rank={layer.r[name]}, lower lora_r, or use adapter_sync=merge"
            )


@torch.no_grad()
def iter_factors(model: nn.Module) -> Iterator[Factors]:
    """Every layer of the active adapter. Under ZeRO-3 all ranks must run the loop."""
    name = active_adapter(model)
    for path, layer in _layers(model):
        if name not in layer.r:
            continue
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        with gathered(a, b):
            yield Factors(path, _plain(a), _plain(b) * layer.scaling[name])


def iter_base(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights below the adapter, by checkpoint name; empty where the base is quantised and has no plain weights."""
    peft = _peft_model(model)
    if any(not p.is_floating_point() for p in peft.parameters()):
        return
    with peft.disable_adapter():
        yield from iter_weights(model)


def write_adapter(model: nn.Module, parent: Path, *, keep: bool = True) -> Path:
    """Write the adapter below `parent` and return the new folder, which gets its name when it is complete.

    Args:
        keep: False on ranks that only take part in gathering sharded parameters.
    """
    from safetensors.torch import save_file

    tensors = {}
    for layer in iter_factors(model):
        tensors[f"{PREFIX}{layer.path}.lora_A.weight"] = layer.a
        tensors[f"{PREFIX}{layer.path}.lora_B.weight"] = layer.b.contiguous()
    final = parent / f"adapter-{uuid.uuid4().hex[:12]}"
    if not keep:
        return final
    rank = max(t.shape[0] for name, t in tensors.items() if name.endswith("lora_A.weight"))
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": modules}
    unfinished = final.with_suffix(".part")
    unfinished.mkdir(parents=True)
    save_file(tensors, unfinished / "adapter_model.safetensors")
    (unfinished / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}), encoding="utf-8")
    os.replace(unfinished, final)
    return final


def folder_bytes(folder: Path) -> int:
    """Size of a hand-over, in bytes."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _plain(parameter: Any) -> Tensor:
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # FSDP2 shards are DTensors
    return whole.detach().to("cpu", torch.float32, copy=True)


def _peft_model(model: nn.Module) -> Any:
    from accelerate.utils import extract_model_from_parallel
    from peft import PeftModel

    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner if isinstance(inner, PeftModel) else None


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(checkpoint name, LoRA layer)."""
    from peft.tuners.lora import LoraLayer

    for path, module in _peft_model(model).get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield path, module
