"""How a rollout batch comes about: drawn by the engine, judged in whole groups, scored where a gradient needs it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from negpo.objectives import importance_weights
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.config import STORED
from negpo.trainers._policy.displacement import DisplacementProbe
from negpo.trainers._policy.rewards import GuardedReward
from negpo.trainers._policy.rollouts import PromptStream
from negpo.trainers._policy.score import RowScorer
from negpo.trainers._policy.telemetry import GroupKinds, Telemetry
from negpo.trainers._policy.verdicts import UnknownStreak, cut_columns, labels_of_rewards, local_labels
from negpo.trainers._run.hang_watch import HangWatch

AdvantageFunction = Callable[[Tensor, Tensor], Tensor]  # (rewards (N,), groups (N,)) -> (N,)


class RolloutHost(Protocol):
    """What the collector asks of the trainer: TRL's rollout, and what its method says about groups and rows."""

    args: Any
    model: Any
    accelerator: Any
    state: Any
    watch: HangWatch
    train_dataset: Any
    reward_funcs: list
    reward_weights: Tensor
    own_advantages: AdvantageFunction | None
    trains_all_rows: bool
    dead_kinds: tuple[str, ...]
    scores_itself: bool
    eos_token_ids: Any

    def raw_rollout(self, inputs: list[dict[str, Any]]) -> tuple[Record, Tensor]: ...
    def record_metric(self, name: str, value: float) -> None: ...
    def log_advantages(self, advantages: Tensor) -> None: ...
    def compute_advantages(self, rewards: Tensor) -> Tensor: ...
    def counted_rows(self, rewards: Tensor, advantages: Tensor) -> Tensor: ...
    def group_values(self, rewards: Tensor) -> dict[str, Tensor]: ...
    def score_old(self, record: Record, rows: Tensor) -> None: ...


