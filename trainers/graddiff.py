"""Gradient difference (GA+RT) and GA+KL: ascent on forget rows, likelihood or closeness on retain rows."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers.ga import GradientAscentTrainer


@dataclass
class GradDiffConfig(UnlearnConfig):
    """``forget_coeff * GA + grad_diff_coeff * NLL(retain)``, or ``+ kl_coeff * KL`` with ``retain_loss="kl"``."""

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: nll (GA+RT) or kl (GA+KL)."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the ascent (open-unlearning: gamma)."})

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        if self.retain_loss == "none":
            raise ConfigError("graddiff needs retain_loss=nll or kl; without a retain term it is the method ga")


class GradDiffTrainer(GradientAscentTrainer):
    """Gradient ascent with a retain term."""

    config_class: ClassVar[type[UnlearnConfig]] = GradDiffConfig
