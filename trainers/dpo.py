"""Direct preference optimisation, arXiv 2305.18290, as a baseline on the shared layout."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.objectives import dpo_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.config import require_positive


@dataclass
class DPOConfig(PreferenceConfig):
    """Sigmoid loss on sequence sums. RPO (arXiv 2404.19733) is this with ``nll_coeff=1``."""

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")


class DPOTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.dpo_loss`` against the starting model or ``ref_model``."""

    config_class: ClassVar[type[PreferenceConfig]] = DPOConfig
    logged_stats = ("mean_weight",)

    def preference_loss(self, scored: Scored):
        return dpo_loss(*scored.side(0), *scored.side(1), scored.ref_side(0), scored.ref_side(1), beta=self.args.beta)
