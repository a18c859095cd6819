"""Settings of the trainers on stored rows, and the contradictions that are refused before a model is loaded."""

import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from negpo.errors import ConfigError
from negpo.trainers._run.world import check_world, name_cpu_plainly, settle_half_precision


@dataclass
class OfflineConfig(TrainingArguments):
    """``transformers.TrainingArguments`` plus what every method on stored rows needs.

    Defaults that differ from ``TrainingArguments``: every step logged, bf16 autocast on a GPU that has it and never on
    a CPU.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # type: ignore[misc]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_normalization": ("batch", "micro_batch"),
        "reference": ("auto", "cache", "model", "adapters_off"),
        "train_sampling_strategy": ("random", "sequential"),
    }

    logging_steps: float = field(default=1, metadata={"help": "Log every this many optimiser steps."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bfloat16 autocast. Default: on where the GPU has it, off on a CPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: batches are nested."})
    token_normalization: str = field(
        default="batch",
        metadata={
            "help": "Means run over the whole optimiser batch (batch), or over each micro-batch and are then averaged "
            "(micro_batch, what the papers' code does; depends on how the batch is split)."
        },
    )
    trainable_parameters: list[str] | None = field(
        default=None, metadata={"help": "Regular expressions; parameters that match one are trained, others frozen."}
    )
    reference: str = field(
        default="auto",
        metadata={
            "help": "Where reference log-probs come from: cache (computed once, on disk), adapters_off (PEFT) or model "
            "(a second one), the last two every step. auto: cache."
        },
    )
    reference_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of reference log-probs. Default: OUTPUT_DIR/reference."}
    )
    check_reference: bool = field(
        default=True, metadata={"help": "Refuse to start when policy and reference differ before the first step."}
    )
    hang_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds without progress after which all ranks write their stacks to OUTPUT_DIR/stacks and the "
            "run ends with status 124. 0: never. Default: 4/5 of ddp_timeout; never in one process."
        },
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained when the model is given by name."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _gpu_has_bf16(self.use_cpu)
        self.dataloader_pin_memory &= torch.cuda.is_available()
        self.validate()
        settle_half_precision(self)
        name_cpu_plainly(self.use_cpu)
        super().__post_init__()
        check_world(self.world_size)

    def validate(self) -> None:
        """Raise ConfigError for values and combinations that cannot be meant. Subclasses extend it."""
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no":
            raise ConfigError(
                "eval_strategy must be 'no': such runs are judged by negpo eval. To stop on utility during training, "
                "pass UtilityFloorCallback"
            )
        if self.remove_unused_columns:
            raise ConfigError("remove_unused_columns must stay False: batches are nested")
        for pattern in self.trainable_parameters or []:
            _check_pattern(pattern)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        optimizer = str(getattr(self.optim, "value", self.optim))
        needs_bitsandbytes = "paged" in optimizer or "8bit" in optimizer or "bnb" in optimizer
        if needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"optim={optimizer} needs bitsandbytes: pip install 'negpo[quantization]', or set optim=adamw_torch "
                "(the same update without paging)"
            )


def require_positive(config: OfflineConfig, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be greater than 0")


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"trainable_parameters: {pattern!r} is not a regular expression ({error})") from error


def _gpu_has_bf16(use_cpu: bool) -> bool:
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
