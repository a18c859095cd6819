"""Settings shared by every unlearning method."""

from dataclasses import dataclass, field
from typing import ClassVar

from negpo.errors import ConfigError
from negpo.trainers._run.config import OfflineConfig, require_positive
from negpo.trainers._run.settings import Only, Rule


@dataclass
class UnlearnConfig(OfflineConfig):
    """``OfflineConfig`` plus what unlearning needs.

    The objective is ``forget_weight * forget + grad_diff_coeff * NLL(retain)`` or ``+ kl_coeff * KL(ref || policy)`` on
    retain rows; the coefficients carry the names of the NPO code (arXiv 2404.05868). open-unlearning calls the first
    ``gamma`` and the retain ones ``alpha``. Other defaults than ``TrainingArguments``: lr 1e-5, 10 epochs (all papers).
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = OfflineConfig.choices | {
        "retain_loss": ("none", "nll", "kl"),
        "pairing": ("random", "fixed"),
        "kl_positions": ("all", "labelled"),
    }

    inherited: ClassVar[dict[str, Rule]] = {
        "grad_diff_coeff": Only("retain_loss=nll", lambda config: config.retain_loss == "nll"),
        "kl_coeff": Only("retain_loss=kl", lambda config: config.retain_loss == "kl"),
        "kl_positions": Only("retain_loss=kl", lambda config: config.retain_loss == "kl"),
        "pairing": Only("rows to keep (retain_loss=nll or kl)", lambda config: config.retain_loss != "none"),
    }

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the forget rows."})

    max_length: int = field(default=512, metadata={"help": "Tokens of prompt plus answer; longer rows are cut."})
    label_stride: int = field(
        default=1,
        metadata={"help": "Train on the forget tokens at positions k, 2k, 3k, ... only (CATNIP on WMDP: 16)."},
    )
    retain_loss: str = field(default="none", metadata={"help": "Term on retain rows: none, nll or kl."})
    grad_diff_coeff: float = field(default=1.0, metadata={"help": "Weight of the retain NLL."})
    kl_coeff: float = field(default=1.0, metadata={"help": "Weight of the retain KL(reference || policy)."})
    kl_positions: str = field(
        default="all", metadata={"help": "KL over all tokens (the papers; here without padding) or labelled ones."}
    )
    retain_constraint: float | None = field(
        default=None,
        metadata={
            "help": "Bound eps on the retain loss in nats: its weight starts at the retain coefficient and moves by "
            "dual_step * (loss - eps) per optimiser step, never below 0 (PDU). Default: a fixed weight."
        },
    )
    dual_step: float = field(default=0.0, metadata={"help": "Step of that weight; needed with retain_constraint."})
    dual_warmup: float = field(default=0.0, metadata={"help": "Epochs before that weight moves."})
    sam_rho: float = field(
        default=0.0,
        metadata={
            "help": "Radius of sharpness-aware steps on the forget term (NPO+SAM: 0.01); 0 for plain gradients. Three "
            "backward passes per batch."
        },
    )
    pairing: str = field(
        default="random",
        metadata={"help": "Retain partner of a forget row: drawn anew every epoch, or fixed as in the NPO code."},
    )

    @property
    def reads_reference(self) -> bool:
        return self.reads_reference_logps or self.retain_loss == "kl"

    @property
    def forget_weight(self) -> float:
        """Factor of the forget term. Methods whose papers name one override this."""
        return 1.0

    def validate(self) -> None:
        super().validate()
        for name in ("max_length", "label_stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("grad_diff_coeff", "kl_coeff"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a negative weight would unlearn the retain data")
        self._check_constraint()
        if not self.sam_rho >= 0:
            raise ConfigError(f"sam_rho is {self.sam_rho}; it must be 0 or greater")

    def _check_constraint(self) -> None:
        if self.retain_constraint is None:
            for name in ("dual_step", "dual_warmup"):
                if getattr(self, name):
                    raise ConfigError(f"{name}={getattr(self, name)} would be ignored: set retain_constraint too")
            return
        if self.retain_loss == "none":
            raise ConfigError("retain_constraint bounds the retain loss, and retain_loss is none; set nll or kl")
        for name in ("retain_constraint", "dual_step"):
            require_positive(self, name)
        if self.dual_warmup < 0:
            raise ConfigError(f"dual_warmup is {self.dual_warmup}; it must be 0 or greater")
