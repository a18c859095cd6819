"""The trainer under every reinforcement-learning method: rollouts in, gradients of live rows out.

One rollout batch is drawn, judged in whole groups, and planned into ``updates_per_rollout`` optimiser steps. A method
says which advantages the rewards become (``compute_advantages``) and which objective they enter (``loss``). Both can
also be handed to :class:`PolicyTrainer` as functions; see ``docs/rl_methods.md``.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negpo.data.rows import fingerprint_rows
from negpo.errors import ConfigError
from negpo.logprobs import LogprobBatch
from negpo.objectives import clipped_policy_loss, low_variance_kl, reduce_tokens
from negpo.rewards.outcome import cut_off
from negpo.rollout import RolloutEngine
from negpo.rollout.stored import StoredRollouts
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import EMPTY, REAL, MicroBatch, Record
from negpo.trainers._policy.collect import AdvantageFunction, RolloutCollector
from negpo.trainers._policy.config import STORED, PolicyConfig
from negpo.trainers._policy.data import as_dataset, fitting_prompts, guarded, starting_policy, with_readable_golds
from negpo.trainers._policy.displacement import DisplacementProbe
from negpo.trainers._policy.grpo import GRPOAdapter, require_contract
from negpo.trainers._policy.guard import StepGuard
from negpo.trainers._policy.reduction import Reduction, StepTotals
from negpo.trainers._policy.rollouts import RolloutSource
from negpo.trainers._policy.score import RowScorer
from negpo.trainers._policy.state import LastingState
from negpo.trainers._policy.telemetry import Telemetry
from negpo.trainers._policy.verdicts import check_truncated_roles
from negpo.trainers._run.lifecycle import Lifecycle

logger = logging.getLogger(__name__)
LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Any]  # (logps, old_logps, advantages, mask) -> loss


class PolicyTrainer(Lifecycle, GRPOAdapter):  # type: ignore[misc]  # as GRPOAdapter
    """Policy gradient from verifier rewards, TRL's calling conventions.

    Args:
        model: name, folder or model. reward_funcs: functions in TRL's signature; None or NaN means unknown.
        train_dataset: rows with ``prompt`` (text or messages) and the columns the reward functions read.
        advantages: ``(rewards (N,), groups (N,)) -> (N,)`` in the place of the method's own; NaN rewards are unknown.
        loss: ``(logps, old_logps, advantages, mask) -> loss`` or ``(loss, stats)``, a mean over ``mask``.
        engine: a started rollout engine; default: made from ``args.engine``.

    Its parts: ``source`` draws completions, ``collector`` makes a record of them, ``scorer`` computes log-probs,
    ``probe`` follows right answers, ``guard`` judges every step, ``telemetry`` collects the log.
    """

    config_class: type[PolicyConfig] = PolicyConfig
    trains_all_rows = True  # False: some rows never carry gradient (NSR, PSR), so rewards are awaited before scoring
    dead_kinds: tuple[str, ...] = ("constant", "unscored")  # GroupKinds that dead_groups=drop and resample act on
    loss_takes_importance = True  # whether advantages may carry importance weights per token
    scores_itself = False  # whether score_old is overridden and must see all of it

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
        model, peft_config = starting_policy(model, args, peft_config)
        self.own_advantages = advantages
        self.own_loss: Any = loss
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=with_readable_golds(as_dataset(train_dataset), reward_funcs, args, "train_dataset"),
            eval_dataset=eval_dataset
            if eval_dataset is None
            else with_readable_golds(as_dataset(eval_dataset), reward_funcs, args, "eval_dataset"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.reward_funcs = guarded(self.reward_funcs, self.reward_func_names, args)
        check_truncated_roles(self.reward_funcs, str(args.truncated))
        self._drop_long_prompts()
        if (args.engine == STORED) != isinstance(engine, StoredRollouts):
            raise ConfigError(
                f"engine={args.engine} does not go with engine={type(engine).__name__}: stored rollouts need both "
                "args.engine='stored' and a StoredRollouts (negpo.rollout.stored); --rollouts FILE sets them"
            )
        if args.engine == STORED and self.scores_itself:
            raise ConfigError(
                f"{type(self).__name__} reads hidden states of the policy that drew its rollouts; it cannot train on "
                "stored ones"
            )
        self.telemetry = Telemetry(self.accelerator.device)
        self.scorer = RowScorer(
            self.accelerator,
            temperature=self.temperature,
            # alone, a row is scored with the same bits in any company
            size=1 if args.deterministic_rollouts else args.per_device_train_batch_size,
            sharded=self.sharded,
            sharing="never" if args.deterministic_rollouts else args.share_prompt,
        )
        self.probe = DisplacementProbe(self.scorer, self.telemetry)
        self.source = RolloutSource(self, engine)
        self.collector = RolloutCollector(self, self.scorer, self.probe, self.telemetry)
        self.guard = StepGuard.of(args, self.model.config.get_text_config().vocab_size, self.accelerator)
        self._lasting = LastingState(self.source, self.collector.prompts, self.guard, self.probe)

    # ---- what a method defines ------------------------------------------------------------------------------------

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        """(P, G) rewards over all processes, NaN where unknown, to (P, G) advantages; 0 means no gradient."""
        raise ConfigError(f"{type(self).__name__} needs advantages=...: a function of (rewards, groups)")

    def labels(self, rewards: Tensor) -> Tensor:
        """(P, G): 1 for right, -1 for wrong, NaN for unknown: the verdicts on the answers whose rewards these are."""
        return self.collector.labels

    def counted_rows(self, rewards: Tensor, advantages: Tensor) -> Tensor:
        """(P, G) bool: rows whose tokens count in the normaliser, among those with a known reward."""
        return torch.ones_like(rewards, dtype=torch.bool)

    def group_values(self, rewards: Tensor) -> dict[str, Tensor]:
        """Further (P, G) values that ``loss`` finds in its batch under the same name."""
        return {}

    def score_old(self, record: Record, rows: Tensor) -> None:
        """Write ``old_logps`` (N, T-1) of ``rows``; ResRL also turns ``advantages`` into (N, T-1) here."""
        record["old_logps"] = self.scorer.rows(self.model, record, rows)

    def loss(
        self, batch: MicroBatch, logps: Tensor, old_logps: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective, reduced as ``batch["reduction"]`` says: a token sum over a length, or a mean over rows."""
        return clipped_policy_loss(
            logps,
            old_logps,
            batch["advantages"],
            mask,
            clip_low=self.args.epsilon,
            clip_high=self.args.epsilon if self.args.epsilon_high is None else self.args.epsilon_high,
            dual_clip=self.args.delta,
            **batch["reduction"].arguments,
        )

    def _scaled_own_loss(self, batch, logps, old_logps, mask):
        result = self.own_loss(logps, old_logps, batch["advantages"], mask)
        loss, stats = result if isinstance(result, tuple) else (result, {})
        length = batch["reduction"].length
        return (loss if length is None else loss * mask.sum() / length), stats

    # ---- the rollout hooks of GRPOAdapter -------------------------------------------------------------------------

    def draw_completions(self, prompt_ids, n):
        first = self.accelerator.process_index * (len(prompt_ids) // n)
        completions, logps = self.source.draw(prompt_ids, n, first)
        # TRL reads the last token of every completion; an empty one gets a placeholder and is left out later.
        if self.model.training:
            device, limit = self.accelerator.device, self.args.max_completion_length
            self.collector.empty = torch.tensor([not ids for ids in completions], device=device)
            self.collector.cut = torch.tensor(cut_off(completions, limit, self.eos_token_ids), device=device)
            self.guard.looping = rows_.loops(completions)
        eos = self.eos_token_ids[0]
        filled = [ids or [eos] for ids in completions]
        if any(len(ids) != len(values) for ids, values in zip(completions, logps, strict=True)):
            return filled, None  # the engine gives no log-probs
        return filled, [values or [0.0] for values in logps]

    def rewards_may_start(self, completions, completion_ids, inputs):
        self.collector.start_rewards(completions, completion_ids, inputs)

    def score_block(self, model, input_ids, attention_mask, completion_width):
        if model is self.model and self.beta == 0 and not self.collector.scores_early:
            return torch.zeros(len(input_ids), completion_width, device=input_ids.device)  # scored after the rewards
        return self.scorer.block(model, input_ids, attention_mask, completion_width)

    def collect_rollout(self, inputs):
        return self.collector.collect(inputs)

    # ---- the plan and the loss ------------------------------------------------------------------------------------

    def plan(self, record):
        updates, slots = self.args.updates_per_rollout, self.args.gradient_accumulation_steps
        size, groups = self.args.per_device_train_batch_size, self.scorer.keeps_groups(self.model, record)
        plans = rows_.plan_updates(record, updates, size, groups=groups)
        if groups and max(map(len, plans)) > slots:  # groups of an odd size do not fill their micro-batches
            plans = rows_.plan_updates(record, updates, size)
        # Each step ends with a forward on every process, so that gradients are reduced and exist everywhere.
        forwards = self.scorer.most(torch.tensor([max(1, len(parts)) for parts in plans])).tolist()
        totals = rows_.update_totals(record, updates)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        return [
            batch | StepTotals(tokens, selected, forward).tensors()
            for parts, forward, (tokens, selected) in zip(plans, forwards, totals.tolist(), strict=True)
            for batch in rows_.fill_slots(record, parts, forward, slots)
        ]

    def micro_batch_loss(self, model, batch):
        kind = int(batch["kind"])
        if kind == EMPTY and not self.sharded:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        if kind != REAL:
            return 0.0 * self.scorer.forward_nothing(model).logps.sum()
        with_entropy = self.args.log_entropy or self.args.entropy_coef != 0
        return self._loss_of(batch, self.scorer.forward(model, batch, entropy=with_entropy))

    def _loss_of(self, record: Record, scored: LogprobBatch) -> Tensor:
        logps, mask = scored.logps, scored.mask
        old_logps = record["old_logps"] if "old_logps" in record else logps.detach()
        reduction = Reduction.of(self.args, StepTotals.of(record), mask, self.accelerator.num_processes)
        batch: MicroBatch = {**record, "reduction": reduction}
        if "importance" in batch:
            advantages = batch["advantages"]
            advantages = advantages if advantages.ndim == 2 else advantages.unsqueeze(1)
            batch["advantages"] = advantages * batch["importance"]
        objective = self.loss if self.own_loss is None else self._scaled_own_loss
        loss, stats = objective(batch, logps, old_logps, mask)
        loss = loss + self._extra_terms(batch, scored, old_logps)
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
        self.guard.observe(logps, old_logps, mask, scored.entropy, loss)
        return loss * reduction.share

    def _extra_terms(self, batch: MicroBatch, scored: LogprobBatch, old_logps: Tensor) -> Tensor | float:
        """KL to the reference model and entropy bonus, reduced like the loss.

        ``use_bias_correction_kl`` (TRL's default) weights the KL by the ratio to the policy that sampled, as in
        DeepSeek-V3.2 (arXiv 2512.02556): the estimator is then unbiased off-policy, and so is its gradient.
        """
        terms: Any = 0.0
        if self.beta != 0:
            divergence = low_variance_kl(scored.logps, batch["ref_logps"], scored.mask)
            if self.args.use_bias_correction_kl:
                gap = torch.where(scored.mask, scored.logps - old_logps, 0.0)
                divergence = divergence * gap.exp()
            terms = terms + self.beta * divergence
        if self.args.entropy_coef != 0:
            terms = terms - self.args.entropy_coef * scored.entropy
        return terms if isinstance(terms, float) else reduce_tokens(terms, scored.mask, **batch["reduction"].arguments)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.micro_step % self.args.gradient_accumulation_steps == 0:
            report = self.guard.judge()
            if report.looping is not None:
                self.record_metric("completions/looping", report.looping)
            if not report.finite:
                self.stop_not_finite("the loss or a log-prob is not finite,")
            if report.reason is not None:
                self.stop(f"{report.reason},")
        return loss

    # ---- what a run keeps -----------------------------------------------------------------------------------------

    def _drain(self) -> dict[str, float]:
        return self.telemetry.drain(self.accelerator)

    def close(self) -> None:
        self.source.close()

    def _begin(self) -> None:
        self.micro_step, self.buffered = 0, None
        if self.args.engine == STORED:
            self._bind_stored(self.source.engine)

    def _bind_stored(self, engine: Any) -> None:
        """Token ids of the stored prompts, and log-probs that the file lacks, of the starting model."""
        prompts = self.tokenize_prompts([row["prompt"] for row in self.train_dataset])
        engine.bind(prompts, self.args.generation_batch_size // self.args.num_generations)
        if missing := engine.fill(self._score_pairs):
            logger.info("%s: log-probs of %d completions computed with the starting model", engine.file, missing)

    def _score_pairs(self, prompts: list[list[int]], completions: list[list[int]]) -> list[list[float]]:
        pad, device = self.processing_class.pad_token_id, self.accelerator.device
        width, answer = max(map(len, prompts)), max(map(len, completions))
        ids = torch.full((len(prompts), width + answer), pad, device=device)
        mask = torch.zeros_like(ids)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            ids[row, width - len(prompt) : width + len(completion)] = torch.tensor(prompt + completion, device=device)
            mask[row, width - len(prompt) : width + len(completion)] = 1
        scored = self.scorer.block(self.model, ids, mask, answer)
        return [row[: len(completion)].tolist() for row, completion in zip(scored, completions, strict=True)]

    @property
    def keeps_state_per_process(self) -> bool:
        return True  # its own part of the rollout

    def _save_extras(self, folder: Path) -> None:
        step = self.state.global_step * self.args.gradient_accumulation_steps
        inside = step % (self.args.steps_per_generation * self.args.num_iterations) != 0
        buffered = self.buffered if inside and self.buffered else []
        self._lasting.save(folder, self.accelerator.process_index, step, buffered)

    def _load_extras(self, folder: Path) -> None:
        rank, device = self.accelerator.process_index, self.accelerator.device
        self.micro_step, self.buffered = self._lasting.load(folder, rank, device)

    def _provenance(self) -> dict[str, Any]:
        args = self.args
        if not hasattr(self, "_rows_digest"):
            self._rows_digest = fingerprint_rows(list(self.train_dataset))
        return {
            "training rows": self._rows_digest,
            "seed": args.seed,
            "batch layout": [
                args.generation_batch_size,
                args.num_generations,
                args.gradient_accumulation_steps,
                args.num_iterations,
            ],
        }

    def _drop_long_prompts(self) -> None:
        limit = self.args.max_prompt_length
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None and positions is not None:
            limit = positions - self.args.max_completion_length
        lengths = [len(ids) for ids in self.tokenize_prompts(list(self.train_dataset["prompt"]))]
        needed = self.args.generation_batch_size // self.args.num_generations
        self.train_dataset = fitting_prompts(self.train_dataset, lengths, limit=limit, needed=needed)
