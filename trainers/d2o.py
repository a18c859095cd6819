"""D²O, distributional dispreference optimisation: dispreferred answers against the model's own. arXiv 2403.03419.

The paper's K, alpha, beta, the reduction of log-probs, when samples are drawn and from which of its two references
could not be confirmed (UNVERIFIED); each is an option here and its default is ours, with the reason beside it.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from negpo.data.io import atomic_write_json
from negpo.data.preference_encode import Group, prefixed_prompt_ids
from negpo.errors import ConfigError, DataError
from negpo.objectives import d2o_loss
from negpo.rollout import RolloutEngine, Sampling, make_engine
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._preference.samples import SampleRequest, cached_draw, draw, samples_of, with_samples
from negpo.trainers._run.model import load_model, starts_without_adapter
from negpo.trainers._run.precision import loading_options
from negpo.trainers._run.reference import Reference
from negpo.trainers._run.script_arguments import ScriptArguments
from negpo.trainers._run.settings import Only, Rule
from negpo.trainers._run.sharding import whole, whole_while_generating

_DRAWN = Only("samples=cached or refresh", lambda config: config.samples != "offline")
SAMPLES_FILE = "d2o_samples_{rank}.json"


@dataclass
class SampleReferenceArguments(ScriptArguments):
    """The second of the paper's two references."""

    sample_ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference that draws and anchors the samples; default: the starting model."}
    )

    def further(self) -> dict[str, Any]:
        return super().further() | {"sample_ref_model": self.sample_ref_model_name_or_path}


