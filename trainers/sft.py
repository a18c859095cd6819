"""Supervised fine-tuning on the preferred answers: stage 1 of REDI (arXiv 2505.24850) and the usual baseline."""

from dataclasses import dataclass
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.objectives import nll_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.settings import LIVE, Rule


@dataclass
class SFTConfig(PreferenceConfig):
    """Completion-only token mean. Rejected answers in the data are not read."""

    inherited: ClassVar[dict[str, Rule]] = {"neftune_noise_alpha": LIVE}

    @property
    def reads_reference_logps(self) -> bool:
        return False

    def validate(self) -> None:
        super().validate()
        if self.nll_coeff:
            raise ConfigError("nll_coeff would count the same likelihood twice; SFT is that term alone")


class SFTTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.nll_loss`` over the tokens of preferred answers.

    Beside preference rows it reads ``prompt`` and ``completion``, ``messages``, ``question`` and ``answer`` (in the
    template in which evaluations ask, see ``QATemplate``) and ``text`` (MUSE's corpora).
    """

    config_class: ClassVar[type[PreferenceConfig]] = SFTConfig
    needs = (1,)
    keeps = (1,)
    unit = "chosen_tokens"
    answers_only = True
    has_reference = False

    def preference_loss(self, scored: Scored):
        return nll_loss(scored.logps, scored.mask)
