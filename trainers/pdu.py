"""PDU: flatten the forget distribution while a multiplier holds the retain loss below a bound: arXiv 2506.05314."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from negpo.errors import ConfigError
from negpo.logprobs.statistics import Spread
from negpo.objectives import pdu_loss
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig


@dataclass
class PDUConfig(UnlearnConfig):
    """``forget_coeff * F + lambda (NLL(retain) - retain_constraint)``; lambda starts at ``grad_diff_coeff``."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = UnlearnConfig.choices | {
        "positions": ("predicting", "unshifted"),
        "forget_mean": ("tokens", "answers"),
    }

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows that is bounded: nll or kl."})
    grad_diff_coeff: float = field(default=100.0, metadata={"help": "Weight of the retain NLL at the start."})
    dual_step: float = field(default=5.0, metadata={"help": "Step of that weight."})
    dual_warmup: float = field(default=5.0, metadata={"help": "Epochs before that weight moves."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the flattening (open-unlearning: gamma)."})
    positions: str = field(
        default="predicting",
        metadata={
            "help": "States that are flattened: predicting (those that predict an answer token) or unshifted (those at "
            "answer tokens, the released code: one position later)."
        },
    )
    forget_mean: str = field(
        default="tokens", metadata={"help": "Mean over the batch's tokens (code) or over answers first (paper)."}
    )

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        if self.retain_loss == "none":
            raise ConfigError("pdu bounds the retain loss; set retain_loss to nll or kl")
        super().validate()

    def _check_constraint(self) -> None:
        if self.retain_constraint is not None:  # the trainer refuses a run without one
            super()._check_constraint()


class PDUTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.pdu_loss`` under the constraint. Also logs ``forget/mean_spread`` (max - mean logit)
    and ``retain/multiplier`` (lambda)."""

    config_class = PDUConfig
    statistic = Spread()
    logged_stats = ("mean_spread",)

    @property
    def reduction(self) -> str:  # type: ignore[override]
        return "rows" if self.args.forget_mean == "answers" else "tokens"

    def statistic_positions(self, labels: torch.Tensor) -> torch.Tensor:
        return labels != -100 if self.args.positions == "unshifted" else super().statistic_positions(labels)

    def check_arguments(self, model, args, *data) -> None:
        super().check_arguments(model, args, *data)
        if args.retain_constraint is None:
            raise ConfigError(
                "retain_constraint is missing: set it a little above the retain loss of the starting model (TOFU: 0.3)"
            )

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        mask = self.statistic_positions(forget.labels)
        return pdu_loss(forget.value, mask, per_row=self.args.forget_mean == "answers")
