"""GRPO, DAPO and Dr.GRPO through the same data path, as baselines: arXiv 2402.03300, 2503.14476, 2503.20783."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import group_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.config import PolicyConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"epsilon_high": 0.28, "dead_groups": "resample"},
    "dr_grpo": {"normalizer": "max_length"},
}


@dataclass
class GroupPolicyConfig(PolicyConfig):
    """Settings of the three baselines. A variant fills what is left at its default: see ``VARIANTS``."""

    variant: str = field(
        default="grpo", metadata={"help": "grpo, dapo (clip-higher, resampled dead groups) or dr_grpo."}
    )
    advantage_std: str = field(
        default="sample", metadata={"help": "Divide by the sample (verl, TRL) or population std; none for dr_grpo."}
    )
    advantage_eps: float = field(default=1e-6, metadata={"help": "Added to the std (verl 1e-6, TRL 1e-4)."})

    def validate(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError(f"variant is {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        if self.advantage_std not in ("sample", "population"):
            raise ConfigError(f"advantage_std is {self.advantage_std!r}; choose sample or population")
        for name, value in VARIANTS[self.variant].items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                setattr(self, name, value)
        super().validate()


class GroupPolicyTrainer(PolicyTrainer):
    """Group-normalised rewards and the clipped objective."""

    config_class = GroupPolicyConfig

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return group_advantages(
            rewards,
            ddof=int(self.args.advantage_std == "sample"),
            eps=self.args.advantage_eps,
            scale=self.args.variant != "dr_grpo",
        )
