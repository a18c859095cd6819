"""Settings of the trainers on stored rows, and the contradictions that are refused before a model is loaded."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from negpo.errors import ConfigError
from negpo.trainers._run.run_config import RunConfig
from negpo.trainers._run.settings import Only, Rule


@dataclass
class OfflineConfig(RunConfig, TrainingArguments):  # type: ignore[misc]  # bf16 may be None before it is settled
    """``transformers.TrainingArguments`` plus what every method on stored rows needs."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # type: ignore[misc]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_normalization": ("batch", "micro_batch"),
        "reference": ("auto", "cache", "model", "adapters_off"),
        "train_sampling_strategy": ("random", "sequential"),
    }

    inherited: ClassVar[dict[str, Rule]] = {
        "reference": Only("a method with a reference, or retain_loss=kl", lambda config: config.reads_reference),
        "reference_cache_dir": Only(
            "a method that reads log-probs of a reference from a cache",
            lambda config: config.reads_reference_logps and config.reference in ("auto", "cache"),
        ),
        "check_reference": Only(
            "a method that reads log-probs of a reference", lambda config: config.reads_reference_logps
        ),
    }

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
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained when the model is given by name."}
    )

    @property
    def reads_reference_logps(self) -> bool:
        """Whether the objective reads log-probs of a reference."""
        return False

    @property
    def reads_reference(self) -> bool:
        """Whether a run has a reference at all."""
        return self.reads_reference_logps

    def validate(self) -> None:
        super().validate()
        for pattern in self.trainable_parameters or []:
            _check_pattern(pattern)


def require_positive(config: OfflineConfig, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be greater than 0")


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"trainable_parameters: {pattern!r} is not a regular expression ({error})") from error
