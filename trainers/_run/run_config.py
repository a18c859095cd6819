"""Settings and checks that all trainers share, before ``transformers.TrainingArguments`` or one of TRL's configs."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from negpo.errors import ConfigError, NegpoError
from negpo.models import brief
from negpo.trainers._run.adamw import ROUNDINGS
from negpo.trainers._run.precision import WEIGHTS, check_precision
from negpo.trainers._run.script_arguments import ScriptArguments
from negpo.trainers._run.settings import INHERITED, Rule, check_settings
from negpo.trainers._run.typed import check_types
from negpo.trainers._run.world import check_world, name_cpu_plainly, settle_half_precision


@dataclass
class RunConfig:
    """Mixin. ``choices`` lists the allowed values of settings that have a fixed few.

    Defaults that differ from ``TrainingArguments``: every step logged, bf16 autocast on a GPU that has it and never on
    a CPU.
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    inherited: ClassVar[dict[str, Rule]] = INHERITED  # fields with a rule: see settings.py
    script_arguments: ClassVar[type[ScriptArguments] | None] = None  # what `negpo train` reads for this method alone

    logging_steps: float = field(default=1, metadata={"help": "Log every this many optimiser steps."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast. Default: on where the GPU has it, off on a CPU."}
    )
    weights_dtype: str = field(
        default="float32",
        metadata={
            "help": "dtype of trained weights, whatever the checkpoint's: float32, or bfloat16 without float32 copies "
            "(two thirds of the memory; watch update/kept)."
        },
    )
    bf16_rounding: str = field(
        default="nearest",
        metadata={
            "help": "weights_dtype=bfloat16: how updates enter the weights: nearest (small ones are lost), stochastic, "
            "or kahan (what was lost is added to the next step)."
        },
    )
    hang_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds without progress after which all ranks write their stacks to OUTPUT_DIR/stacks and the "
            "run ends with status 124. 0: never. Default: 4/5 of ddp_timeout; never in one process."
        },
    )

    changed_on_resume: list[str] | None = field(
        default=None,
        metadata={
            "help": "Settings that a resumed run may have changed, by name; all others that enter the objective must "
            "be those of the checkpoint."
        },
    )

    def __post_init__(self) -> None:
        args: Any = self  # the fields of TrainingArguments are there, but not in this class
        _undo_parser(args)
        check_types(self)
        check_settings(self)
        if args.bf16 is None:
            args.bf16 = not args.fp16 and not args.use_cpu and torch.cuda.is_available() and _gpu_has_bf16()
        args.dataloader_pin_memory &= torch.cuda.is_available()
        self.validate()
        settle_half_precision(args)
        name_cpu_plainly(args.use_cpu)
        with plain_errors():
            super().__post_init__()  # type: ignore[misc]
        check_world(args.world_size)
        # One device for each process: torch's DataParallel would double the batch and cannot run our forwards.
        args._n_gpu = min(args._n_gpu, 1)

    def validate(self) -> None:
        """Raise ConfigError for values and combinations that cannot be meant. Subclasses extend it."""
        choices = self.choices | {"weights_dtype": WEIGHTS, "bf16_rounding": ROUNDINGS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        check_precision(self)
        check_packages(self)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What transformers and TRL say about a setting becomes one message of ours."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError, OSError) as error:
        if isinstance(error, NegpoError):
            raise
        raise ConfigError(f"the settings are refused: {brief(error)}") from error


def _undo_parser(args: Any) -> None:
    """Defaults that the command line's parser turns into other values of the same meaning."""
    if getattr(args, "debug", "") is None:
        args.debug = ""
    if getattr(args, "include_num_input_tokens_seen", "no") is False:
        args.include_num_input_tokens_seen = "no"


def check_packages(args: Any) -> None:
    """ConfigError for an optimiser or a tracker whose package is not installed."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(part in optimizer for part in ("paged", "8bit", "bnb")) and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"optim={optimizer} needs bitsandbytes: pip install 'negpo[quantization]', or set optim=adamw_torch (the "
            "same update without paging)"
        )
    asked = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    known = [*INTEGRATION_TO_CALLBACK, "all", "none"]
    for name in asked:
        if name not in known:
            raise ConfigError(f"report_to={name} is not known; choose among {', '.join(known)}")
        if name not in ("all", "none") and name not in get_available_reporting_integrations():
            raise ConfigError(f"report_to={name}: that package is not installed. pip install it, or set report_to=none")


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported()
