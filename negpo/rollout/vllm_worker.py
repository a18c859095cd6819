"""What runs inside a vLLM worker: taking new weights, and telling which layers hold old ones.

This file and `vllm_engine` are the only places that touch vLLM's private parts (written against 0.31; the names are
checked by a contract test). `SyncExtension` is mixed into vLLM's worker through its `worker_extension_cls` option, in
this process or, for a server, with `--worker-extension-cls negpo.rollout.vllm_worker.SyncExtension`.

The trap this file is about: a CPU build packs every linear layer's weight into a kernel of its own. `reload_weights`
packs again, except for a tied `lm_head`, which silently goes on computing with the weights of the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError

Weights = Iterable[tuple[str, Tensor]]

# A packed kernel's response to a random vector against the trainer's weights, relative; float32 sums round at 1e-6,
# half precision outputs at 2^-9 and 2^-12.
RESPONSE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}


class SyncExtension:
    """Methods that `collective_rpc` can call by name. The names are prefixed: they join vLLM's own worker class."""

    model_runner: Any

    def negpo_load(self, weights: Weights | str) -> None:
        """Replace all weights by `weights`: an iterable in this process, or a folder of safetensors files."""
        weights = read_folder(weights) if isinstance(weights, str) else weights
        model = self.model_runner.get_model()
        if any(hasattr(module, "cpu_linear") for module in model.modules()):
            self.model_runner.reload_weights(weights_iterator=weights)
            repack_kept_weights(model)
        else:
            model.load_weights(weights)

    def negpo_stale_layers(self, weights: Weights | str) -> list[str]:
        """Names of the given weights that this worker holds in another version."""
        weights = read_folder(weights) if isinstance(weights, str) else weights
        with torch.no_grad():
            return stale_layers(self.model_runner.get_model(), weights)

    def negpo_stale_adapter(self, adapter_id: int, folder: str) -> list[str]:
        """Names of the layers whose factors in the slot of `adapter_id` (0: the newest) are not those in `folder`."""
        manager = self.model_runner.lora_manager._adapter_manager
        adapter_id = adapter_id or max(manager.list_adapters(), default=0)
        if adapter_id not in manager.lora_index_to_id:
            return [f"adapter {adapter_id} (not loaded)"]
        slot = manager.lora_index_to_id.index(adapter_id)
        with torch.no_grad():
            return stale_factors(self.model_runner.get_model(), dict(read_folder(folder)), slot)

    def negpo_dtype(self) -> str:
        """`float32`, `bfloat16` or `float16`: what this worker computes in."""
        return str(self.model_runner.dtype).removeprefix("torch.")


def read_folder(folder: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors files, one at a time.

    Raises:
        ConfigError: no such file on the worker's machine.
    """
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no .safetensors file here; trainer and server must share this folder.")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict: it cannot be iterated)
                yield name, file.get_tensor(name)


def repack_kept_weights(model: nn.Module) -> None:
    """Pack again every CPU layer that kept its plain weight beside the packed one: embeddings and tied heads."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    module: Any
    for module in model.modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def stale_layers(model: nn.Module, weights: Weights) -> list[str]:
    """Compare the trainer's weights with a vLLM model's, layer by layer.

    A plain parameter is compared bit by bit in the engine's dtype. A packed one cannot be read back: the layer answers
    a random vector, and the trainer's weight answers the same one. Layers split over several GPUs, and names that
    vLLM's model does not have, are left to the log-prob probe.
    """
    fused = {part: whole for whole, parts in getattr(model, "packed_modules_mapping", {}).items() for part in parts}
    order = {
        part: parts.index(part) for parts in getattr(model, "packed_modules_mapping", {}).values() for part in parts
    }
    modules: dict[str, Any] = dict(model.named_modules())
    head = _tied_head(model)
    stale = []
    for name, tensor in weights:
        path, _, leaf = name.rpartition(".")
        parent, _, part = path.rpartition(".")
        module = modules.get(f"{parent}.{fused[part]}" if part in fused else path)
        module = getattr(module, "base_layer", module)  # an engine started for adapters wraps its layers
        if module is None or getattr(module, "tp_size", 1) > 1:
            continue
        start = sum(module.output_partition_sizes[: order[part]]) if part in fused else 0
        if not _holds(module, leaf, tensor, start):
            stale.append(name)
        is_embedding = module is modules.get("model.embed_tokens")
        if is_embedding and head is not None and head is not module and not _holds(head, leaf, tensor, 0):
            stale.append("lm_head.weight")
    return stale


def stale_factors(model: nn.Module, factors: dict[str, Tensor], slot: int) -> list[str]:
    """Compare PEFT-named factors with the slot of vLLM's stacked buffers that computes them, bit by bit in its dtype.

    The rest of the slot must be zero: a longer factor of an earlier adapter would still be added.
    """
    mapping = getattr(model, "packed_modules_mapping", {})
    place = {part: (whole, parts.index(part)) for whole, parts in mapping.items() for part in parts}
    modules: dict[str, Any] = dict(model.named_modules())
    stale = []
    for name, tensor in factors.items():
        path, _, kind = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        parent, _, part = path.rpartition(".")
        whole, index = place.get(part, (part, 0))
        module: Any = modules.get(f"{parent}.{whole}") or modules.get(path)
        if not hasattr(module, "lora_a_stacked"):
            stale.append(path)
            continue
        if module.tp_size > 1:
            continue
        stacked = (module.lora_a_stacked if kind == "A" else module.lora_b_stacked)[index][slot, 0]
        expected = torch.zeros_like(stacked)
        expected[: tensor.shape[0], : tensor.shape[1]] = tensor.to(stacked)
        if not torch.equal(stacked, expected):
            stale.append(path)
    return sorted(set(stale))


def _tied_head(model: Any) -> Any:
    return getattr(model, "lm_head", None) if model.config.tie_word_embeddings else None


def _holds(module: Any, leaf: str, trainer: Tensor, start: int) -> bool:
    """Whether rows `start` to `start + len(trainer)` of a module's parameter are the trainer's."""
    own = getattr(module, leaf)
    rows = slice(start, start + trainer.shape[0])
    # An embedding is packed too, but only looked up; its tied head is another module and checked on its own.
    is_lookup = hasattr(module, "num_embeddings") and not type(module).__name__.endswith("LMHead")
    if own.numel() and (is_lookup or leaf != "weight" or not hasattr(module, "cpu_linear")):
        return torch.equal(own[rows], trainer.to(own))
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, trainer.shape[1], generator=generator).to(own)
    answer = module.cpu_linear(probe, own, None)[0, rows].double()
    expected = probe[0].double() @ trainer.to(own).double().T
    return bool((answer - expected).norm() <= RESPONSE_TOLERANCE[own.dtype] * expected.norm())
