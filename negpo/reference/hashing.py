"""Content hashes of weights, tokenizers and encoded rows, so that a cache can never be used for something else."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

PEFT_PREFIX = "base_model.model."
PEFT_WRAPPED = ".base_layer."
ADAPTER_MARKS = (".lora_", ".modules_to_save.", ".ia3_", ".prompt_encoder.", ".vera_", ".oft_")


def hash_model(model: Any, *, adapters: bool = True) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and persistent buffer.

    Tensors are read one at a time, so the extra memory is one tensor on the CPU (and a whole one on the device where
    ZeRO-3 or FSDP has split it: all processes must call this). With ``adapters=False`` a PEFT model
    hashes like the plain model underneath: adapter tensors are left out and wrapper names are undone.
    """
    import torch

    from negpo.logprobs.tiles import full, gathered

    digest = hashlib.sha256()
    for name, tensor in sorted(_named_tensors(model, adapters), key=lambda item: item[0]):
        with gathered(tensor):
            value = full(tensor.detach()).cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 over what turns text into ids: the fast tokenizer's state (or the vocabulary) and the special ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps({name: str(value) for name, value in tokenizer.special_tokens_map.items()}, sort_keys=True)
    return hashlib.sha256(f"{state}|{special}".encode()).hexdigest()


def hash_rows(rows: Sequence[dict[str, list[int]]]) -> str:
    """SHA-256 over the ids and labels of encoded rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["input_ids"], row["labels"]], separators=(",", ":")).encode())
    return digest.hexdigest()


def _named_tensors(model: Any, adapters: bool) -> Iterable[tuple[str, Any]]:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "detach"):
            continue  # extra state of quantised layers: plain objects, derived from the tensors
        if adapters:
            yield name, tensor
        elif not any(mark in name for mark in ADAPTER_MARKS):
            plain = name.removeprefix(PEFT_PREFIX).replace(PEFT_WRAPPED, ".").replace(".original_module.", ".")
            yield plain, tensor
