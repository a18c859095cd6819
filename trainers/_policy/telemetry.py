"""Numbers of a run, apart for what is pushed up and what is pushed down, summed over micro-batches and processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIGNS = ("positive", "negative")
MEANS = ("logp", "ratio", "clip_share", "entropy", "importance", "importance_kept")
OVERALL = ("policy/entropy", "policy/kl", "policy/grad_weight", "mismatch/mean", "mismatch/kl", "displacement/correct")
COUNTS = ("positive/tokens", "negative/tokens", "displacement/tokens", "rows/forward", "rows/trained")


class Telemetry:
    """Weighted sums under fixed names: every process holds the same vector, so one reduction serves all of them."""

    def __init__(self, device: torch.device):
        names = [f"{sign}/{name}" for sign in SIGNS for name in MEANS] + list(OVERALL) + list(COUNTS)
        self._place = {name: i for i, name in enumerate(names)}
        self._sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)

    def add(self, name: str, total: Tensor | float, weight: Tensor | float = 0.0) -> None:
        """``total`` is a sum over ``weight`` items; a name of COUNTS is reported as the sum itself."""
        row = self._sums[self._place[name]]
        row[0] += total
        row[1] += weight

    def add_masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        self.add(name, torch.where(mask, values.detach(), 0.0).sum(), mask.sum())

    def drain(self, accelerator) -> dict[str, float]:
        """Means (and counts) since the last call over all processes; names without any item are left out."""
        sums = accelerator.reduce(self._sums, reduction="sum") if accelerator.num_processes > 1 else self._sums
        logs = {}
        for name, (total, weight) in zip(self._place, sums.tolist(), strict=True):
            if name in COUNTS:
                logs[name] = total
            elif weight:
                logs[name] = total / weight
        self._sums.zero_()
        return logs

    def add_policy(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        entropy: Tensor | None,
        importance: Tensor | None,
        stats: dict[str, Tensor],
    ) -> None:
        """One micro-batch: all (B, T), ``advantages`` also (B,); ``stats`` is what the objective returned."""
        signed = advantages if advantages.ndim == 2 else advantages.unsqueeze(-1).expand(mask.shape)
        logps = logps.detach()
        log_ratio = (logps - old_logps).clamp(-20.0, 20.0)
        ratio = log_ratio.exp()
        self.add_masked("policy/kl", ratio - 1.0 - log_ratio, mask)
        if entropy is not None:
            self.add_masked("policy/entropy", entropy, mask)
        if "mean_weight" in stats:
            self.add("policy/grad_weight", stats["mean_weight"] * mask.sum(), mask.sum())
        for sign, chosen in zip(SIGNS, (mask & (signed > 0), mask & (signed < 0)), strict=True):
            self.add(f"{sign}/tokens", chosen.sum())
            self.add_masked(f"{sign}/logp", logps, chosen)
            self.add_masked(f"{sign}/ratio", ratio, chosen)
            if entropy is not None:
                self.add_masked(f"{sign}/entropy", entropy, chosen)
            if f"{sign}_clip_fraction" in stats:
                self.add(f"{sign}/clip_share", stats[f"{sign}_clip_fraction"] * chosen.sum(), chosen.sum())
            if importance is not None:
                self.add_masked(f"{sign}/importance", importance, chosen)
                self.add_masked(f"{sign}/importance_kept", (importance > 0).double(), chosen)


@dataclass
class GroupCounts:
    """What kinds of groups one rollout batch holds; groups of P prompts over all processes."""

    total: int
    all_right: int
    all_wrong: int
    constant: int
    unscored: int

    def metrics(self) -> dict[str, float]:
        """Shares of all groups. ``dead`` is every group in which all known rewards are equal."""
        dead = self.constant + self.unscored
        return {
            "groups/all_right": self.all_right / self.total,
            "groups/all_wrong": self.all_wrong / self.total,
            "groups/dead": dead / self.total,
            "groups/unscored": self.unscored / self.total,
        }


@dataclass
class GroupKinds:
    """(P,) bool tensors over groups; rewards (P, G) with NaN for unknown, labels (P, G) 1, -1 or NaN."""

    right: Tensor
    wrong: Tensor
    constant: Tensor
    unscored: Tensor

    @classmethod
    def of(cls, rewards: Tensor, labels: Tensor) -> "GroupKinds":
        known = ~rewards.isnan()
        correct = known & (labels > 0)
        scored = known.any(1)
        highest = torch.where(known, rewards, -torch.inf).amax(1)
        lowest = torch.where(known, rewards, torch.inf).amin(1)
        return cls(
            right=scored & (correct == known).all(1),
            wrong=scored & ~correct.any(1),
            constant=scored & (highest == lowest),
            unscored=~scored,
        )

    def counts(self) -> GroupCounts:
        values = (self.right, self.wrong, self.constant, self.unscored)
        return GroupCounts(len(self.right), *(int(value.sum()) for value in values))
