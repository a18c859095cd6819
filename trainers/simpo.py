"""SimPO, arXiv 2405.14734, as a baseline on the shared layout."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.objectives import simpo_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.config import require_positive


@dataclass
class SimPOConfig(PreferenceConfig):
    """Defaults are the REDI paper's SimPO baseline (arXiv 2505.24850): beta 2, gamma 1."""

    beta: float = field(default=2.0, metadata={"help": "Inverse temperature of the mean log-probs."})
    gamma: float = field(default=1.0, metadata={"help": "Target margin, outside the product with beta."})

    @property
    def reads_reference_logps(self) -> bool:
        return False

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")


class SimPOTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.simpo_loss``; no reference."""

    config_class: ClassVar[type[PreferenceConfig]] = SimPOConfig
    has_reference = False
    logged_stats = ("mean_weight",)

    def preference_loss(self, scored: Scored):
        return simpo_loss(*scored.side(0), *scored.side(1), beta=self.args.beta, gamma=self.args.gamma)