@dataclass
class D2OConfig(PreferenceConfig):
    """Negatives only: ``prompt`` and ``rejected`` (a ``chosen`` is not read), and K answers of the model itself."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = PreferenceConfig.choices | {
        "samples": ("offline", "cached", "refresh"),
    }

    script_arguments: ClassVar[type[ScriptArguments] | None] = SampleReferenceArguments
    inherited: ClassVar[dict[str, Rule]] = {
        **dict.fromkeys(
            ("num_samples", "sampling_temperature", "sampling_top_p", "max_new_tokens", "sampling_prefixes"), _DRAWN
        ),
        "sample_cache_dir": _DRAWN,
        "refresh_steps": Only("samples=refresh", lambda config: config.samples == "refresh"),
        "refresh_after": Only("samples=refresh", lambda config: config.samples == "refresh"),
    }

    alpha: float = field(
        default=0.1, metadata={"help": "Weight of the rejected log-ratio. UNVERIFIED; DPO's usual 0.1."}
    )
    beta: float = field(default=0.1, metadata={"help": "Weight of the samples' log-ratio. UNVERIFIED; as alpha."})
    samples: str = field(
        default="cached",
        metadata={
            "help": "Where the samples come from: offline (the rows' own `samples`), cached (drawn from the reference "
            "before training, kept on disk) or refresh (drawn again from the policy every refresh_steps)."
        },
    )
    num_samples: int = field(
        default=4,
        metadata={"help": "K. UNVERIFIED (third-party code: 11); 4 halves the anchor's noise at a known cost."},
    )
    refresh_steps: int = field(default=50, metadata={"help": "samples=refresh: optimiser steps between draws."})
    refresh_after: int = field(
        default=0,
        metadata={"help": "samples=refresh: steps on the reference's samples first. UNVERIFIED (third-party: 200)."},
    )
    sampling_temperature: float = field(
        default=1.0,
        metadata={"help": "UNVERIFIED (third-party: 0.8). 1: the anchor estimates KL(reference || policy)."},
    )
    sampling_top_p: float = field(default=1.0, metadata={"help": "UNVERIFIED (third-party: 0.9). 1: see temperature."})
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of a sample."})
    sampling_prefixes: list[str] | None = field(
        default=None,
        metadata={"help": "Instructions before the prompt while sampling only; sample k gets prefix k, cyclically."},
    )
    sample_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of samples. Default: OUTPUT_DIR/samples."}
    )

    def validate(self) -> None:
        super().validate()
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("num_samples", "refresh_steps", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.samples == "refresh" and self.reference == "cache":
            raise ConfigError("samples=refresh scores new text every time; reference=cache cannot. Use auto or model")
        if self.nll_coeff:
            raise ConfigError("nll_coeff needs chosen answers and D2O has none; the samples are the anchor")


class D2OTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.d2o_loss``, a mean over rejected answers.

    Further arguments: ``ref_model`` is the reference of the rejected answers (the paper's more helpful one),
    ``sample_ref_model`` the one that draws and anchors the samples (more harmful); both default to the starting model.
    ``engine`` draws the samples of ``samples="cached"`` (default: the embedded engine on the reference).
    """

    config_class: ClassVar[type[PreferenceConfig]] = D2OConfig
    needs: tuple[int, ...] = (-1,)
    unit = "rejected"
    logged_stats = ("mean_weight", "mean_sample_log_ratio", "mean_rejected_log_ratio")

    def __init__(
        self,
        model: Any,
        args: D2OConfig | None = None,
        *positional: Any,
        sample_ref_model: Any = None,
        engine: RolloutEngine | None = None,
        **named: Any,
    ):
        args = args if args is not None else D2OConfig(output_dir="D2OTrainer-output")
        self.keeps = (-1, 0)
        self.needs = (-1, 0) if args.samples == "offline" else (-1,)
        self._engine = engine
        super().__init__(model, args, *positional, **named)
        is_name = isinstance(sample_ref_model, str)
        self._sample_ref_model = (
            load_model(sample_ref_model, loading_options(args, adapter=False)) if is_name else sample_ref_model
        )
        self._sample_reference: Reference | None = None
        self._initial_rows = ""
        self._drawn_in: dict[int, int] = {}  # prompt -> the window of refresh_steps its samples are from

    @property
    def _has_other_reference(self) -> bool:
        return super()._has_other_reference or self._sample_ref_model is not None

    def preference_loss(self, scored: Scored):
        rejected = (scored.sign < 0).nonzero().squeeze(1)
        samples = scored.lists(scored.sign == 0)[scored.group[rejected]]  # (N, K)
        return d2o_loss(
            *scored.at(samples),
            *scored.at(rejected),
            scored.ref_at(samples),
            scored.ref_at(rejected),
            alpha=self.args.alpha,
            beta=self.args.beta,
        )

    # ---- samples --------------------------------------------------------------------------------------------------

    def arrange(self, args: Any, groups: list[Group]) -> list[Group]:
        if args.samples != "offline" and (given := [group.source for group in groups if 0 in group.signs]):
            raise DataError(
                "the row brings samples; set samples=offline to use them", file="train_dataset", row=given[0]
            )
        return groups

    def _prepare_reference(self) -> None:
        """References first, then the samples that the second one draws, then their cached log-probs."""
        if self.reference is not None:
            return
        source = self.args.reference
        if source == "auto" and self.args.samples == "refresh":
            source = "adapters_off" if starts_without_adapter(self.model) and self._ref_model is None else "model"
        self.reference = self._make_reference(self._ref_model, source)
        self._sample_reference = self.reference
        if self._sample_ref_model is not None:
            self._sample_reference = self._make_reference(
                self._sample_ref_model, "cache" if source == "cache" else self.reference.source
            )
        if self.args.samples != "offline":
            self._add_samples()
        if self.reference.source == "cache":
            self._cache_both()
        for reference in {id(one): one for one in self._references()}.values():
            reference.ready(self.accelerator)

    def _make_reference(self, model: Any, source: str) -> Reference:
        return Reference(self.model, model, source=source, needs_model=False)

    def _references(self) -> tuple[Reference, Reference]:
        """Of the rejected answers and of the samples."""
        assert self.reference is not None  # both are set before training
        assert self._sample_reference is not None
        return self.reference, self._sample_reference

    def _cache_both(self) -> None:
        """Log-probs of rejected rows under one reference, of samples under the other; one cache where they agree."""
        data = self.train_dataset
        of_rejected, of_samples = self._references()
        if of_samples is of_rejected:
            data.use_cache(self._cached(of_rejected, data.rows))
            return
        signs = [sign for group in data.groups for sign in group.signs]
        places: dict[int, tuple[int, int]] = {}
        caches = []
        for side, reference in enumerate((of_rejected, of_samples)):
            chosen = [i for i, sign in enumerate(signs) if (sign == 0) == bool(side)]
            places |= {row: (side, place) for place, row in enumerate(chosen)}
            caches.append(self._cached(reference, [data.rows[i] for i in chosen]))
        data.use_cache([caches[side][place] for side, place in (places[i] for i in range(len(signs)))])

    def _add_samples(self) -> None:
        data = self.train_dataset
        _, reference = self._references()
        source = reference.model if reference.model is not None else self.model
        folder = Path(self.args.sample_cache_dir or Path(self.args.output_dir) / "samples")
        request = self._request(list(range(len(data))), "reference")
        weights = reference.weights_hash()
        # one process draws while the others wait, so it must have all weights
        with whole(source), self.accelerator.main_process_first(), reference.active(self.model) as model:
            model.to(self.args.device)
            answers = cached_draw(
                lambda: self._engine or make_engine("transformers", model, self.processing_class),
                request,
                folder,
                weights,
            )
        data.groups = [with_samples(group, found) for group, found in zip(data.groups, answers, strict=True)]
        data.renew()

    def _request(self, indices: list[int], moment: str) -> SampleRequest:
        args, groups = self.args, [self.train_dataset.groups[index] for index in indices]
        prefixes = args.sampling_prefixes or []
        asked = [
            [prefixed_prompt_ids(self.processing_class, group.prompt, prefix) for prefix in prefixes]
            or [group.prompt_ids]
            for group in groups
        ]
        sampling = Sampling(
            temperature=args.sampling_temperature,
            top_p=args.sampling_top_p,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            logprobs=False,
        )
        return SampleRequest(asked, [f"{moment}/{index}" for index in indices], args.num_samples, sampling)

    # ---- refreshed samples ----------------------------------------------------------------------------------------

    def prepare_batches(self, batches: list[dict]) -> list[dict]:
        """Batches whose samples are at most ``refresh_steps`` old."""
        past = self.state.global_step - self.args.refresh_after
        if self.args.samples != "refresh" or past < 0:
            return batches
        window = past // self.args.refresh_steps + 1
        indices = sorted({index for batch in batches for index in batch["rows"]["index"].tolist()})
        stale = [index for index in indices if self._drawn_in.get(index, 0) != window]
        if stale or self.sharded:  # then all processes take part, also those with nothing to draw
            data = self.train_dataset
            engine = make_engine("transformers", self.accelerator.unwrap_model(self.model), self.processing_class)
            gathered = whole_while_generating(self.model_wrapped, self.accelerator) if self.sharded else nullcontext()
            with gathered:
                answers = draw(engine, self._request(stale, f"window {window}")) if stale else []
            for index, found in zip(stale, answers, strict=True):
                data.groups[index] = with_samples(data.groups[index], found)
                self._drawn_in[index] = window
        return [
            self.data_collator([self.train_dataset[0, index] for index in batch["rows"]["index"].tolist()])
            for batch in batches
        ]

    def _provenance(self) -> dict[str, Any]:
        if not self._initial_rows:
            self._initial_rows = super()._provenance()["preference rows"]  # before a refresh changes them
        return super()._provenance() | {"preference rows": self._initial_rows}

    @property
    def keeps_state_per_process(self) -> bool:
        return super().keeps_state_per_process or self.args.samples == "refresh"  # each draws for its own batches

    def _samples_file(self, folder: Path) -> Path:
        return folder / SAMPLES_FILE.format(rank=self.accelerator.process_index)

    def _save_extras(self, folder: Path) -> None:
        if self._drawn_in:
            groups = self.train_dataset.groups
            answers = {index: samples_of(groups[index]) for index in self._drawn_in}
            content = {"drawn_in": self._drawn_in, "answers": answers}
            atomic_write_json(self._samples_file(folder), content, indent=None)

    def _load_extras(self, folder: Path) -> None:
        if (path := self._samples_file(folder)).is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            self._drawn_in = {int(index): window for index, window in saved["drawn_in"].items()}
            for index, answers in saved["answers"].items():
                groups = self.train_dataset.groups
                groups[int(index)] = with_samples(groups[int(index)], answers)

    @torch.no_grad()
    def reference_logps(self, model, rows: dict[str, Tensor]) -> Tensor:
        """Of rejected rows by one reference, of samples by the other."""
        logps = super().reference_logps(model, rows)
        of_rejected, of_samples = self._references()
        if of_samples is of_rejected:
            return logps
        with of_samples.active(model) as reference:
            samples = self._forward(reference, rows).logps
        return torch.where((rows["sign"] == 0).unsqueeze(1), samples, logps)
