"""The trainer under every reinforcement-learning method: rollouts in, gradients of live rows out.

One rollout batch is drawn, judged in whole groups, and planned into ``updates_per_rollout`` optimiser steps. A method
says which advantages the rewards become (``compute_advantages``) and which objective they enter (``loss``). Both can also
be handed to :class:`PolicyTrainer` as functions; see ``docs/rl_methods.md``.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from negpo.errors import ConfigError, DataError
from negpo.logprobs import LogprobBatch, model_token_logprobs
from negpo.objectives import clipped_policy_loss
from negpo.rollout import RolloutEngine
from negpo.rollout.decoding import decoding_mode
from negpo.trainers import _rl_batch as rows_
from negpo.trainers._grpo import GRPOAdapter, require_contract
from negpo.trainers._rl_batch import DUMMY, EMPTY, REAL, Record
from negpo.trainers._rl_config import PolicyConfig
from negpo.trainers._rl_guard import GuardedRun
from negpo.trainers._rl_rewards import GuardedReward
from negpo.trainers._rl_rollouts import PromptStream, RolloutSource
from negpo.trainers._rl_telemetry import GroupKinds, Telemetry

logger = logging.getLogger(__name__)

AdvantageFunction = Callable[[Tensor, Tensor], Tensor]  # (rewards (N,), groups (N,)) -> (N,)
LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Any]  # (logps, old_logps, advantages, mask) -> loss


class PolicyTrainer(GuardedRun, GRPOAdapter):
    """Policy gradient from verifier rewards, TRL's calling conventions.

    Args:
        model: name, folder or model. reward_funcs: functions in TRL's signature; None or NaN means unknown.
        train_dataset: rows with ``prompt`` (text or messages) and the columns the reward functions read.
        advantages: ``(rewards (N,), groups (N,)) -> (N,)`` in the place of the method's own; NaN rewards are unknown.
        loss: ``(logps, old_logps, advantages, mask) -> loss`` or ``(loss, stats)``, a mean over ``mask``.
        engine: a started rollout engine; default: made from ``args.engine``.
    """

    config_class: type[PolicyConfig] = PolicyConfig
    trains_all_rows = True  # False: some rows never carry gradient (NSR, PSR), so rewards are awaited before scoring
    dead_kinds: tuple[str, ...] = ("constant", "unscored")  # GroupKinds that dead_groups=drop and resample act on
    loss_takes_importance = True  # whether advantages may carry importance weights per token

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: PolicyConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        peft_config: Any = None,
        *,
        advantages: AdvantageFunction | None = None,
        loss: LossFunction | None = None,
        engine: RolloutEngine | None = None,
    ):
        require_contract()
        args = args if args is not None else self.config_class(output_dir=f"{type(self).__name__}-output")
        if not isinstance(args, self.config_class):
            raise ConfigError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(args).__name__}")
        if args.corrects_importance and not (self.loss_takes_importance and loss is None):
            raise ConfigError(
                f"{type(self).__name__} has no importance correction for engine={args.engine}; set "
                "vllm_importance_sampling_correction=false"
            )
        self.own_advantages, self.own_loss = advantages, loss
        self._closed = False
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=as_dataset(train_dataset),
            eval_dataset=eval_dataset if eval_dataset is None else as_dataset(eval_dataset),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self._drop_long_prompts()
        self._guard_rewards()
        self.source = RolloutSource(self, engine)
        self.prompts = PromptStream(len(self.train_dataset), args.seed)
        self.telemetry = Telemetry(self.accelerator.device)
        self.install_guards()

    # ---- what a method defines ------------------------------------------------------------------------------------

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) rewards over all processes, NaN where unknown, to (P, G) advantages; 0 means no gradient."""
        if self.own_advantages is None:
            raise ConfigError("PolicyTrainer needs advantages=...: a function of (rewards, groups)")
        groups = torch.arange(len(rewards), device=rewards.device).repeat_interleave(rewards.shape[1])
        return self.own_advantages(rewards.flatten(), groups).view_as(rewards)

    def counted_rows(self, rewards: Tensor, advantages: Tensor) -> Tensor:
        """(P, G) bool: rows whose tokens count in the normaliser, among those with a known reward."""
        return torch.ones_like(rewards, dtype=torch.bool)

    def group_values(self, rewards: Tensor) -> dict[str, Tensor]:
        """Further (P, G) values that ``loss`` finds in its batch under the same name."""
        return {}

    def score_old(self, record: Record, rows: Tensor) -> None:
        """Write ``old_logps`` (N, T-1) of ``rows``; ResRL also turns ``advantages`` into (N, T-1) here."""
        record["old_logps"] = self.score_rows(self.model, record, rows)

    def loss(self, batch: Record, logps: Tensor, old_logps: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective as a sum over tokens / ``batch["length"]``, or as a mean over rows where that is 0."""
        if self.own_loss is not None:
            return self._scaled_own_loss(batch, logps, old_logps, mask)
        return clipped_policy_loss(
            logps,
            old_logps,
            batch["advantages"],
            mask,
            clip_low=self.args.epsilon,
            clip_high=self.args.epsilon if self.args.epsilon_high is None else self.args.epsilon_high,
            dual_clip=self.args.delta,
            **reduction_of(batch),
        )

    def _scaled_own_loss(self, batch, logps, old_logps, mask):
        result = self.own_loss(logps, old_logps, batch["advantages"], mask)
        loss, stats = result if isinstance(result, tuple) else (result, {})
        length = float(batch["length"])
        return (loss * mask.sum() / length if length else loss), stats

    # ---- a rollout ------------------------------------------------------------------------------------------------

    def draw_completions(self, prompt_ids, n):
        first = self.accelerator.process_index * (len(prompt_ids) // n)
        completions, logps = self.source.draw(prompt_ids, n, first)
        # TRL reads the last token of every completion; an empty one gets a placeholder and is left out later.
        self._empty = torch.tensor([not ids for ids in completions], device=self.accelerator.device)
        self._looping = rows_.loops(completions)
        eos = self.eos_token_ids[0]
        return [ids or [eos] for ids in completions], [values or [0.0] for values in logps]

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
        self.measure_displacement()
        record, dead = self._judged_rollout(inputs)
        if self.args.dead_groups == "resample":
            record = self._resample(record, dead)
        self._finish(record)
        return record

    def _judged_rollout(self, inputs) -> tuple[Record, Tensor]:
        """One round: (local record, (P,) bool dead groups over all processes)."""
        output, per_function = self.raw_rollout(inputs)
        size = self.args.num_generations
        rewards = self._total_rewards(per_function).view(-1, size)  # (P, G)
        kinds = GroupKinds.of(rewards, self.args.correct_threshold)
        for name, value in kinds.counts().metrics().items():
            self.record_metric(name, value)
        dead = torch.stack([getattr(kinds, name) for name in self.dead_kinds]).any(0)  # (P,)
        known = ~rewards.isnan()
        self.record_metric("rows/unknown", 1.0 - known.float().mean().item())
        advantages = torch.where(known, self.compute_advantages(rewards), 0.0)
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
        self.keep_probe(record, probe)
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

    # ---- log-probs ------------------------------------------------------------------------------------------------

    def forward(self, model, batch: Record, *, entropy: bool = False) -> LogprobBatch:
        with self.accelerator.autocast():
            return model_token_logprobs(
                model,
                batch["input_ids"],
                rows_.attention_mask(batch),
                batch["labels"],
                temperature=self.temperature,
                return_entropy=entropy,
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

    @property
    def sharded(self) -> bool:
        """Whether a forward needs the other processes (ZeRO, FSDP)."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

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
        return (wanted or args.every_row_has_gradient) and not args.on_policy and not self._scores_itself

    @property
    def _scores_itself(self) -> bool:
        return type(self).score_old is not PolicyTrainer.score_old

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

    # ---- the plan and the loss ------------------------------------------------------------------------------------

    def plan(self, record):
        updates, slots = self.args.updates_per_rollout, self.args.gradient_accumulation_steps
        plans = rows_.plan_updates(record, updates, self.args.per_device_train_batch_size)
        # Each step ends with a forward on every process, so that gradients are reduced and exist everywhere.
        forwards = self._agreed(torch.tensor([max(1, len(parts)) for parts in plans])).tolist()
        totals = rows_.update_totals(record, updates)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        batches = []
        for parts, forward, (tokens, selected) in zip(plans, forwards, totals.tolist(), strict=True):
            kinds = [EMPTY] * (slots - forward) + [DUMMY] * (forward - len(parts)) + [REAL] * len(parts)
            waiting = iter(parts)
            for kind in kinds:
                batch = rows_.take(record, next(waiting)) if kind == REAL else {}
                batches.append(batch | self._scales(kind, tokens, selected, forward))
        return batches

    def _scales(self, kind: int, tokens: float, selected: float, forwards: int) -> Record:
        """0-d tensors of a micro-batch: its kind, the divisor of token sums (0: mean over rows), and the rows' divisor."""
        args = self.args
        length = {
            "token_mean": tokens,
            "sequence_mean": 0.0,
            "max_length": selected * args.max_completion_length,
            "constant": args.normalizer_length,
            "micro_batch_token_mean": -float(forwards),
        }[args.normalizer]
        values = {"length": length, "step_rows": selected}
        scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        return scalars | {"kind": torch.tensor(kind)}

    def micro_batch_loss(self, model, batch):
        kind = int(batch["kind"])
        if kind == EMPTY and not self.sharded:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        if kind != REAL:
            return 0.0 * self.forward(model, rows_.dummy_row(self.accelerator.device)).logps.sum()
        with_entropy = self.args.log_entropy or self.args.entropy_coef != 0
        scored = self.forward(model, batch, entropy=with_entropy)
        return self._loss_of(batch, scored)

    def _loss_of(self, batch: Record, scored: LogprobBatch) -> Tensor:
        logps, mask = scored.logps, scored.mask
        old_logps = batch["old_logps"] if "old_logps" in batch else logps.detach()
        share = self.accelerator.num_processes  # processes are averaged, the loss is a sum over them
        if float(batch["length"]) < 0:  # a token mean per micro-batch, averaged over micro-batches and processes
            share = -1.0 / float(batch["length"])
            batch = batch | {"length": mask.sum().double()}
        elif float(batch["length"]) == 0:
            share *= int(mask.any(1).sum()) / float(batch["step_rows"])
        if "importance" in batch:
            advantages = batch["advantages"]
            advantages = advantages if advantages.ndim == 2 else advantages.unsqueeze(1)
            batch = batch | {"advantages": advantages * batch["importance"]}
        loss, stats = self.loss(batch, logps, old_logps, mask)
        loss = loss + self._extra_terms(batch, scored)
        self.telemetry.add("rows/forward", len(mask))
        self.telemetry.add("rows/trained", mask.any(1).sum())
        self.telemetry.add_policy(
            logps,
            old_logps,
            batch["advantages"],
            mask,
            entropy=scored.entropy,
            importance=batch.get("importance"),
            stats=stats,
        )
        self.observe(logps, old_logps, mask, scored.entropy, loss)
        return loss * share

    def _extra_terms(self, batch: Record, scored: LogprobBatch) -> Tensor | float:
        """KL to the reference model (the k3 estimate, verl's ``low_var_kl``) and the entropy bonus, as the loss is summed."""
        terms = 0.0
        if self.beta != 0:
            gap = (batch["ref_logps"] - scored.logps).clamp(-20.0, 20.0)
            terms = terms + self.beta * (gap.exp() - gap - 1.0)
        if self.args.entropy_coef != 0:
            terms = terms - self.args.entropy_coef * scored.entropy
        return terms if isinstance(terms, float) else reduce_tokens(terms, scored.mask, float(batch["length"]))

    # ---- data and rewards -----------------------------------------------------------------------------------------

    def _drop_long_prompts(self) -> None:
        """Leave out prompts beyond the limit, with a count; ConfigError when too few remain for one rollout batch."""
        limit = self.args.max_prompt_length
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None and positions is not None:
            limit = positions - self.args.max_completion_length
        lengths = [len(ids) for ids in self.tokenize_prompts(list(self.train_dataset["prompt"]))]
        kept = [row for row, length in enumerate(lengths) if limit is None or length <= limit]
        if dropped := len(lengths) - len(kept):
            logger.warning("%d of %d prompts are longer than %d tokens and left out", dropped, len(lengths), limit)
            self.train_dataset = self.train_dataset.select(kept)
        self.prompts_left_out = dropped
        needed = self.args.generation_batch_size // self.args.num_generations
        if len(kept) < needed:
            raise ConfigError(
                f"one rollout batch needs {needed} prompts, the data has {len(kept)} of at most {limit} tokens. Use more "
                "prompts, a smaller batch, fewer updates_per_rollout, or a larger max_prompt_length"
            )

    def _guard_rewards(self) -> None:
        args = self.args
        for place, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if not isinstance(function, torch.nn.Module):
                self.reward_funcs[place] = GuardedReward(
                    function,
                    name,
                    timeout=args.reward_timeout,
                    max_timeouts=args.max_reward_timeouts,
                    errors=args.reward_errors,
                )


def as_dataset(rows: Any) -> Dataset:
    """A ``datasets.Dataset`` from one or from a list of rows; DataError names the row without a usable prompt."""
    if rows is None:
        raise ConfigError("train_dataset is missing: pass rows with a prompt and what the reward functions read")
    if not isinstance(rows, Dataset):
        if not isinstance(rows, list):
            raise ConfigError(
                f"train_dataset is a {type(rows).__name__}; pass a Dataset or a list of rows (a stream cannot be resumed "
                "exactly)"
            )
        rows = Dataset.from_list(rows)
    if "prompt" not in rows.column_names:
        raise DataError(f"found columns {rows.column_names}; need prompt", file="train_dataset", field="prompt")
    for index, prompt in enumerate(rows["prompt"]):
        if not prompt:
            raise DataError(f"is {prompt!r}; need text or messages", file="train_dataset", row=index, field="prompt")
    return rows


def reduction_of(batch: Record) -> dict[str, Any]:
    """``reduction`` and ``length`` for ``clipped_policy_loss``."""
    length = float(batch["length"])
    return {"reduction": "constant", "length": length} if length else {"reduction": "sequence_mean"}


def reduce_tokens(values: Tensor, mask: Tensor, length: float) -> Tensor:
    """(B, T) to a sum over tokens / ``length``; with length 0 the mean over rows of their token means."""
    values = torch.where(mask, values, 0.0)
    if length:
        return values.sum() / length
    return (values.sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum().clamp(min=1)


def importance_weights(gap: Tensor, mask: Tensor, args: PolicyConfig) -> Tensor:
    """Weights (N, T-1) from ``gap`` = training minus sampling log-prob: truncated, or 0 outside the bounds."""
    level, bound = args.vllm_importance_sampling_mode.split("_")
    if level == "sequence":
        gap = torch.where(mask, gap, 0.0).sum(1, keepdim=True).expand_as(gap)
    weight = gap.clamp(-20.0, 20.0).exp()
    low = args.vllm_importance_sampling_clip_min
    high = args.vllm_importance_sampling_clip_max
    low, high = (0.0 if low is None else low), (float("inf") if high is None else high)
    if bound == "truncate":
        return weight.clamp(low, high)
    return torch.where((weight >= low) & (weight <= high), weight, 0.0)


def _replace_groups(record: Record, targets: Tensor, extra: Record, sources: Tensor, size: int) -> Record:
    """Rows of groups ``sources`` of ``extra`` in the places of groups ``targets``, whose group numbers they take."""
    within = torch.arange(size, device=targets.device)
    into = (targets.unsqueeze(1) * size + within).flatten()
    fresh = rows_.take(extra, (sources.unsqueeze(1) * size + within).flatten())
    fresh["group"] = record["group"][into]
    return rows_.put(record, into, fresh)
