"""The trainer's weights by checkpoint name, one at a time, with LoRA folded in out of place.

Merging in place and unmerging again moves a bfloat16 base a little at every sync (largest element 1.5 times the mean
absolute weight after 100 syncs of a tiny model). Here W + scale * B A is a new tensor and the base is never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError
from negpo.models import full, gathered, unwrap


@torch.no_grad()
def iter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (checkpoint name, tensor) for every parameter; a tied one once, under its embedding's name.

    Under ZeRO-3 parameters are gathered one by one: every rank must run the loop, and a tensor is only whole until the
    next one is asked for. Use or copy it at once.

    Raises:
        ConfigError: adapters that cannot be folded in (DoRA and other LoRA variants, LoRA on a tied embedding,
            other PEFT methods) or a quantised base.
    """
    base = unwrap(model)
    owners: dict[int, int] = {}
    for _, parameter in base.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    seen: set[int] = set()
    for name, sources, combine in _entries(base, "", owners):
        if id(sources[0]) in seen:
            continue
        seen.add(id(sources[0]))
        if not sources[0].is_floating_point():
            raise ConfigError(f"{name} is quantised ({sources[0].dtype}); engines need a floating-point base model.")
        with gathered(*sources):
            merged = combine()
            yield name, full(merged.detach())  # FSDP2 shards are DTensors


class Counted:
    """Weights on their way to an engine, and how many bytes went by."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]):
        self._weights, self.bytes = weights, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._weights:
            self.bytes += tensor.nbytes
            yield name, tensor


def copy_weights(source: nn.Module, target: nn.Module) -> int:
    """Write the source's (merged) weights into a transformers module of the same architecture, in its own dtype.

    Returns the number of bytes read.

    Raises:
        ConfigError: a name or shape exists on one side only.
    """
    into = dict(unwrap(target).named_parameters())
    missing = set(into)
    weights = Counted(iter_weights(source))
    for name, tensor in weights:
        if name not in into or into[name].shape != tensor.shape:
            found = tuple(into[name].shape) if name in into else "nothing of that name"
            raise ConfigError(f"engine model: no place for {name} {tuple(tensor.shape)}, found {found}.")
        into[name].data.copy_(tensor)
        missing.discard(name)
    if missing:
        raise ConfigError(f"engine model: the trainer has no weights for {sorted(missing)[:3]}.")
    return weights.bytes


def _entries(module: Any, prefix: str, owners: dict[int, int]) -> Iterator[tuple]:
    """(name, parameters to gather, function that returns the tensor) below `module`, depth first."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        chosen = module.original_module if module.disable_adapters else _active_copy(module)
        yield from _entries(chosen, prefix, owners)
        return
    if isinstance(module, LoraLayer):
        yield from _lora_entries(module, prefix, owners)
        return
    if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        raise ConfigError(
            f"{prefix}: {type(module).__name__} cannot be folded into the weights; train with plain LoRA."
        )
    for name, parameter in module.named_parameters(recurse=False):
        yield _join(prefix, name), [parameter], lambda p=parameter: p
    for name, child in module.named_children():
        yield from _entries(child, _join(prefix, name), owners)


def _lora_entries(module: Any, prefix: str, owners: dict[int, int]) -> Iterator[tuple]:
    """Entries of a LoRA layer: the base layer's parameters, its weight plus the active adapters' updates."""
    base = module.get_base_layer()
    active = [] if module.disable_adapters else [a for a in module.active_adapters if a in module.scaling]
    active = [a for a in active if a not in module.merged_adapters]
    variants = [a for a in active if a in module.lora_variant]
    if variants:
        raise ConfigError(
            f"{prefix}: adapter '{variants[0]}' is a LoRA variant (DoRA or another), which is not a plain sum of base "
            "and B A; train with use_dora=False, or merge it into the checkpoint first."
        )
    if any(module.lora_bias.get(a) for a in active):
        raise ConfigError(f"{prefix}: lora_bias=True cannot be folded into the weights; train with lora_bias=False.")
    for name, parameter in base.named_parameters(recurse=False):
        if name != "weight" or not active:
            yield _join(prefix, name), [parameter], lambda p=parameter: p
            continue
        if owners[id(parameter)] > 1:
            raise ConfigError(
                f"{prefix} is a tied embedding with LoRA on one of its two uses; an engine with tied weights cannot "
                "hold that. Leave embed_tokens and lm_head out of target_modules, or untie them."
            )
        factors = [p for n, p in module.named_parameters() if n.split(".")[0] in module.adapter_layer_names]
        yield _join(prefix, name), [parameter, *factors], lambda p=parameter: _merged(p, module, active)


def _merged(weight: Tensor, module: Any, adapters: Sequence[str]) -> Tensor:
    """W + sum of scale * B A as a new tensor. Summed in the wider dtype and rounded once."""
    total = weight.data
    for adapter in adapters:
        total = total + module.get_delta_weight(adapter)
    return total.to(weight.dtype)


def _active_copy(wrapper: Any) -> nn.Module:
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
