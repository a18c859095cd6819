"""Settings and checks that all trainers share, before ``transformers.TrainingArguments`` or one of TRL's configs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from negpo.errors import ConfigError
from negpo.trainers._run.script_arguments import ScriptArguments
from negpo.trainers._run.world import check_world, name_cpu_plainly, settle_half_precision


@dataclass
class RunConfig:
    """Mixin. ``choices`` lists the allowed values of settings that have a fixed few.

    Defaults that differ from ``TrainingArguments``: every step logged, bf16 autocast on a GPU that has it and never on
    a CPU.
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    script_arguments: ClassVar[type[ScriptArguments] | None] = None  # what `negpo train` reads for this method alone

    logging_steps: float = field(default=1, metadata={"help": "Log every this many optimiser steps."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast. Default: on where the GPU has it, off on a CPU."}
    )
    hang_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds without progress after which all ranks write their stacks to OUTPUT_DIR/stacks and the "
            "run ends with status 124. 0: never. Default: 4/5 of ddp_timeout; never in one process."
        },
    )

    def __post_init__(self) -> None:
        args: Any = self  # the fields of TrainingArguments are there, but not in this class
        if args.bf16 is None:
            args.bf16 = not args.fp16 and not args.use_cpu and torch.cuda.is_available() and _gpu_has_bf16()
        args.dataloader_pin_memory &= torch.cuda.is_available()
        self.validate()
        settle_half_precision(args)
        name_cpu_plainly(args.use_cpu)
        super().__post_init__()  # type: ignore[misc]
        check_world(args.world_size)
        # One device for each process: torch's DataParallel would double the batch and cannot run our forwards.
        args._n_gpu = min(args._n_gpu, 1)

    def validate(self) -> None:
        """Raise ConfigError for values and combinations that cannot be meant. Subclasses extend it."""
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported()
