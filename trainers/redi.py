"""REDI, reinforcement distillation with rejected traces: arXiv 2505.24850. Also its alpha = 0, per-sequence SFT."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.objectives import redi_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored


@dataclass
class REDIConfig(PreferenceConfig):
    """Stage 2 of REDI. The paper keeps alpha at 0.8 and tunes the learning rate; 1.0 at lr 1e-6 collapses."""

    alpha: float = field(default=0.8, metadata={"help": "Weight of the rejected traces; 1: symmetric, 0: SFT."})

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
