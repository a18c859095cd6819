"""UNDIAL: self-distillation onto the starting model with lowered label logits: arXiv 2402.10052."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from negpo.errors import ConfigError
from negpo.logprobs.statistics import RestCrossEntropy
from negpo.objectives import undial_loss
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers._unlearn.data import ForgetRetainDataset, all_tokens_labelled


@dataclass
class UNDIALConfig(UnlearnConfig):
    """``forget_coeff * UNDIAL``, plus a retain term if ``retain_loss`` says so."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = UnlearnConfig.choices | {"positions": ("labelled", "all")}

    beta: float = field(default=10.0, metadata={"help": "How far the label's logit is lowered in the target."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the forget term (open-unlearning: gamma)."})
    positions: str = field(
        default="labelled",
        metadata={"help": "Tokens that are lowered: labelled (answers) or all (prompt too, the original code)."},
    )

    @property
    def reads_reference(self) -> bool:
        return True

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        if not self.beta >= 0:
            raise ConfigError(f"beta is {self.beta}; it must be 0 (plain self-distillation) or greater")
        if self.reference not in ("auto", "model", "adapters_off"):
            raise ConfigError(
                "undial compares whole distributions, which no cache holds; set reference to auto, model "
                "or adapters_off"
            )


class UNDIALTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.undial_loss`` against the starting model. Also logs ``forget/mean_weight``."""

    config_class = UNDIALConfig
    statistic = RestCrossEntropy()
    needs_reference_model = True
    logged_stats = ("mean_weight",)

    def encode(self, args: Any, tokenizer: Any, train_dataset: Any, retain_dataset: Any) -> ForgetRetainDataset:
        dataset = super().encode(args, tokenizer, train_dataset, retain_dataset)
        return all_tokens_labelled(dataset) if args.positions == "all" else dataset

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        rest, odds = forget.value[:, :-1], forget.constant[:, :-1]
        return undial_loss(forget.logps, rest, odds, forget.mask, beta=self.args.beta)
