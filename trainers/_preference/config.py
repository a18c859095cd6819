"""Settings shared by every method that learns from preferred and dispreferred answers."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.data.preference import BAD_ROWS
from negpo.data.preference_encode import OVERLONG, TRUNCATION, Limits
from negpo.errors import ConfigError
from negpo.trainers._run.config import OfflineConfig
from negpo.trainers._run.settings import Only, Rule


@dataclass
class PreferenceConfig(OfflineConfig):
    """``OfflineConfig`` plus limits, pairing and guards. Defaults that differ: lr 1e-6, 1 epoch."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = OfflineConfig.choices | {
        "overlong": OVERLONG,
        "truncation_mode": TRUNCATION,
        "bad_rows": BAD_ROWS,
        "pairs": ("all", "first"),
        "share_prompt": ("auto", "always", "never"),
    }

    inherited: ClassVar[dict[str, Rule]] = {
        "floor_patience": Only("chosen_logp_floor", lambda config: config.chosen_logp_floor is not None),
        "truncation_mode": Only("overlong=truncate", lambda config: config.overlong == "truncate"),
    }

    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the prompts."})

    max_length: int | None = field(
        default=1024, metadata={"help": "Most tokens of prompt plus completion (TRL: 1024)."}
    )
    max_prompt_length: int | None = field(default=None, metadata={"help": "Most tokens of the prompt."})
    max_completion_length: int | None = field(default=None, metadata={"help": "Most tokens of a completion."})
    overlong: str = field(
        default="truncate", metadata={"help": "Beyond a limit: truncate (TRL) or drop; both counted."}
    )
    truncation_mode: str = field(default="keep_start", metadata={"help": "keep_start (TRL) or keep_end."})
    append_eos: bool = field(
        default=False, metadata={"help": "End token behind conversations whose template has none (TRL 0.17, REDI)."}
    )
    bad_rows: str = field(default="error", metadata={"help": "Rows that cannot be used: error, or drop and count."})
    pairs: str = field(
        default="all",
        metadata={"help": "Pairs of a prompt with several answers: all, or first chosen with first rejected."},
    )
    share_prompt: str = field(
        default="auto", metadata={"help": "Run a prompt once for all its answers: auto (where cheaper), always, never."}
    )
    nll_coeff: float = field(
        default=0.0, metadata={"help": "Weight of an anchor: per-sequence mean NLL of the chosen answers."}
    )
    chosen_logp_floor: float | None = field(
        default=None, metadata={"help": "Stop when the mean token log-prob of the chosen answers falls below this."}
    )
    floor_patience: int = field(default=2, metadata={"help": "Logs in a row below chosen_logp_floor before stopping."})

    @property
    def reads_reference_logps(self) -> bool:
        return True

    def limits(self) -> Limits:
        names = ("max_length", "max_prompt_length", "max_completion_length", "overlong", "truncation_mode")
        return Limits(**{name: getattr(self, name) for name in names})

    def validate(self) -> None:
        super().validate()
        self.limits()
        if self.nll_coeff < 0:
            raise ConfigError(f"nll_coeff is {self.nll_coeff}; a negative anchor would unlearn the chosen answers")
        if self.floor_patience < 1:
            raise ConfigError(f"floor_patience is {self.floor_patience}; it must be at least 1")
        if self.chosen_logp_floor is not None and self.chosen_logp_floor >= 0:
            raise ConfigError(f"chosen_logp_floor is {self.chosen_logp_floor}; log-probabilities are below 0")
