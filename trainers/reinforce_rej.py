"""Reinforce-Rej, REINFORCE without the groups that are all right or all wrong: arXiv 2504.11343."""

from dataclasses import dataclass, field

from torch import Tensor

from negpo.objectives import reinforce_rej_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.config import PolicyConfig


@dataclass
class ReinforceRejConfig(PolicyConfig):
    """Rewards +1 and -1 as in the paper (the release feeds 1 and 0, which leaves wrong answers without gradient)."""

    delta: float | None = field(default=3.0, metadata={"help": "Dual clip: largest ratio of wrong answers."})


class ReinforceRejTrainer(PolicyTrainer):
    """Advantage +1 or -1 in mixed groups, 0 in the others, which stay in the normaliser."""

    config_class = ReinforceRejConfig

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return reinforce_rej_advantages(self.labels(rewards))
