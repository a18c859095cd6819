"""Gradient ascent, the baseline that collapses: arXiv 2401.06121, 2404.05868."""

from dataclasses import dataclass
from typing import ClassVar

from negpo.objectives import ga_loss
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig


@dataclass
class GradientAscentConfig(UnlearnConfig):
    """No setting of its own. With a retain term it is ``GradDiffTrainer``, which has coefficients."""


class GradientAscentTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.ga_loss``: the token mean of log p over the forget answers."""

    config_class: ClassVar[type[UnlearnConfig]] = GradientAscentConfig

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        return ga_loss(forget.logps, forget.mask)
