"""The base of all preference trainers: groups in, log-probs per sign, guards against displacement."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from negpo.data.preference import Problems, read_preferences
from negpo.data.preference_encode import Group, encode_groups
from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.logprobs import LogprobBatch, model_token_logprobs
from negpo.logprobs.shared import choose_shared_layout
from negpo.objectives import redi_loss
from negpo.reference import hash_rows, hash_tokenizer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import UNITS, PreferenceDataset, Scored, collate, unit_counts
from negpo.trainers._preference.displacement import DisplacementCallback, log_signs
from negpo.trainers._run.model import check_vocabulary, load_model, load_tokenizer, starting_model
from negpo.trainers._run.offline import OfflineTrainer
from negpo.trainers._run.precision import loading_options
from negpo.trainers._run.reference import Reference

logger = logging.getLogger(__name__)

Terms = list[tuple[float, Tensor, str]]  # (weight, mean over the micro-batch, what the mean runs over)
SIGN_NAMES = {1: "preferred", -1: "dispreferred", 0: "sampled"}


class PreferenceTrainer(OfflineTrainer):
    """Base class. A method says which signs a prompt needs and implements ``preference_loss``.

    Args:
        model: model or name/folder of one; also the reference, for methods that have one.
        args: the method's config.
        train_dataset: rows in any format of ``negpo.data.preference``.
        processing_class: tokenizer; default: the model's.
        ref_model: another reference than the starting model.
        peft_config: train a LoRA adapter.
        template: SFT: what stands around question/answer rows; default: what evaluations of the model use.

    Logged, averaged since the last log: ``loss/NAME``; for ``chosen``, ``rejected`` and ``samples``: ``/logp`` (per
    token), ``/sequence_logp``, ``/length``, ``/tokens``, ``/p_above_99``, ``/log_ratio`` (with a reference) and
    ``/grad_weight`` (sum of dL/dlogp in a micro-batch); over pairs ``margin/logp`` (of sequence means),
    ``ranking/accuracy``, ``ranking/accuracy_per_token``, and with a reference ``margin/log_ratio``,
    ``margin/accuracy``.
    ``report`` holds what encoding dropped or cut.

    Raises ConfigError or DataError before a model is loaded, for everything that can be known by then.
    """

    config_class: ClassVar[type[PreferenceConfig]] = PreferenceConfig
    needs: tuple[int, ...] = (1, -1)  # signs of which every group must hold at least one
    keeps: tuple[int, ...] = (1, -1)  # signs that are trained on; others are left out
    unit: ClassVar[str] = "pairs"  # what the objective averages over: one of UNITS
    has_reference: ClassVar[bool] = True
    answers_only: ClassVar[bool] = False  # also reads rows of answers that nobody judged
    logged_stats: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Any,
        args: PreferenceConfig | None = None,
        train_dataset: Any = None,
        processing_class: Any = None,
        ref_model: Any = None,
        peft_config: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        template: QATemplate | None = None,
    ):
        args = args if args is not None else self.config_class(output_dir=f"{type(self).__name__}-output")
        self.check_arguments(args, train_dataset, ref_model, peft_config)
        tokenizer = load_tokenizer(model, processing_class)
        self.template = self.choose_template(model, tokenizer, template)
        dataset = self.encode(args, tokenizer, train_dataset)
        check_vocabulary(model, tokenizer, dataset.rows)
        model = starting_model(model, args, peft_config)
        if isinstance(ref_model, str):
            ref_model = load_model(ref_model, loading_options(args, adapter=False))
        super().__init__(
            model=model,
            args=args,
            data_collator=partial(collate, pad_id=tokenizer.pad_token_id),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.chosen_logp_floor is not None:
            self.add_callback(DisplacementCallback(args.chosen_logp_floor, patience=args.floor_patience))
        self.reference: Reference | None = None
        self._ref_model = ref_model
        self._reference_digests: list[str] = []
        self._window: Tensor | None = None

    # ---- what a method defines ------------------------------------------------------------------------------------

    def preference_loss(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """``(loss, stats)`` of negpo.objectives, a mean over ``self.unit``."""
        raise NotImplementedError

    def arrange(self, args: Any, groups: list[Group]) -> list[Group]:
        """Last change to the encoded groups, e.g. completions borrowed from another prompt."""
        return groups

    # ---- before training ------------------------------------------------------------------------------------------

    def choose_template(self, model: Any, tokenizer: Any, given: QATemplate | None) -> QATemplate | None:
        """Around question/answer rows, for methods that read them; the others pass on what the model came with."""
        if given is not None and not self.answers_only:
            raise ConfigError(f"template would be ignored: {type(self).__name__} reads no question/answer rows")
        name = model if isinstance(model, str) else model.config._name_or_path
        return QATemplate.choose(name, tokenizer, given) if self.answers_only else QATemplate.saved_in(name)

    def check_arguments(self, args, train_dataset, ref_model, peft_config) -> None:
        if not isinstance(args, self.config_class):
            raise ConfigError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(args).__name__}")
        if train_dataset is None:
            raise ConfigError("train_dataset is missing: pass preference rows")
        if ref_model is not None and not self.has_reference:
            raise ConfigError(f"ref_model would be ignored: {type(self).__name__} has no reference")
        if peft_config is not None and args.trainable_parameters:
            raise ConfigError("peft_config and trainable_parameters exclude each other: LoRA decides what is trained")

    def encode(self, args: PreferenceConfig, tokenizer: Any, train_dataset: Any) -> PreferenceDataset:
        """Validated, tokenised groups that hold every sign the method needs."""
        problems = Problems("train_dataset", args.bad_rows)
        found = read_preferences(train_dataset, problems, answers_only=self.answers_only)
        rows = [row for row in found if row.sign in self.keeps]
        problems.counts.clear()  # told by read_preferences
        groups, self.report = encode_groups(
            rows, tokenizer, args.limits(), problems, append_eos=args.append_eos, template=self.template
        )
        groups = self.complete_groups(groups, problems)
        if args.pairs == "first":
            groups = [group.select(_first_of_each_sign(group)) for group in groups]
        seed = args.data_seed if args.data_seed is not None else args.seed
        return PreferenceDataset(self.arrange(args, groups), seed)

    def complete_groups(self, groups: list[Group], problems: Problems) -> list[Group]:
        """Groups with all signs in ``needs``. After length limits dropped an answer its group is counted, not an
        error: the limits were asked for."""
        kept = []
        for group in groups:
            missing = [SIGN_NAMES[sign] for sign in self.needs if sign not in group.signs]
            if not missing:
                kept.append(group)
                continue
            name = f"prompts without a {missing[0]} answer"
            if group.lost:
                self.report.counts[name] += 1
                continue
            message = f"the prompt has no {missing[0]} answer and {type(self).__name__} needs one. Remove the row"
            problems.add(name, message, group.source)
        self.report.counts.update(problems.counts)
        if not kept:
            raise ConfigError(f"no prompt has all the answers that {type(self).__name__} needs: {self.report.lines()}")
        if len(kept) < len(groups):
            logger.warning("train_dataset: %s", "; ".join(self.report.lines()))
        return kept

    def _prepare_reference(self) -> None:
        if self.reference is not None or not self.has_reference:
            return
        self.reference = Reference(self.model, self._ref_model, source=self.args.reference, needs_model=False)
        if self.reference.source == "cache":
            cache = self._cached(self.reference, self.train_dataset.rows)
            self.train_dataset.use_cache(cache)
        self.reference.ready(self.accelerator)

    def _cached(self, reference: Reference, rows: list[dict[str, list[int]]]) -> Any:
        """Reference log-probs of ``rows`` from disk or computed now; remembered for the checkpoint's provenance."""
        tokenizer = self.processing_class
        cache = reference.cached(
            rows,
            self.accelerator,
            Path(self.args.reference_cache_dir or Path(self.args.output_dir) / "reference"),
            pad_id=tokenizer.pad_token_id,
            max_length=self.args.max_length or 0,
            identity={"tokenizer": hash_tokenizer(tokenizer), "template": "ids are in the hash of the rows"},
        )
        self._reference_digests.append(cache.key.digest())
        return cache

    def _provenance(self) -> dict[str, Any]:
        data = self.train_dataset
        return {
            "preference rows": hash_rows(data.rows),
            "seed": data.seed,
            "reference": self._reference_digests,
        }

    def remarks(self) -> dict[str, Any]:
        return {"data": self.report.lines()}

    # ---- one step -------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts what the whole optimiser batch holds on all processes, for means that run over all of it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            batches = self.prepare_batches(batches)
            total = torch.stack([unit_counts(batch["rows"]) for batch in batches]).sum(0).to(device)
            if self.accelerator.num_processes > 1:
                total = self.accelerator.reduce(total, reduction="sum")
            self._window = total / (len(batches) * self.accelerator.num_processes)
            self.window_rows = _name_rows(torch.cat([batch["rows"]["source"] for batch in batches]))
        return batches, None

    def prepare_batches(self, batches: list[dict]) -> list[dict]:
        """A last chance to exchange the batches of one optimiser step."""
        return batches

    def batch_loss(self, model, inputs) -> Tensor:
        rows = inputs["rows"]
        scored = self.score(model, rows)
        self._check_step_zero(scored)
        counts = dict(zip(UNITS, unit_counts(rows), strict=True))
        total = torch.zeros((), device=scored.logps.device)
        for weight, loss, unit in self.terms(scored, counts):
            share: Tensor | float = 1.0
            if self.args.token_normalization == "batch" and self._window is not None:
                share = counts[unit] / self._window[UNITS.index(unit)].clamp(min=1e-9)
            total = total + weight * share * loss
        log_signs(self._buffer, scored, total)
        return total

    def terms(self, scored: Scored, counts: dict[str, Tensor]) -> Terms:
        """Weighted parts of the loss with what each averages over: the objective, and the anchor if there is one."""
        loss, stats = self.preference_loss(scored)
        self._buffer.add("loss/objective", loss * counts[self.unit], counts[self.unit])
        for name in self.logged_stats:
            self._buffer.add(f"loss/{name}", stats[name] * counts[self.unit], counts[self.unit])
        found = [(1.0, loss, self.unit)]
        if self.args.nll_coeff:
            found.append((self.args.nll_coeff, self._anchor(scored, counts), "pairs"))
        return found

    def _anchor(self, scored: Scored, counts: dict[str, Tensor]) -> Tensor:
        """Mean over pairs of the chosen answer's per-sequence mean NLL."""
        chosen, rejected = scored.side(0), scored.side(1)
        anchor, _ = redi_loss(*chosen, rejected[0].detach(), rejected[1], alpha=0.0)
        self._buffer.add("loss/anchor", anchor * counts["pairs"], counts["pairs"])
        return anchor

    def score(self, model, rows: dict[str, Tensor]) -> Scored:
        """Log-probs of all completions; the prompt is run once per group where that is cheaper."""
        out = self._forward(model, rows)
        ref_logps = rows.get("ref_logps")
        if self.reference is not None and ref_logps is None:
            ref_logps = self.reference_logps(model, rows)
        return Scored(
            out.logps,
            out.mask,
            ref_logps,
            rows["group"],
            rows["sign"],
            rows["score"],
            len(rows["source"]),
            rows["attention_mask"].bool(),
            out.hidden,
        )

    @torch.no_grad()
    def reference_logps(self, model, rows: dict[str, Tensor]) -> Tensor:
        """(R, T-1) where they are not cached."""
        assert self.reference is not None  # score() asks only methods that have one
        with self.reference.active(model) as reference:
            return self._forward(reference, rows).logps

    def _forward(self, model, rows: dict[str, Tensor]) -> LogprobBatch:
        ids, mask = rows["input_ids"], rows["attention_mask"]
        layout = choose_shared_layout(model, ids, mask, rows["group"], rows["shared"], self.args.share_prompt)
        return model_token_logprobs(model, ids, mask, rows["labels"], layout=layout)


def _first_of_each_sign(group: Group) -> list[int]:
    """Places of the first preferred and the first dispreferred completion, and of all neutral ones."""
    return sorted(
        {group.signs.index(sign) for sign in set(group.signs) - {0}}
        | {k for k, sign in enumerate(group.signs) if sign == 0}
    )


def _name_rows(source: Tensor) -> str:
    rows = source.tolist()
    return f"row(s) {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
