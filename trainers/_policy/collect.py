"""How a rollout batch comes about: drawn by the engine, judged in whole groups, scored where a gradient needs it."""

from collections.abc import Callable

import torch
from torch import Tensor

from negpo.logprobs import LogprobBatch, model_token_logprobs
from negpo.rollout import RolloutEngine
from negpo.rollout.decoding import decoding_mode
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.grpo import GRPOAdapter
from negpo.trainers._policy.rewards import GuardedReward
from negpo.trainers._policy.rollouts import PromptStream, RolloutSource
from negpo.trainers._policy.telemetry import GroupKinds, Telemetry
from negpo.trainers._policy.terms import importance_weights
from negpo.trainers._run.hang_watch import HangWatch

AdvantageFunction = Callable[[Tensor, Tensor], Tensor]  # (rewards (N,), groups (N,)) -> (N,)


class CollectsRollouts(GRPOAdapter):
    """The rollout hooks of ``GRPOAdapter``. Methods fill in what stands first."""

    trains_all_rows = True  # False: some rows never carry gradient (NSR, PSR), so rewards are awaited before scoring
    dead_kinds: tuple[str, ...] = ("constant", "unscored")  # GroupKinds that dead_groups=drop and resample act on
    loss_takes_importance = True  # whether advantages may carry importance weights per token
    scores_itself = False  # whether score_old is overridden and must see all of it
    watch: HangWatch
    sharded: bool

    # ---- what a method defines ------------------------------------------------------------------------------------

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) rewards over all processes, NaN where unknown, to (P, G) advantages; 0 means no gradient."""
        raise NotImplementedError

    def labels(self, rewards: Tensor) -> Tensor:
        """(P, G): 1 for right, -1 for wrong, NaN for unknown."""
        signs = torch.where(rewards > self.args.correct_threshold, 1.0, -1.0)
        return torch.where(rewards.isnan(), torch.nan, signs)

    def counted_rows(self, rewards: Tensor, advantages: Tensor) -> Tensor:
        """(P, G) bool: rows whose tokens count in the normaliser, among those with a known reward."""
        return torch.ones_like(rewards, dtype=torch.bool)

    def group_values(self, rewards: Tensor) -> dict[str, Tensor]:
        """Further (P, G) values that ``loss`` finds in its batch under the same name."""
        return {}

    def score_old(self, record: Record, rows: Tensor) -> None:
        """Write ``old_logps`` (N, T-1) of ``rows``; ResRL also turns ``advantages`` into (N, T-1) here."""
        record["old_logps"] = self.score_rows(self.model, record, rows)

    # ---- state ----------------------------------------------------------------------------------------------------

    own_advantages: AdvantageFunction | None = None

    def set_up_rollouts(self, engine: RolloutEngine | None) -> None:
        """Call once the trainer has its model, data and arguments."""
        self.source = RolloutSource(self, engine)
        self.prompts = PromptStream(len(self.train_dataset), self.args.seed)
        self.telemetry = Telemetry(self.accelerator.device)
        self.probe: Record | None = None  # right answers of the current rollout and their old log-probs
        self.looping = (0, 0)  # (looping, judged) completions of the current rollout on this process

    # ---- a rollout ------------------------------------------------------------------------------------------------

    def draw_completions(self, prompt_ids, n):
        first = self.accelerator.process_index * (len(prompt_ids) // n)
        completions, logps = self.source.draw(prompt_ids, n, first)
        # TRL reads the last token of every completion; an empty one gets a placeholder and is left out later.
        if self.model.training:
            self._empty = torch.tensor([not ids for ids in completions], device=self.accelerator.device)
            self.looping = rows_.loops(completions)
        eos = self.eos_token_ids[0]
        filled = [ids or [eos] for ids in completions]
        if any(len(ids) != len(values) for ids, values in zip(completions, logps, strict=True)):
            return filled, None  # the engine gives no log-probs
        return filled, [values or [0.0] for values in logps]

    def rewards_may_start(self, completions, completion_ids, inputs):
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in ("prompt", "completion")}
        prompts = [row["prompt"] for row in inputs]
        hold = {"trainer_state": self.state, "log_extra": None, "log_metric": None}
        for function in self.reward_funcs:
            if isinstance(function, GuardedReward):
                function.start(
                    prompts=prompts, completions=completions, completion_ids=completion_ids, **columns, **hold
                )

    def collect_rollout(self, inputs):
        self._measure_displacement()
        record, dead = self._judged_rollout(inputs)
        if self.args.dead_groups == "resample":
            record = self._resample(record, dead)
        self._finish(record)
        return record

    def _judged_rollout(self, inputs) -> tuple[Record, Tensor]:
        """One round: (local record, (P,) bool dead groups over all processes)."""
        output, per_function = self.raw_rollout(inputs)
        self.watch.beat()
        size = self.args.num_generations
        rewards = self._total_rewards(per_function).view(-1, size)  # (P, G)
        kinds = GroupKinds.of(rewards, self.args.correct_threshold)
        for name, value in kinds.counts().metrics().items():
            self.record_metric(name, value)
        dead = torch.stack([getattr(kinds, name) for name in self.dead_kinds]).any(0)  # (P,)
        known = ~rewards.isnan()
        self.record_metric("rows/unknown", 1.0 - known.float().mean().item())
        advantages = torch.where(known, self._advantages(rewards), 0.0)
        counted = known & self.counted_rows(rewards, advantages)
        if self.args.dead_groups != "keep":
            counted &= ~dead.unsqueeze(1)
        groups = torch.arange(len(rewards), device=rewards.device).unsqueeze(1).expand_as(rewards)
        values = {
            "reward": rewards,
            "advantages": advantages,
            "correct": rewards > self.args.correct_threshold,
            "selected": counted,
            "group": groups,
        } | self.group_values(rewards)
        names = {"sampling_logps": "sampling_per_token_logps", "ref_logps": "ref_per_token_logps"}
        if self._scores_early:
            names["old_logps"] = "old_per_token_logps"
        per_token = {name: output[key] for name, key in names.items() if key in output}
        return rows_.align_rows(output, per_token) | {k: self._local(v) for k, v in values.items()}, dead

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Of the function handed to the trainer, or of the method."""
        if self.own_advantages is None:
            return self.compute_advantages(rewards)
        groups = torch.arange(len(rewards), device=rewards.device).repeat_interleave(rewards.shape[1])
        return self.own_advantages(rewards.flatten(), groups).view_as(rewards)

    def _total_rewards(self, per_function: Tensor) -> Tensor:
        """(N,) float32 over all processes; NaN where unknown or where the engine returned nothing."""
        unknown = per_function.isnan()
        unknown = unknown.any(1) if self.args.partial_rewards == "unknown" else unknown.all(1)
        empty = self.accelerator.gather(self._empty)
        self.record_metric("rows/empty", empty.float().mean().item())
        total = (per_function * self.reward_weights.to(per_function.device)).nansum(1)
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
            inputs = [self.train_dataset[row] for row in drawn for _ in range(size)]
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
        self.record_metric("groups/resampled", replaced / dead.numel())
        return record

    def _finish(self, record: Record) -> None:
        """Decide which rows are run, and score what must be known about them before the first update."""
        args = self.args
        answered = rows_.answer_mask(record).any(1)
        record["selected"] &= answered
        moves = record["advantages"] != 0
        if args.every_row_has_gradient or not args.drop_zero_rows:
            moves = torch.ones_like(moves)
        record["live"] = record["selected"] & moves
        probe = (record["correct"] & answered).nonzero().squeeze(1)[: args.displacement_rows]
        needed = torch.zeros_like(record["live"])
        needed[probe] = True
        if not args.on_policy or args.corrects_importance:
            needed |= record["live"]
        if "old_logps" not in record:
            self.score_old(record, needed.nonzero().squeeze(1))
        self._compare_engines(record, needed)
        self._keep_probe(record, probe)
        if args.on_policy and not args.corrects_importance:
            del record["old_logps"]  # the ratio is 1: current log-probs are the old ones
        self.record_metric("rows/live", record["live"].float().mean().item())

    def _compare_engines(self, record: Record, scored: Tensor) -> None:
        """Log the gap between sampling and training log-probs; bound its ratio where the loss corrects for it."""
        if "sampling_logps" not in record:
            return
        mask = rows_.answer_mask(record) & scored.unsqueeze(1)
        sampling = record.pop("sampling_logps")
        gap = torch.where(mask & sampling.isfinite(), record["old_logps"] - sampling, 0.0)
        self.telemetry.add_masked("mismatch/mean", gap.abs(), mask)
        self.telemetry.add_masked("mismatch/kl", -gap, mask)
        self.record_metric("mismatch/max", gap.abs().max().item())
        if self.args.corrects_importance:
            record["importance"] = importance_weights(gap, mask, self.args)

    # ---- displacement ---------------------------------------------------------------------------------------------

    def _keep_probe(self, record: Record, rows: Tensor) -> None:
        """Remember some right answers and their log-probs before the updates of this rollout."""
        names = ("input_ids", "labels", "lengths", "old_logps")
        self.probe = rows_.take({name: record[name] for name in names}, rows) if len(rows) else None

    def _measure_displacement(self) -> None:
        """``displacement/correct``: change of the log-prob per token of right answers over the last rollout's updates.

        Lazy likelihood displacement (arXiv 2505.18830) shows as a negative number.
        """
        probe, self.probe = self.probe, None
        count = 0 if probe is None else len(probe["lengths"])
        if probe is None and not self.sharded:
            return
        if probe is None:
            probe = rows_.dummy_row(self.accelerator.device)
        rows = torch.arange(count, device=self.accelerator.device)
        now = self.score_rows(self.model, probe, rows)
        if count:
            mask = rows_.answer_mask(probe)
            self.telemetry.add_masked("displacement/correct", now - probe["old_logps"], mask)
            self.telemetry.add("displacement/tokens", mask.sum())

    # ---- log-probs ------------------------------------------------------------------------------------------------

    def forward(self, model, batch: Record, *, entropy: bool = False, packing: str = "auto") -> LogprobBatch:
        """Log-probs of a micro-batch through the one primitive, at the sampling temperature."""
        with self.accelerator.autocast():
            return model_token_logprobs(
                model,
                batch["input_ids"],
                rows_.attention_mask(batch),
                batch["labels"],
                temperature=self.temperature,
                return_entropy=entropy,
                packing=packing,
            )

    def score_rows(self, model, record: Record, rows: Tensor) -> Tensor:
        """Log-probs (N, T-1) without gradient of ``rows``, 0 elsewhere, in trimmed micro-batches sorted by length."""
        scored = torch.zeros_like(record["labels"][:, 1:], dtype=torch.float32)
        parts = rows_.by_length(rows, record["lengths"], self.args.per_device_train_batch_size)
        with decoding_mode(model):
            for i in range(self.agreed(len(parts)) if self.sharded else len(parts)):
                if i < len(parts):
                    logps = self.forward(model, rows_.take(self._tokens_of(record), parts[i])).logps
                    scored[parts[i], : logps.shape[1]] = logps
                else:
                    self.forward(model, rows_.dummy_row(self.accelerator.device))
        return scored

    @staticmethod
    def _tokens_of(record: Record) -> Record:
        return {name: record[name] for name in ("input_ids", "labels", "lengths")}

    def agreed(self, count: int) -> int:
        """The largest ``count`` of all processes."""
        return int(self._agreed(torch.tensor([count]))[0])

    def _agreed(self, counts: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return counts
        return self.accelerator.gather(counts.to(self.accelerator.device).unsqueeze(0)).amax(0).cpu()

    @property
    def _scores_early(self) -> bool:
        """Whether TRL's own pass over old log-probs, before the rewards, is used (it covers every row)."""
        args = self.args
        wanted = self.trains_all_rows if args.overlap_rewards is None else args.overlap_rewards
        return (wanted or args.every_row_has_gradient) and not args.on_policy and not self.scores_itself

    def score_block(self, model, input_ids, attention_mask, completion_width):
        if model is self.model and self.beta == 0 and not self._scores_early:
            return torch.zeros(len(input_ids), completion_width, device=input_ids.device)  # scored in _finish instead
        prompt_width = input_ids.shape[1] - completion_width
        output = {
            "prompt_ids": input_ids[:, :prompt_width],
            "prompt_mask": attention_mask[:, :prompt_width],
            "completion_ids": input_ids[:, prompt_width:],
            "completion_mask": attention_mask[:, prompt_width:],
        }
        record = rows_.align_rows(output, {})
        scored = self.score_rows(model, record, torch.arange(len(input_ids), device=input_ids.device))
        block = torch.zeros(output["completion_ids"].shape, device=input_ids.device)
        block[output["completion_mask"].bool()] = scored[rows_.answer_mask(record)]  # both in row-major order
        return block


def _replace_groups(record: Record, targets: Tensor, extra: Record, sources: Tensor, size: int) -> Record:
    """Rows of groups ``sources`` of ``extra`` in the places of groups ``targets``, whose group numbers they take."""
    within = torch.arange(size, device=targets.device)
    into = (targets.unsqueeze(1) * size + within).flatten()
    fresh = rows_.take(extra, (sources.unsqueeze(1) * size + within).flatten())
    fresh["group"] = record["group"][into]
    return rows_.put(record, into, fresh)
