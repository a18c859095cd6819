"""Forwards of frozen models while their weights are split over processes (DeepSpeed ZeRO-3, FSDP).

Under ZeRO-3 ``from_pretrained`` leaves every process with a piece of each weight, long before the Trainer wraps the
policy. A reference therefore runs inside an inference engine of its own, which gathers one layer at a time and needs
all processes to run the same number of forwards. FSDP shards when training starts: until then models are whole.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from negpo.compat import whole_model_for_generation
from negpo.errors import ConfigError
from negpo.logprobs.head import unwrap
from negpo.logprobs.model import supports_packing
from negpo.logprobs.shared import supports_sharing
from negpo.logprobs.tiles import gathered
from negpo.reference import hash_model


def is_zero3(accelerator: Any) -> bool:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def is_split(model: torch.nn.Module) -> bool:
    """Whether this process holds only pieces of the weights (ZeRO-3)."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def check_loading() -> None:
    """ConfigError when FSDP leaves all processes but the first without weights: a reference needs them before."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true":
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading is true: only the first process would load weights, and the reference is "
            "made from them before they are sharded. Set it to false, or use zero3"
        )


def settle_layouts(model: torch.nn.Module) -> None:
    """Find out on all processes together how rows can be packed.

    The answer takes a forward and is remembered. Asked for by one process alone, because only its rows would gain from
    packing, that forward would leave the others behind by one collective.
    """
    supports_packing(model)
    supports_sharing(model)


def whole(model: torch.nn.Module) -> AbstractContextManager:
    """Inside, every process has all weights of ``model``, as far as they are split. Enter and leave it together."""
    return gathered(*model.parameters())


@contextmanager
def whole_while_generating(wrapped: Any, accelerator: Any) -> Iterator[None]:
    """Inside, forwards of the training model need no other process, so each can decode as long as its answers are.

    ZeRO-3: weights gathered, hooks off. FSDP 2: every layer unsharded and kept so. Enter and leave it together.
    """
    shards = [module for module in wrapped.modules() if isinstance(module, FSDPModule)]
    if shards:  # the first forward decides what FSDP takes for the root, and decoding runs the model inside its adapter
        with torch.no_grad():
            wrapped(input_ids=torch.zeros(1, 1, dtype=torch.long, device=accelerator.device))
    with whole_model_for_generation(wrapped, accelerator, gather_deepspeed3_params=True):
        for module in shards:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for module in shards:
                module.set_reshard_after_forward(accelerator.state.fsdp_plugin.reshard_after_forward, recurse=False)
                module.reshard()


@contextmanager
def ready_to_score(model: Any, accelerator: Any) -> Iterator[Any]:
    """``model`` as something that can be called before training begins, on the accelerator's device.

    Under ZeRO-3 an inference engine for the time being; its hooks are gone afterwards.
    """
    if is_split(model):
        engine = inference_engine(model, accelerator)
        try:
            yield engine
        finally:
            engine.destroy()
        return
    home = next(model.parameters()).device  # the Trainer may leave a model on the CPU until it shards it
    stays = home == accelerator.device or getattr(model, "quantization_method", None) is not None
    if not stays:
        model.to(accelerator.device)
    try:
        yield model
    finally:
        if not stays:
            model.to(home)


def ready_for_steps(model: Any, accelerator: Any) -> Any:
    """A frozen model for a forward in every training step, sharded where the policy is sharded by ZeRO-3."""
    if is_zero3(accelerator):
        return inference_engine(model, accelerator)
    return model.to(accelerator.device)


def inference_engine(model: Any, accelerator: Any) -> Any:
    """A DeepSpeed engine without optimiser around ``model``, ZeRO-3 like the policy's."""
    import deepspeed

    given = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    dtypes = {parameter.dtype for parameter in model.parameters()}
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    # without these DeepSpeed insists on float32, with them it converts: only what is all of one kind already may say so
    config["bf16"] = {"enabled": dtypes == {torch.bfloat16}}
    config["fp16"] = {"enabled": dtypes == {torch.float16}}
    if given.get("offload_param", {}).get("device", "none") != "none":
        config["zero_optimization"]["offload_param"] = given["offload_param"]
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def frozen_copy(model: Any) -> Any:
    """A second model with the same weights. Pieces cannot be copied: a split model is loaded again from its source."""
    if not is_split(model):
        return copy.deepcopy(model)
    from transformers import AutoModelForCausalLM

    base = unwrap(model)
    settings = {"dtype": base.dtype, "attn_implementation": base.config._attn_implementation}
    try:
        twin = AutoModelForCausalLM.from_pretrained(base.config._name_or_path, **settings)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the reference model under ZeRO-3 is loaded from the policy's source: {error}") from error
    if hash_model(twin) != hash_model(model, adapters=False):
        raise ConfigError(
            f"the reference model under ZeRO-3 is loaded from {base.config._name_or_path}, whose weights are not those "
            "that training starts from. Save the starting model and pass its folder, as model or as ref_model"
        )
    return twin


def exchange(results: Iterable[tuple[int, Any]], accelerator: Any) -> list[tuple[int, Any]]:
    """What all processes have computed, on every process."""
    found: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(found, list(results))
    return [pair for part in found for pair in part]
