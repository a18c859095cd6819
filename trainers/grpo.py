"""GRPO, DAPO and Dr.GRPO through the same data path, as baselines: arXiv 2402.03300, 2503.14476, 2503.20783."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from negpo.objectives import group_advantages
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._run.settings import Only, Rule

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"epsilon_high": 0.28, "dead_groups": "resample"},
    "dr_grpo": {"normalizer": "max_length"},
}

BASE = {"normalizer": "token_mean", "dead_groups": "keep"}


@dataclass
class GroupPolicyConfig(PolicyConfig):
    """Settings of the three baselines. A variant fills what is left at null: see ``VARIANTS``."""

    inherited: ClassVar[dict[str, Rule]] = {
        "advantage_std": Only("a variant that divides by it", lambda config: config.variant != "dr_grpo"),
        "advantage_eps": Only("a variant that divides by a std", lambda config: config.variant != "dr_grpo"),
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = PolicyConfig.choices | {
        "variant": tuple(VARIANTS),
        "advantage_std": ("sample", "population"),
    }

    normalizer: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "See PolicyConfig. Default: the variant's (token_mean; dr_grpo: max_length)."}
    )
    dead_groups: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "See PolicyConfig. Default: the variant's (keep; dapo: resample)."}
    )

    variant: str = field(
        default="grpo", metadata={"help": "grpo, dapo (clip-higher, resampled dead groups) or dr_grpo."}
    )
    advantage_std: str = field(
        default="sample", metadata={"help": "Divide by the sample (verl, TRL) or population std; none for dr_grpo."}
    )
    advantage_eps: float = field(default=1e-6, metadata={"help": "Added to the std (verl 1e-6, TRL 1e-4)."})

    def __post_init__(self) -> None:
        for name, value in (BASE | VARIANTS.get(str(self.variant), {})).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()


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
