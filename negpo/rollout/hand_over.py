"""One version of the weights as safetensors files in a folder that a server can read."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from torch import Tensor, nn

from negpo.rollout.weights import iter_weights

SHARD_BYTES = 2 << 30  # held in memory at a time


def write_weights(model: nn.Module, parent: Path, *, keep: bool = True) -> Path:
    """Write all (merged) weights below `parent` and return the new folder.

    The folder gets its final name when it is complete, so a reader never sees half a version.

    Args:
        keep: False on ranks that only take part in gathering sharded parameters.
    """
    from safetensors.torch import save_file

    final = parent / f"weights-{uuid.uuid4().hex[:12]}"
    unfinished = final.with_suffix(".part")
    if keep:
        unfinished.mkdir(parents=True)
    shard: dict[str, Tensor] = {}
    size = shards = 0
    for name, tensor in iter_weights(model):
        if not keep:
            continue
        if shard and size + tensor.nbytes > SHARD_BYTES:
            save_file(shard, unfinished / f"model-{shards:05d}.safetensors")
            shard, size, shards = {}, 0, shards + 1
        # A copy on the CPU: a gathered parameter is gone when the loop moves on.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    if keep:
        save_file(shard, unfinished / f"model-{shards:05d}.safetensors")
        os.replace(unfinished, final)
    return final