class RolloutCollector:
    """Makes one aligned record of a rollout batch; see ``collect``. ``prompts`` is part of a checkpoint."""

    def __init__(self, host: RolloutHost, scorer: RowScorer, probe: DisplacementProbe, telemetry: Telemetry):
        self.host, self.scorer, self.probe, self.telemetry = host, scorer, probe, telemetry
        self.args, self.accelerator = host.args, host.accelerator
        self.prompts = PromptStream(len(host.train_dataset), host.args.seed)
        self.unknown = UnknownStreak(host.args.max_unknown_rollouts)
        self.labels: Tensor  # (P, G) of the current rollout: 1 right, -1 wrong, NaN unknown
        self.empty: Tensor  # (N,) bool, local rows for which the engine returned nothing
        self.cut: Tensor  # (N,) bool, local rows that the length limit cut

    @property
    def scores_early(self) -> bool:
        """Whether TRL's own pass over old log-probs, before the rewards, is used (it covers every row)."""
        args = self.args
        wanted = self.host.trains_all_rows if args.overlap_rewards is None else args.overlap_rewards
        itself = self.host.scores_itself or args.engine == STORED
        return (wanted or args.every_row_has_gradient) and not args.on_policy and not itself

    def start_rewards(self, completions: list, completion_ids: list[list[int]], inputs: list[dict[str, Any]]) -> None:
        """Begin to judge while the old log-probs are scored."""
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in ("prompt", "completion")}
        columns |= cut_columns(completion_ids, self.args, self.host.eos_token_ids)
        prompts = [row["prompt"] for row in inputs]
        hold = {"trainer_state": self.host.state, "log_extra": None, "log_metric": None}
        for function in self.host.reward_funcs:
            if isinstance(function, GuardedReward):
                function.start(
                    prompts=prompts, completions=completions, completion_ids=completion_ids, **columns, **hold
                )

    def collect(self, inputs: list[dict[str, Any]]) -> Record:
        """``align_rows`` of the drawn completions with reward, advantages, correct, selected, live, group, old_logps.

        Rows that are ``selected`` count in normalisers; those that are ``live`` have a gradient and are run.
        """
        self.probe.measure(self.host.model)
        record, dead = self._judged_rollout(inputs)
        if self.args.dead_groups == "resample":
            record = self._resample(record, dead)
        self._finish(record)
        self.host.log_advantages(record["advantages"])
        return record

    # ---- judging --------------------------------------------------------------------------------------------------

    def _judged_rollout(self, inputs: list[dict[str, Any]]) -> tuple[Record, Tensor]:
        """One round: (local record, (P,) bool dead groups over all processes)."""
        host = self.host
        output, per_function = host.raw_rollout(inputs)
        host.watch.beat()
        rewards, cut = self._judge(per_function)  # (P, G)
        kinds = GroupKinds.of(rewards, self.labels)
        for name, value in kinds.counts().metrics().items():
            host.record_metric(name, value)
        dead = torch.stack([getattr(kinds, name) for name in host.dead_kinds]).any(0)  # (P,)
        known = ~rewards.isnan()
        host.record_metric("rows/unknown", 1.0 - known.float().mean().item())
        advantages = torch.where(known, self._advantages(rewards), 0.0)
        counted = known & host.counted_rows(rewards, advantages)
        if self.args.dead_groups != "keep":
            counted &= ~dead.unsqueeze(1)
        if self.args.truncated == "mask":
            counted &= ~cut
        self._tell_cut(cut, torch.where(counted, advantages, 0.0))
        groups = torch.arange(len(rewards), device=rewards.device).unsqueeze(1).expand_as(rewards)
        values = {
            "reward": rewards,
            "advantages": advantages,
            "correct": self.labels > 0,
            "selected": counted,
            "group": groups,
        } | host.group_values(rewards)
        names = {"sampling_logps": "sampling_per_token_logps", "ref_logps": "ref_per_token_logps"}
        if self.scores_early:
            names["old_logps"] = "old_per_token_logps"
        per_token = {name: output[key] for name, key in names.items() if key in output}
        return rows_.align_rows(output, per_token) | {k: self._local(v) for k, v in values.items()}, dead

    def _judge(self, per_function: Tensor) -> tuple[Tensor, Tensor]:
        """(P, G) rewards, and which answers were cut; sets ``labels``. ``truncated`` says what becomes of cut ones."""
        total, cut = self._total_rewards(per_function), self.accelerator.gather(self.cut)
        own = local_labels(self.host.reward_funcs, len(self.cut))
        labels = (
            labels_of_rewards(
                per_function, self.host.reward_weights, self.host.reward_funcs, self.args.correct_threshold
            )
            if own is None
            else self.accelerator.gather(own.to(total.device))
        )
        if self.args.truncated == "unknown":
            total = torch.where(cut, torch.nan, total)
        elif self.args.truncated in ("wrong", "mask"):
            labels = torch.where(cut, -1.0, labels)
        labels = torch.where(total.isnan(), torch.nan, labels)
        size = self.args.num_generations
        self.labels = labels.view(-1, size)
        self.unknown.add(total.isnan().float().mean().item(), cut.float().mean().item())
        return total.view(-1, size), cut.view(-1, size)

    def _tell_cut(self, cut: Tensor, trained: Tensor) -> None:
        """Share of cut answers, and of these the share pushed up, pushed down, and not trained on."""
        self.host.record_metric("truncated/share", cut.float().mean().item())
        if cut.any():
            signs = trained[cut].sign()
            for name, sign in (("positive", 1), ("negative", -1), ("unused", 0)):
                self.host.record_metric(f"truncated/{name}", (signs == sign).float().mean().item())

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Of the function handed to the trainer, or of the method."""
        if self.host.own_advantages is None:
            return self.host.compute_advantages(rewards)
        groups = torch.arange(len(rewards), device=rewards.device).repeat_interleave(rewards.shape[1])
        return self.host.own_advantages(rewards.flatten(), groups).view_as(rewards)

    def _total_rewards(self, per_function: Tensor) -> Tensor:
        """(N,) float32 over all processes; NaN where unknown or where the engine returned nothing."""
        unknown = per_function.isnan()
        unknown = unknown.any(1) if self.args.partial_rewards == "unknown" else unknown.all(1)
        empty = self.accelerator.gather(self.empty)
        self.host.record_metric("rows/empty", empty.float().mean().item())
        total = (per_function * self.host.reward_weights.to(per_function.device)).nansum(1)
        return torch.where(unknown | empty, torch.nan, total)

    def _local(self, values: Tensor) -> Tensor:
        """(P, G) over all processes to this process's rows (N,)."""
        return values.reshape(self.accelerator.num_processes, -1)[self.accelerator.process_index].contiguous()

    def _resample(self, record: Record, dead: Tensor) -> Record:
        """Replace dead groups by live ones of freshly drawn prompts, up to ``max_resamples`` rounds."""
        world, rank, size = self.accelerator.num_processes, self.accelerator.process_index, self.args.num_generations
        dead, replaced = dead.clone().view(world, -1), 0  # (W, P local), the same on every process
        for _ in range(self.args.max_resamples):
            need = int(dead.sum(1).max())
            if not need:
                break
            drawn = self.prompts.draw(need * world)[rank * need : (rank + 1) * need]
            inputs = [self.host.train_dataset[row] for row in drawn for _ in range(size)]
            extra, extra_dead = self._judged_rollout(inputs)
            fresh = ~extra_dead.view(world, -1)
            for process in range(world):
                targets = dead[process].nonzero().flatten()
                sources = fresh[process].nonzero().flatten()[: len(targets)]
                targets = targets[: len(sources)]
                dead[process, targets] = False
                replaced += len(targets)
                if process == rank and len(targets):
                    record = _replace_groups(record, targets, extra, sources, size)
        self.host.record_metric("groups/resampled", replaced / dead.numel())
        return record

    # ---- scoring --------------------------------------------------------------------------------------------------

    def _finish(self, record: Record) -> None:
        """Decide which rows are run, and score what must be known about them before the first update."""
        args = self.args
        answered = rows_.answer_mask(record).any(1)
        record["selected"] &= answered
        moves = record["advantages"] != 0
        if args.every_row_has_gradient or not args.drop_zero_rows:
            moves = torch.ones_like(moves)
        record["live"] = record["selected"] & moves
        stored = args.engine == STORED
        probed = (record["correct"] & answered).nonzero().squeeze(1)[: 0 if stored else args.displacement_rows]
        needed = torch.zeros_like(record["live"])
        needed[probed] = True
        if not args.on_policy or args.corrects_importance:
            needed |= record["live"]
        if stored:
            record["old_logps"] = record.pop("sampling_logps")  # of the policy that wrote them, whoever that was
        elif "old_logps" not in record:
            self.host.score_old(record, needed.nonzero().squeeze(1))
        self._compare_engines(record, needed)
        self.probe.keep(record, probed)
        if args.on_policy and not args.corrects_importance:
            del record["old_logps"]  # the ratio is 1: current log-probs are the old ones
        self.host.record_metric("rows/live", record["live"].float().mean().item())

    def _compare_engines(self, record: Record, scored: Tensor) -> None:
        """Log the gap between sampling and training log-probs; bound its ratio where the loss corrects for it."""
        if "sampling_logps" not in record:
            return
        mask = rows_.answer_mask(record) & scored.unsqueeze(1)
        old, sampling = record["old_logps"], record.pop("sampling_logps")
        sampling = torch.where(sampling.isfinite(), sampling, old)  # an engine that does not tell is believed
        gap = torch.where(mask, old - sampling, 0.0)
        self.telemetry.add_masked("mismatch/mean", gap.abs(), mask)
        self.telemetry.add_masked("mismatch/kl", -gap, mask)
        self.host.record_metric("mismatch/max", gap.abs().max().item())
        if self.args.corrects_importance:
            record["importance"] = self._importance(old, sampling, mask)

    def _importance(self, old: Tensor, sampling: Tensor, mask: Tensor) -> Tensor:
        args = self.args
        if not mask.any():  # no row of this process is trained
            return torch.zeros_like(old)
        return importance_weights(
            old,
            sampling,
            mask,
            mode=args.vllm_importance_sampling_mode,
            clip_min=args.vllm_importance_sampling_clip_min,
            clip_max=args.vllm_importance_sampling_clip_max,
        )


def _replace_groups(record: Record, targets: Tensor, extra: Record, sources: Tensor, size: int) -> Record:
    """Rows of groups ``sources`` of ``extra`` in the places of groups ``targets``, whose group numbers they take."""
    within = torch.arange(size, device=targets.device)
    into = (targets.unsqueeze(1) * size + within).flatten()
    fresh = rows_.take(extra, (sources.unsqueeze(1) * size + within).flatten())
    fresh["group"] = record["group"][into]
    return rows_.put(record, into, fresh)
