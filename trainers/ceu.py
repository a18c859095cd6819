"""CE-U: cross-entropy to the model's own distribution without the label: arXiv 2503.01224."""

from dataclasses import dataclass, field
from typing import Any

from negpo.errors import ConfigError
from negpo.logprobs.statistics import Complement
from negpo.objectives import ceu_loss
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers._unlearn.data import ForgetRetainDataset, without_first_labels


@dataclass
class CEUConfig(UnlearnConfig):
    """``forget_coeff * CE-U``; no retain term is published, ``retain_loss`` adds one."""

    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the forget term."})
    ignore_first_n_answer_tokens: int = field(
        default=1, metadata={"help": "Answer tokens left out at the start of each row (open-unlearning's name)."}
    )

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        if self.ignore_first_n_answer_tokens < 0:
            raise ConfigError(
                f"ignore_first_n_answer_tokens is {self.ignore_first_n_answer_tokens}; it must be 0 or greater"
            )


class CEUTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.ceu_loss``. Also logs ``forget/mean_weight`` (mean p of the forget tokens).

    The skipped tokens are no labels at all, so means run over what is trained; rows without any other token are left
    out and counted in a warning.
    """

    config_class = CEUConfig
    statistic = Complement()
    logged_stats = ("mean_weight",)

    def encode(self, args: Any, tokenizer: Any, train_dataset: Any, retain_dataset: Any) -> ForgetRetainDataset:
        dataset = super().encode(args, tokenizer, train_dataset, retain_dataset)
        return without_first_labels(dataset, args.ignore_first_n_answer_tokens)

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        complement, entropy = forget.value[:, :-1], forget.constant[:, :-1]
        return ceu_loss(forget.logps, complement, forget.mask, rest_entropy=entropy, skip_first=0)
