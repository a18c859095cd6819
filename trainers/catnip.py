"""CATNIP: unlearning calibrated by the model's own confidence, without retain data: arXiv 2602.02824."""

from dataclasses import dataclass, field

from negpo.errors import ConfigError
from negpo.objectives import catnip_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig

CALIBRATIONS = ("complement", "static")


@dataclass
class CATNIPConfig(UnlearnConfig):
    """CATNIP has no retain term. Nothing divides by beta, so the effective step grows with it.

    ``calibration="static"`` is the paper's ablation: the reference is the starting model instead of 1 - p.
    """

    beta: float = field(default=1.0, metadata={"help": "Sharpness of the weight p^beta / (p^beta + (1-p)^beta)."})
    calibration: str = field(
        default="complement", metadata={"help": "Reference: complement (1 - p, the method) or static (ablation)."}
    )

    @property
    def reads_reference_logps(self) -> bool:
        return self.calibration == "static"

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")
        if self.calibration not in CALIBRATIONS:
            raise ConfigError(f"calibration is {self.calibration!r}; choose one of {', '.join(CALIBRATIONS)}")


class CATNIPTrainer(UnlearnTrainer):
    """Minimises ``negpo.objectives.catnip_loss``. Also logs ``forget/saturated_share`` (tokens with p = 1)."""

    config_class = CATNIPConfig
    logged_stats = ("saturated_share",)

    def reference_parts(self, args) -> tuple[str, ...]:
        return ("forget",) if args.calibration == "static" else ()

    def forget_loss(self, parts: dict[str, Part]):
        forget = parts["forget"]
        return catnip_loss(forget.logps, forget.mask, beta=self.args.beta, ref_logps=forget.ref_logps)
