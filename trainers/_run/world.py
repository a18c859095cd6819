"""How many processes train together, against how many were started for it."""

import os
from typing import Any

from negpo.errors import ConfigError

EXPECTED = "NEGPO_NUM_PROCESSES"  # set by `negpo train --launch`


def settle_half_precision(arguments: Any) -> None:
    """Half precision where there is only a CPU: bfloat16 trains on it; float16 does not and is refused.

    transformers wants ``use_cpu`` said before it lets bf16 through; who asks for bf16 on such a machine has said it.
    """
    import torch  # the command line reads this module, and its help must not wait for torch

    if arguments.use_cpu or not torch.accelerator.is_available():
        if arguments.fp16 or arguments.fp16_full_eval:
            raise ConfigError("fp16 needs a GPU and this run is on a CPU; set bf16=true, or neither for float32")
        if arguments.bf16 or arguments.bf16_full_eval:
            if arguments.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
                raise ConfigError(
                    "bf16 under DeepSpeed needs a GPU (on a CPU transformers switches DeepSpeed off); leave bf16 out"
                )
            arguments.use_cpu = True


def name_cpu_plainly(use_cpu: bool) -> None:
    """Call before the device is chosen. accelerate names the devices of CPU ranks cpu:0, cpu:1, ...: torch.load and
    safetensors refuse those names, and no checkpoint of such a run could be resumed."""
    if use_cpu and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def check_world(found: int) -> None:
    """ConfigError when a launcher started more processes than ``found``, the number that exchange gradients.

    On a CPU accelerate quietly makes every process train alone, or starts one only, unless it is told the backend.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    wanted = int(os.environ.get(EXPECTED) or started)
    if found == wanted:
        return
    raise ConfigError(
        f"{wanted} processes were asked for, {started} started and {found} would train together. On CPUs start with "
        "negpo train --launch cpu --num-processes N, or pass --use_cpu true (DeepSpeed: --ddp_backend gloo instead)"
    )
