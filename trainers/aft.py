"""AFT, alignment fine-tuning on ranked reasoning traces: arXiv 2309.02144."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from negpo.errors import ConfigError
from negpo.objectives import aft_loss, nll_loss
from negpo.objectives.aft import VARIANTS
from negpo.trainers._preference.base import PreferenceTrainer, Terms
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored


@dataclass
class AFTConfig(PreferenceConfig):
    """Token-mean NLL of the right answers plus a contrast per prompt. K may differ between prompts."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = PreferenceConfig.choices | {"variant": VARIANTS}

    variant: str = field(
        default="detached",
        metadata={"help": "plain degrades (the paper's point); detached, or boundary (its exact form is UNVERIFIED)."},
    )
    boundary: float = field(default=0.15, metadata={"help": "variant=boundary: beta of the paper. UNVERIFIED, ours."})
    sft_weight: float = field(default=1.0, metadata={"help": "Weight of the NLL term."})

    @property
    def reads_reference_logps(self) -> bool:
        return False

    def validate(self) -> None:
        super().validate()
        for name in ("boundary", "sft_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")


class AFTTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.aft_loss``: the contrast is a mean over prompts, the NLL over right tokens."""

    config_class: ClassVar[type[PreferenceConfig]] = AFTConfig
    unit = "groups"
    has_reference = False
    logged_stats = ("mean_positive_score", "mean_negative_score")

    def preference_loss(self, scored: Scored):
        rows = scored.lists()
        positive = (scored.sign[rows.clamp(min=0)] > 0) & (rows >= 0)
        settings = {"variant": self.args.variant, "beta": self.args.boundary}
        return aft_loss(*scored.at(rows), positive, sft_weight=0.0, **settings)

    def terms(self, scored: Scored, counts: dict[str, Any]) -> Terms:
        """The two parts average over different things, so each gets its own share of the optimiser batch."""
        found = super().terms(scored, counts)
        chosen = scored.sign > 0
        loss, _ = nll_loss(scored.logps[chosen], scored.mask[chosen])
        tokens = counts["chosen_tokens"]
        self._buffer.add("loss/sft", loss * tokens, tokens)
        return [*found, (self.args.sft_weight, loss, "chosen_tokens")]
