"""RAFT and RAFT++, rejection sampling fine-tuning: arXiv 2504.11343."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import raft_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.batch import MicroBatch
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._run.settings import Only, Refused, Rule


@dataclass
class RAFTConfig(PolicyConfig):
    """Right answers only; wrong ones stay in the normaliser, as in the released code."""

    inherited: ClassVar[dict[str, Rule]] = {
        "delta": Refused("a dual clip acts on wrong answers, and RAFT learns from right ones only"),
        "epsilon": Only("variant=raft++", lambda config: config.variant == "raft++"),
        "epsilon_high": Only("variant=raft++", lambda config: config.variant == "raft++"),
    }

    variant: str = field(default="raft++", metadata={"help": "raft (plain likelihood) or raft++ (clipped ratio)."})
    delta: float | None = field(default=3.0, metadata={"help": "Dual clip of the released loss; inert here (A >= 0)."})

    def validate(self) -> None:
        super().validate()
        if self.variant not in ("raft", "raft++"):
            raise ConfigError(f"variant is {self.variant!r}; choose raft or raft++")


class RAFTTrainer(PolicyTrainer):
    """Maximises the likelihood of right answers, with (raft++) or without PPO's clip."""

    config_class = RAFTConfig
    trains_all_rows = False

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return raft_advantages(self.labels(rewards))

    def loss(self, batch: MicroBatch, logps: Tensor, old_logps: Tensor, mask: Tensor):
        # Against itself the ratio is 1 and never clipped: the gradient is that of the plain likelihood.
        return super().loss(batch, logps, logps.detach() if self.args.variant == "raft" else old_logps, mask)
