"""The base of all unlearning trainers: data flow, normalisation, guards and logs. The maths is in negpo.objectives."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.logprobs import retain_kl_from_models
from negpo.objectives import nll_loss
from negpo.reference import hash_rows, hash_tokenizer
from negpo.trainers._run.model import check_vocabulary, load_model, load_tokenizer, starting_model
from negpo.trainers._run.offline import OfflineTrainer
from negpo.trainers._run.precision import loading_options
from negpo.trainers._run.reference import Reference
from negpo.trainers._unlearn.batch import Part, count, counts, name_rows
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers._unlearn.constraint import RetainConstraint
from negpo.trainers._unlearn.data import (
    ForgetRetainDataset,
    check_disjoint,
    check_rows,
    collate,
    encode_rows,
)
from negpo.trainers._unlearn.scoring import Scoring
from negpo.trainers._unlearn.sharpness import SharpnessAware

logger = logging.getLogger(__name__)


class UnlearnTrainer(SharpnessAware, Scoring, OfflineTrainer):
    """Base class. A method sets a few class attributes and implements ``forget_loss``.

    Args:
        model: model or name/folder of one. Training starts from it and, for methods with a reference, so does the
            reference.
        args: the method's config.
        train_dataset: forget rows, dicts with question/answer, prompt/completion, text or input_ids/labels.
        retain_dataset: rows to keep, same formats; needed exactly when ``args.retain_loss`` is not "none".
        processing_class: tokenizer; default: the model's.
        ref_model: another reference than the starting model.
        peft_config: train a LoRA adapter (a quantised base makes it QLoRA).
        template: how question and answer become text; default: the model family's published one.

    Logged under stable names, averaged since the last log: ``forget/loss``, ``forget/logp``, ``forget/p_above_99``,
    ``forget/tokens``, ``forget/grad_weight``, ``forget/dead_rows``, ``forget/log_ratio`` (with a reference), and
    ``retain/loss``, ``retain/logp``, ``retain/p_above_99``, ``retain/tokens``. See ``_metrics.LogBuffer``.

    Raises ConfigError or DataError before a model is loaded, for everything that can be known by then.
    """

    template: QATemplate
    config_class: ClassVar[type[UnlearnConfig]] = UnlearnConfig
    reduction: ClassVar[str] = "tokens"  # what the objective averages over: "tokens" or "rows"
    logged_stats: ClassVar[tuple[str, ...]] = ()  # further statistics of the objective, logged as forget/NAME
    needs_reference_model: ClassVar[bool] = False  # log-probs are not enough: a reference model is needed every step
    has_own_retain_term: ClassVar[bool] = False  # needs retain_dataset whatever retain_loss says

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig | None = None,
        train_dataset: Any = None,
        retain_dataset: Any = None,
        processing_class: Any = None,
        ref_model: Any = None,
        peft_config: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        template: QATemplate | None = None,
    ):
        args = args if args is not None else self.config_class(output_dir=f"{type(self).__name__}-output")
        self.check_arguments(model, args, train_dataset, retain_dataset, ref_model, peft_config)
        tokenizer = load_tokenizer(model, processing_class)
        name = model if isinstance(model, str) else model.config._name_or_path
        self.template = QATemplate.choose(name, tokenizer, template)
        dataset = self.encode(args, tokenizer, train_dataset, retain_dataset)
        check_vocabulary(model, tokenizer, [*dataset.forget, *(dataset.retain or []), *(dataset.idk or [])])

        self._reference_parts = self.reference_parts(args)
        self._needs_model = self.needs_reference_model or args.retain_loss == "kl"
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
        self.reference: Any = None  # a Reference once training starts
        self._ref_model = ref_model
        self._reference_digests: dict[str, str] = {}
        self._window: dict[str, torch.Tensor] = {}
        self.check_sharpness()
        self.constraint: RetainConstraint | None = None
        if args.retain_constraint is not None:
            start = args.grad_diff_coeff if args.retain_loss == "nll" else args.kl_coeff
            bound, step = args.retain_constraint, args.dual_step
            self.constraint = RetainConstraint(self, start=start, bound=bound, step=step, warmup=args.dual_warmup)
            self.add_callback(self.constraint)

    # ---- what a method defines ------------------------------------------------------------------------------------

    def reference_parts(self, args: UnlearnConfig) -> tuple[str, ...]:
        """Parts whose reference log-probs the objective reads: "forget", "idk"."""
        return ()

    def forget_loss(self, parts: dict[str, Part]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The objective on ``parts["forget"]`` (and ``parts["idk"]``): ``(loss, stats)`` of negpo.objectives."""
        raise NotImplementedError

    # ---- before training ------------------------------------------------------------------------------------------

    def check_arguments(self, model, args, train_dataset, retain_dataset, ref_model, peft_config) -> None:
        """Contradictions between the arguments; everything else is checked by the config itself."""
        if not isinstance(args, self.config_class):
            raise ConfigError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(args).__name__}")
        if train_dataset is None:
            raise ConfigError("train_dataset is missing: pass the rows to forget")
        uses_retain = args.retain_loss != "none" or self.has_own_retain_term
        if uses_retain and retain_dataset is None:
            change = "" if self.has_own_retain_term else " or set retain_loss=none"
            raise ConfigError(f"retain_dataset is missing: the loss has a retain term. Pass rows to keep{change}")
        if not uses_retain and retain_dataset is not None:
            raise ConfigError(
                "retain_dataset would be ignored: retain_loss is none. Set retain_loss=nll or kl, or drop it"
            )
        if peft_config is not None and args.trainable_parameters:
            raise ConfigError("peft_config and trainable_parameters exclude each other: LoRA decides what is trained")
        needs_model = self.needs_reference_model or args.retain_loss == "kl"
        if ref_model is not None and ref_model is model:
            raise ConfigError("ref_model is the model being trained; leave it out, the start is the reference anyway")
        if ref_model is not None and not (self.reference_parts(args) or needs_model):
            raise ConfigError(f"ref_model would be ignored: {type(self).__name__} with these settings has no reference")

    def encode(self, args, tokenizer, train_dataset, retain_dataset) -> ForgetRetainDataset:
        """Validated and tokenised rows; DataError names argument, row and field."""
        forget_rows = check_rows(train_dataset, "train_dataset")
        encode = partial(encode_rows, tokenizer=tokenizer, template=self.template, max_length=args.max_length)
        retain = None
        if retain_dataset is not None:
            retain_rows = check_rows(retain_dataset, "retain_dataset")
            check_disjoint(forget_rows, retain_rows)
            retain, _ = encode(retain_rows, name="retain_dataset")
        forget, row_ids = encode(forget_rows, name="train_dataset", label_stride=args.label_stride)
        seed = args.data_seed if args.data_seed is not None else args.seed
        return ForgetRetainDataset(forget, retain, seed, args.pairing == "fixed", row_ids)

    def _prepare_reference(self) -> None:
        if self.reference is not None or not (self._reference_parts or self._needs_model):
            return
        self.reference = Reference(
            self.model, self._ref_model, source=self.args.reference, needs_model=self._needs_model
        )
        if self.reference.source == "cache":
            self._fill_caches(self.reference)
        self.reference.ready(self.accelerator)

    def _fill_caches(self, reference: Reference) -> None:
        """Reference log-probs of every part that the objective reads them of, from disk or computed now."""
        identity = {
            "tokenizer": hash_tokenizer(self.processing_class),
            "template": self.template.hash(self.processing_class),
        }
        directory = Path(self.args.reference_cache_dir or Path(self.args.output_dir) / "reference")
        for part in self._reference_parts:
            cache = reference.cached(
                getattr(self.train_dataset, part),
                self.accelerator,
                directory,
                pad_id=self.processing_class.pad_token_id,
                max_length=self.args.max_length,
                identity=identity,
            )
            self.train_dataset.references[part] = cache
            self._reference_digests[part] = cache.key.digest()

    def _provenance(self) -> dict[str, Any]:
        data = self.train_dataset
        return {
            "forget rows": hash_rows(data.forget),
            "retain rows": None if data.retain is None else hash_rows(data.retain),
            "seed and pairing": [data.seed, data.fixed_pairing],
            "reference": self._reference_digests,
        }

    # ---- one step -------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts what the whole optimiser batch holds on all processes, for means that run over all of it."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            pieces = len(batches) * self.accelerator.num_processes
            for part in batches[0]:
                total = torch.stack([counts(batch[part]) for batch in batches]).sum(0).to(device)
                if self.accelerator.num_processes > 1:
                    total = self.accelerator.reduce(total, reduction="sum")
                self._window[part] = total / pieces
            rows = torch.cat([batch["forget"]["row_id"] for batch in batches])
            self.window_rows = name_rows("forget", rows.tolist())
        return batches, None

    def batch_loss(self, model, inputs) -> torch.Tensor:
        """The scaled loss of one micro-batch; ``inputs`` may hold the forget part or the retain part alone."""
        parts = self.score(model, inputs)
        total = torch.zeros((), device=next(iter(inputs.values()))["input_ids"].device)
        if "forget" in parts:
            total = total + self._forget_term(inputs, parts)
        if self.args.retain_loss != "none" and "retain" in inputs:
            total = total + self._retain_part(model, inputs, parts)
        return total

    def _forget_term(self, inputs, parts: dict[str, Part]) -> torch.Tensor:
        self._check_step_zero(*parts.values())
        loss, stats = self.forget_loss(parts)
        self._log_forget(parts["forget"], loss, stats, count(inputs["forget"], self.reduction))
        if "idk" in parts:
            self._buffer.add_tokens("idk", parts["idk"].logps, parts["idk"].mask)
        return self.args.forget_weight * self.share(inputs, "forget", self.reduction) * loss

    def _retain_part(self, model, inputs, parts: dict[str, Part]) -> torch.Tensor:
        if self.args.retain_loss == "nll":
            loss, _ = nll_loss(parts["retain"].logps, parts["retain"].mask)
            self._buffer.add_tokens("retain", parts["retain"].logps, parts["retain"].mask)
            return self._retain_term(inputs, loss, "tokens", self.args.grad_diff_coeff)
        per = "positions" if self.args.kl_positions == "all" else "tokens"
        return self._retain_term(inputs, self._retain_kl(model, inputs["retain"]), per, self.args.kl_coeff)

    def _retain_term(self, inputs, loss: torch.Tensor, unit: str, coefficient: float) -> torch.Tensor:
        n = count(inputs["retain"], unit)
        self._buffer.add("retain/loss", loss * n, n)
        if self.constraint is None:
            return coefficient * self.share(inputs, "retain", unit) * loss
        self.constraint.observe(loss, n)
        weight = self.constraint.multiplier
        self._buffer.add("retain/multiplier", n * weight, n)
        return weight * (self.share(inputs, "retain", unit) * loss - self.constraint.bound)

    def _retain_kl(self, model, rows) -> torch.Tensor:
        mask = rows["attention_mask"].bool() if self.args.kl_positions == "all" else None
        if mask is None:  # the state at t predicts label t + 1
            mask = torch.nn.functional.pad(rows["labels"][:, 1:] != -100, (0, 1))
        return retain_kl_from_models(model, self.reference.model, rows["input_ids"], rows["attention_mask"], mask=mask)

    # ---- state that outlives a step ---------------------------------------------------------------------------------

    def _save_extras(self, folder: Path) -> None:
        super()._save_extras(folder)
        if self.constraint is not None and self.args.should_save:  # the same on every process
            self.constraint.save(folder)

    def _load_extras(self, folder: Path) -> None:
        super()._load_extras(folder)
        if self.constraint is not None:
            self.constraint.load(folder)

    # ---- logs --------------------------------------------------------------------------------

    def _log_forget(self, forget: Part, loss: torch.Tensor, stats: dict[str, torch.Tensor], unit: torch.Tensor) -> None:
        self._buffer.add("forget/loss", loss * unit, unit)
        self._buffer.add_tokens("forget", forget.logps, forget.mask)
        if forget.ref_logps is not None:
            self._buffer.add_log_ratio("forget", forget.logps, forget.ref_logps, forget.mask)
        if forget.logps.requires_grad:
            # only the (B, T) graph of the objective is walked, not the model
            (gradient,) = torch.autograd.grad(loss, forget.logps, retain_graph=True, allow_unused=True)
            if gradient is not None:  # None: the loss is a function of the statistic alone
                self._buffer.add_weights("forget", gradient, forget.mask, unit)
        for name in self.logged_stats:
            self._buffer.add(f"forget/{name}", stats[name] * unit, unit)
