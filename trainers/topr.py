"""TOPR, tapered off-policy REINFORCE: arXiv 2503.14286."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import topr_loss
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.batch import MicroBatch
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._run.settings import Refused, Rule


@dataclass
class TOPRConfig(PolicyConfig):
    """Rewards +1 and -1 without a baseline; per-sequence means."""

    inherited: ClassVar[dict[str, Rule]] = dict.fromkeys(
        ("epsilon", "epsilon_high", "delta"), Refused("TOPR clips no ratio")
    )

    normalizer: str = field(default="sequence_mean", metadata={"help": "TOPR is defined with sequence_mean only."})
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Must stay False: TOPR has its own importance ratio."}
    )

    def validate(self) -> None:
        super().validate()
        if self.normalizer != "sequence_mean":
            raise ConfigError(f"normalizer={self.normalizer} is not defined for TOPR; use sequence_mean")


class TOPRTrainer(PolicyTrainer):
    """Right answers at full weight, wrong ones by their full-sequence ratio, at most 1."""

    config_class = TOPRConfig
    loss_takes_importance = False

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return self.labels(rewards)

    def loss(self, batch: MicroBatch, logps: Tensor, old_logps: Tensor, mask: Tensor):
        return topr_loss(logps, old_logps, mask, batch["advantages"])
