"""REDI, reinforcement distillation with rejected traces: arXiv 2505.24850. Also its alpha = 0, per-sequence SFT."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.objectives import redi_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.script_arguments import ScriptArguments

STAGES = ("1", "2", "both")


@dataclass
class StageArguments(ScriptArguments):
    """Both stages of the paper in one command: SFT on the chosen traces, then REDI from its output."""

    stages: str = field(
        default="2", metadata={"help": "2 (this recipe), 1 (stage1_config) or both, one after the other."}
    )
    stage1_config: str | None = field(default=None, metadata={"help": "Recipe of stage 1, a run of `sft`."})

    def validate(self) -> None:
        super().validate()
        self.stages = str(self.stages)  # YAML reads 2 as a number
        if self.stages not in STAGES:
            raise ConfigError(f"stages is {self.stages!r}; choose one of {', '.join(STAGES)}")
        if self.stages != "2" and self.stage1_config is None:
            raise ConfigError("stages=1 and stages=both need stage1_config, the recipe of stage 1")

    def earlier_run(self) -> tuple[str, list[str]] | None:
        return None if self.stages == "2" else ("sft", ["--config", str(self.stage1_config)])

    @property
    def trains(self) -> bool:
        return self.stages != "1"


@dataclass
class REDIConfig(PreferenceConfig):
    """Stage 2 of REDI. The paper keeps alpha at 0.8 and tunes the learning rate; 1.0 at lr 1e-6 collapses."""

    script_arguments: ClassVar[type[ScriptArguments] | None] = StageArguments

    alpha: float = field(default=0.8, metadata={"help": "Weight of the rejected traces; 1: symmetric, 0: SFT."})

    @property
    def reads_reference_logps(self) -> bool:
        return False

    def validate(self) -> None:
        super().validate()
        if self.alpha < 0:
            raise ConfigError(f"alpha is {self.alpha}; a negative weight would teach the rejected traces")


class REDITrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.redi_loss``: reference-free, per-sequence means, mean over pairs."""

    config_class: ClassVar[type[PreferenceConfig]] = REDIConfig
    has_reference = False
    logged_stats = ("chosen_nll", "rejected_nll")

    def preference_loss(self, scored: Scored):
        return redi_loss(*scored.side(0), *scored.side(1), alpha=self.args.alpha)
