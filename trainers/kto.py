"""KTO, arXiv 2402.01306, as a baseline on the shared layout. (The unlearning papers' variant is in ``idkdpo``.)"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from negpo.data.preference_encode import Group
from negpo.errors import ConfigError
from negpo.objectives import unpaired_kto_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.config import require_positive


@dataclass
class KTOConfig(PreferenceConfig):
    """Rows may hold one sign only. The KL estimate z comes from the micro-batch, as in TRL."""

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of good answers."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of bad answers."})

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta", "desirable_weight", "undesirable_weight")


class KTOTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.unpaired_kto_loss``, a mean over answers.

    Each prompt is also given the first answer of the next prompt; those rows estimate z and teach nothing.
    """

    config_class: ClassVar[type[PreferenceConfig]] = KTOConfig
    needs = ()
    unit = "judged"
    logged_stats = ("z",)

    def arrange(self, args: Any, groups: list[Group]) -> list[Group]:
        if len(groups) < 2:
            raise ConfigError("KTO needs at least two prompts: z is measured on answers to other prompts")
        return [_with_foreign(group, other) for group, other in zip(groups, groups[1:] + groups[:1], strict=True)]

    def preference_loss(self, scored: Scored):
        judged, foreign = (rows.nonzero().squeeze(1) for rows in (scored.sign != 0, scored.sign == 0))
        logps, mask = scored.at(judged)
        other, other_mask = scored.at(foreign)
        return unpaired_kto_loss(
            logps,
            scored.ref_at(judged),
            mask,
            scored.sign[judged] > 0,
            other,
            scored.ref_at(foreign),
            other_mask,
            beta=self.args.beta,
            desirable_weight=self.args.desirable_weight,
            undesirable_weight=self.args.undesirable_weight,
        )


def _with_foreign(group: Group, other: Group) -> Group:
    return replace(
        group,
        completion_ids=[*group.completion_ids, other.completion_ids[0]],
        signs=[*group.signs, 0],
        scores=[*group.scores, None],
        cuts=[*group.cuts, group.cuts[0]],
    )
