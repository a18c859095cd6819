"""Negative sample reinforcement, its positive counterpart, and the weighted sum of both: arXiv 2506.01347."""

from dataclasses import dataclass, field

from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import signed_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.config import PolicyConfig

PRESETS = {"psr": (1.0, 0.0), "nsr": (0.0, 1.0), "w_reinforce": (0.1, 1.0)}


@dataclass
class NSRConfig(PolicyConfig):
    """Constant advantages: ``+positive_weight`` on right answers, ``-negative_weight`` on wrong ones, no baseline."""

    preset: str = field(
        default="nsr",
        metadata={"help": "psr (1, 0), nsr (0, 1) or w_reinforce (0.1, 1): positive and negative weight."},
    )
    positive_weight: float | None = field(
        default=None, metadata={"help": "Weight of right answers; default: preset's."}
    )
    negative_weight: float | None = field(
        default=None, metadata={"help": "Weight of wrong answers; default: preset's."}
    )

    def validate(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}; choose one of {', '.join(PRESETS)}")
        if self.preset != "nsr" and None not in (self.positive_weight, self.negative_weight):
            raise ConfigError(
                f"preset={self.preset} would have no effect: positive_weight and negative_weight are both given"
            )
        positive, negative = PRESETS[self.preset]
        self.positive_weight = positive if self.positive_weight is None else self.positive_weight
        self.negative_weight = negative if self.negative_weight is None else self.negative_weight
        if min(self.positive_weight, self.negative_weight) < 0 or self.positive_weight + self.negative_weight == 0:
            raise ConfigError(
                f"positive_weight={self.positive_weight} and negative_weight={self.negative_weight} must not be "
                "negative, and one of them must be positive"
            )
        super().validate()


class NSRTrainer(PolicyTrainer):
    """PSR, NSR and W-REINFORCE with the clipped objective. Rows of weight 0 do not count in the normaliser either."""

    config_class = NSRConfig
    trains_all_rows = False

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        weights = {"positive_weight": self.args.positive_weight, "negative_weight": self.args.negative_weight}
        return signed_advantages(self.labels(rewards).flatten(), **weights).view_as(rewards)

    def counted_rows(self, rewards: Tensor, advantages: Tensor) -> Tensor:
        return advantages != 0
