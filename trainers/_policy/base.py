"""The trainer under every reinforcement-learning method: rollouts in, gradients of live rows out.

One rollout batch is drawn, judged in whole groups, and planned into ``updates_per_rollout`` optimiser steps. A method
says which advantages the rewards become (``compute_advantages``) and which objective they enter (``loss``). Both can
also be handed to :class:`PolicyTrainer` as functions; see ``docs/rl_methods.md``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from negpo.errors import ConfigError
from negpo.logprobs import LogprobBatch
from negpo.objectives import clipped_policy_loss
from negpo.rollout import RolloutEngine
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import DUMMY, EMPTY, REAL, Record
from negpo.trainers._policy.collect import AdvantageFunction
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._policy.data import as_dataset, fitting_prompts, guarded
from negpo.trainers._policy.grpo import require_contract
from negpo.trainers._policy.guard import GuardedRun
from negpo.trainers._policy.terms import low_variance_kl, reduce_tokens, reduction_of

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Any]  # (logps, old_logps, advantages, mask) -> loss


class PolicyTrainer(GuardedRun):
    """Policy gradient from verifier rewards, TRL's calling conventions.

    Args:
        model: name, folder or model. reward_funcs: functions in TRL's signature; None or NaN means unknown.
        train_dataset: rows with ``prompt`` (text or messages) and the columns the reward functions read.
        advantages: ``(rewards (N,), groups (N,)) -> (N,)`` in the place of the method's own; NaN rewards are unknown.
        loss: ``(logps, old_logps, advantages, mask) -> loss`` or ``(loss, stats)``, a mean over ``mask``.
        engine: a started rollout engine; default: made from ``args.engine``.
    """

    config_class: type[PolicyConfig] = PolicyConfig

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
        self.own_advantages = advantages
        self.own_loss: Any = loss
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
        self.reward_funcs = guarded(self.reward_funcs, self.reward_func_names, args)
        self._drop_long_prompts()
        self.set_up_rollouts(engine)
        self.install_guards()

    # ---- what a method defines ------------------------------------------------------------------------------------

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        raise ConfigError(f"{type(self).__name__} needs advantages=...: a function of (rewards, groups)")

    def loss(self, batch: Record, logps: Tensor, old_logps: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective as a sum over tokens / ``batch["length"]``, or as a mean over rows where that is 0."""
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
        """0-d tensors of a micro-batch: its kind, the divisor of token sums (0: mean over rows), the step's rows."""
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
        objective = self.loss if self.own_loss is None else self._scaled_own_loss
        loss, stats = objective(batch, logps, old_logps, mask)
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
        """KL to the reference model and entropy bonus, reduced like the loss."""
        terms: Any = 0.0
        if self.beta != 0:
            terms = terms + self.beta * low_variance_kl(scored.logps, batch["ref_logps"])
        if self.args.entropy_coef != 0:
            terms = terms - self.args.entropy_coef * scored.entropy
        return terms if isinstance(terms, float) else reduce_tokens(terms, scored.mask, float(batch["length"]))

    def _drop_long_prompts(self) -> None:
        limit = self.args.max_prompt_length
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None and positions is not None:
            limit = positions - self.args.max_completion_length
        lengths = [len(ids) for ids in self.tokenize_prompts(list(self.train_dataset["prompt"]))]
        needed = self.args.generation_batch_size // self.args.num_generations
        self.train_dataset = fitting_prompts(self.train_dataset, lengths, limit=limit, needed=needed)
