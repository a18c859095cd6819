"""SimNPO, NPO without a reference model: arXiv 2410.07163."""

from dataclasses import dataclass, field

from negpo.objectives import simnpo_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig


@dataclass
class SimNPOConfig(UnlearnConfig):
    """``npo_coeff * SimNPO + grad_diff_coeff * NLL(retain)``, names as in the released code.

    open-unlearning calls the margin ``gamma`` ``delta``, ``npo_coeff`` ``gamma`` and ``grad_diff_coeff`` ``alpha``.
    """

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: none, nll or kl."})
    beta: float = field(default=2.5, metadata={"help": "Inverse temperature (forget05: 2.5, forget10: 4.5)."})
    gamma: float = field(default=0.0, metadata={"help": "Margin on the mean NLL, multiplied by beta as in the code."})
    npo_coeff: float = field(default=1.0, metadata={"help": "Weight of the forget term (TOFU forget05: 0.1375)."})

    @property
    def forget_weight(self) -> float:
        return self.npo_coeff

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")


class SimNPOTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.simnpo_loss``: length-normalised, no reference."""

    config_class = SimNPOConfig
    reduction = "rows"

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        return simnpo_loss(forget.logps, forget.mask, beta=self.args.beta, gamma=self.args.gamma)
