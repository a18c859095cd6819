"""One version of the weights as safetensors files in a folder that a server can read."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

SHARD_BYTES = 2 << 30  # held in memory at a time


def write_weights(weights: Iterable[tuple[str, Tensor]], parent: Path, *, keep: bool = True) -> Path:
    """Write `weights` (of `iter_weights`, say) below `parent` and return the new folder.

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
    for name, tensor in weights:
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
