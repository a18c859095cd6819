"""LiPO-lambda, listwise preference optimisation: arXiv 2402.01878."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from negpo.data.preference_encode import Group
from negpo.errors import ConfigError, DataError
from negpo.objectives import lipo_loss
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.config import require_positive


@dataclass
class LiPOConfig(PreferenceConfig):
    """Lists of scored answers; a chosen/rejected row is a list of two with labels 1 and 0."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = PreferenceConfig.choices | {"labels": ("scores", "win_rate")}

    beta: float = field(default=0.05, metadata={"help": "Inverse temperature (paper: 0.05)."})
    labels: str = field(
        default="scores",
        metadata={
            "help": "psi: the scores themselves, in [0, 1], or win_rate, the share of the list that each one beats."
        },
    )

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")
        if self.pairs != "all":
            raise ConfigError("pairs=first has no meaning for lists; leave it at all")


class LiPOTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.lipo_loss``, a mean over lists. K may differ between prompts.

    Before the first step all scores are equal and their ranks, which set the weights, are decided by rounding.
    """

    config_class: ClassVar[type[PreferenceConfig]] = LiPOConfig
    keeps = (1, -1, 0)
    unit = "groups"
    logged_stats = ("accuracy", "mean_weight")

    def arrange(self, args: Any, groups: list[Group]) -> list[Group]:
        return [replace(group, scores=list(_labels(group, args.labels))) for group in groups]

    def preference_loss(self, scored: Scored):
        rows = scored.lists()
        logps, mask = scored.at(rows)
        psi = torch.where(rows >= 0, scored.score[rows.clamp(min=0)], 0.0)
        return lipo_loss(logps, scored.ref_at(rows), mask, psi, beta=self.args.beta)


def _labels(group: Group, how: str) -> list[float]:
    """psi of each completion, in [0, 1]."""
    if all(score is None for score in group.scores) and 0 not in group.signs:
        return [float(sign > 0) for sign in group.signs]
    scores = [score for score in group.scores if score is not None]
    if len(scores) < len(group.scores):
        raise DataError("some answers have a score and some have none", file="train_dataset", row=group.source)
    if how == "win_rate":
        return [_win_rate(score, scores) for score in scores]
    if not all(0 <= score <= 1 for score in scores):
        raise DataError(
            f"scores {scores} leave [0, 1]; psi is a win probability. Rescale them or set labels=win_rate",
            file="train_dataset",
            row=group.source,
            field="scores",
        )
    return scores


def _win_rate(score: float, scores: list[float]) -> float:
    """Share of the other answers that this one beats; a tie counts half."""
    wins = sum((score > other) + 0.5 * (score == other) for other in scores) - 0.5
    return wins / (len(scores) - 1)
