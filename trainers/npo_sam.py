"""NPO with sharpness-aware steps against relearning: arXiv 2502.05374."""

from dataclasses import dataclass, field

from negpo.trainers._run.config import require_positive
from negpo.trainers.npo import NPOConfig, NPOTrainer


@dataclass
class NPOSAMConfig(NPOConfig):
    """NPO whose forget gradient is taken at ``theta + sam_rho g / ||g||``; every method takes ``sam_rho``."""

    sam_rho: float = field(default=0.01, metadata={"help": "Radius of the perturbation of all trained weights."})

    def validate(self) -> None:
        super().validate()
        require_positive(self, "sam_rho")


class NPOSAMTrainer(NPOTrainer):
    """``NPOTrainer`` with three backward passes per batch."""

    config_class = NPOSAMConfig
