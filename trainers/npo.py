"""Negative preference optimisation with and without a retain term: arXiv 2404.05868."""

from dataclasses import dataclass, field

from negpo.objectives import npo_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig


@dataclass
class NPOConfig(UnlearnConfig):
    """``npo_coeff * NPO`` plus nothing (``retain_loss="none"``), the NLL (NPO+RT, default) or the KL (NPO+KL)."""

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: none, nll (NPO+RT), kl (NPO+KL)."})
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature; towards 0 NPO becomes gradient ascent."})
    npo_coeff: float = field(default=1.0, metadata={"help": "Weight of the NPO term (open-unlearning: gamma)."})

    @property
    def reads_reference_logps(self) -> bool:
        return True

    @property
    def forget_weight(self) -> float:
        return self.npo_coeff

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")


class NPOTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.npo_loss`` against the starting model."""

    config_class = NPOConfig
    reduction = "rows"

    def reference_parts(self, args) -> tuple[str, ...]:
        return ("forget",)

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        return npo_loss(forget.logps, forget.ref_logps, forget.mask, beta=self.args.beta)
