"""NGRPO, negative-enhanced GRPO: arXiv 2509.18851."""

from dataclasses import dataclass, field

from torch import Tensor

from negpo.objectives import ngrpo_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.config import PolicyConfig


@dataclass
class NGRPOConfig(PolicyConfig):
    """GRPO with virtual perfect answers in every group and asymmetric clipping (0.16 down, 0.24 up)."""

    epsilon: float = field(default=0.16, metadata={"help": "Lower clip: acts on wrong answers."})
    epsilon_high: float | None = field(default=0.24, metadata={"help": "Upper clip: acts on right answers."})
    max_reward: float = field(default=1.0, metadata={"help": "Reward of a virtual answer: the largest that can occur."})
    n_virtual: int = field(default=1, metadata={"help": "Virtual answers per group; 0 is GRPO."})


class NGRPOTrainer(PolicyTrainer):
    """All-wrong groups get a gradient, all-right ones none: only those count as dead."""

    config_class = NGRPOConfig
    dead_kinds = ("right", "unscored")

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return ngrpo_advantages(rewards, max_reward=self.args.max_reward, n_virtual=self.args.n_virtual)
