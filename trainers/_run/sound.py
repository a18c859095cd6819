"""Whether weights are numbers: asked before a checkpoint is sealed or a model saved, by one norm per tensor."""

from typing import Any

import torch

SHOWN = 3


def broken_weights(model: Any, accelerator: Any) -> str | None:
    """Names of trained tensors that hold NaN or infinity, or None. All processes call it together and agree.

    Of sharded weights every process looks at its own part.
    """
    parts = {name: _local(p) for name, p in model.named_parameters() if p.requires_grad}
    parts = {name: part for name, part in parts.items() if part.numel() and part.is_floating_point()}
    broken: list[str] = []
    if parts:
        norms = torch._foreach_norm(list(parts.values()), ord=float("inf"))
        finite = torch.stack([norm.float().isfinite().to(norms[0].device) for norm in norms]).tolist()
        broken = [name for name, good in zip(parts, finite, strict=True) if not good]
    count = torch.tensor(float(len(broken)), device=accelerator.device)
    if accelerator.num_processes > 1:
        count = accelerator.reduce(count, reduction="sum")
    if not count.item():
        return None
    shown = ", ".join(broken[:SHOWN]) or "tensors of another process"
    return shown + (f" and {len(broken) - SHOWN} others" if len(broken) > SHOWN else "")


def _local(parameter: Any) -> torch.Tensor:
    shard = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
    shard = shard.to_local() if hasattr(shard, "to_local") else shard  # FSDP 2
    return shard.detach()
