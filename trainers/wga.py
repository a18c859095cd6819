"""Gradient ascent with a detached weight per token: WGA, TNPO, WTNPO (arXiv 2502.19301) and SatImp."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.objectives import satimp_loss, tnpo_loss, wga_loss
from negpo.trainers._run.settings import Only, Rule
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig

# published beta of each weighting; SatImp has beta1 and beta2 instead
DEFAULT_BETA = {"wga": 1.0, "tnpo": 4.0, "wtnpo": 4.0, "satimp": None}


@dataclass
class WGAConfig(UnlearnConfig):
    """``forget_coeff * (1/N) sum_t sg[w_t] log p_t`` plus an optional retain term.

    ``weighting``: wga p^beta; tnpo 2 p^beta / (p^beta + p_ref^beta + 1e-5); wtnpo the same times p^alpha; satimp
    p^beta1 (1 - p)^beta2.
    """

    inherited: ClassVar[dict[str, Rule]] = {
        "beta": Only(
            "a weighting other than satimp, which reads beta1 and beta2", lambda config: config.weighting != "satimp"
        ),
        "alpha": Only("weighting=wtnpo", lambda config: config.weighting == "wtnpo"),
        "beta1": Only("weighting=satimp", lambda config: config.weighting == "satimp"),
        "beta2": Only("weighting=satimp", lambda config: config.weighting == "satimp"),
    }

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: none, nll or kl."})
    weighting: str = field(default="wga", metadata={"help": "Token weight: wga, tnpo, wtnpo or satimp."})
    beta: float | None = field(
        default=None, metadata={"help": "Exponent of wga (default 1; G-effect: 5), tnpo and wtnpo (default 4)."}
    )
    alpha: float = field(default=1.5, metadata={"help": "Further exponent of wtnpo."})
    beta1: float = field(default=5.0, metadata={"help": "satimp: exponent of p."})
    beta2: float = field(default=1.0, metadata={"help": "satimp: exponent of 1 - p."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the forget term (open-unlearning: gamma)."})

    @property
    def reads_reference_logps(self) -> bool:
        return self.weighting in ("tnpo", "wtnpo")

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        if self.weighting not in DEFAULT_BETA:
            raise ConfigError(f"weighting is {self.weighting!r}; choose one of {', '.join(DEFAULT_BETA)}")
        if self.beta is None:
            self.beta = DEFAULT_BETA[self.weighting]


class WGATrainer(UnlearnTrainer):
    """Minimises ``wga_loss``, ``tnpo_loss`` or ``satimp_loss`` of ``negpo.objectives``."""

    config_class = WGAConfig

    def reference_parts(self, args) -> tuple[str, ...]:
        return ("forget",) if args.weighting in ("tnpo", "wtnpo") else ()

    def forget_loss(self, parts: dict[str, Part]):
        forget, args = parts["forget"], self.args
        if args.weighting == "wga":
            return wga_loss(forget.logps, forget.mask, beta=args.beta)
        if args.weighting == "satimp":
            return satimp_loss(forget.logps, forget.mask, beta1=args.beta1, beta2=args.beta2)
        alpha = args.alpha if args.weighting == "wtnpo" else 0.0
        return tnpo_loss(forget.logps, forget.ref_logps, forget.mask, beta=args.beta, alpha=alpha)
