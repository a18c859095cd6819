"""Per-step DPO: a full right solution against the wrong one up to its first pit. arXiv 2406.14532."""

from dataclasses import dataclass
from typing import Any, ClassVar

from negpo.data.step_dpo import cut_at_pit
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers.dpo import DPOConfig, DPOTrainer


@dataclass
class StepDPOConfig(DPOConfig):
    """As DPO; the paper's beta and learning rate are UNVERIFIED, the defaults are DPO's."""


class StepDPOTrainer(DPOTrainer):
    """DPO on rows of ``negpo.data.step_dpo``: ``prompt``, ``chosen``, ``steps``, and ``values`` or ``pit``.

    What stands behind the pit has no influence on ``negpo.objectives.step_dpo_loss`` and is never tokenised or run.
    """

    config_class: ClassVar[type[PreferenceConfig]] = StepDPOConfig

    def encode(self, args: PreferenceConfig, tokenizer: Any, train_dataset: Any):
        return super().encode(args, tokenizer, cut_at_pit(train_dataset, "train_dataset"))
