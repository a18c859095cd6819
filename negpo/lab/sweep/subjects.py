"""What a sweep works on: models, rows and trainers of one seed."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from negpo.data.io import atomic_write_json
from negpo.data.rows import load_lines, load_rows
from negpo.errors import ConfigError
from negpo.eval.tofu import TofuData, load_tofu
from negpo.lab.sweep.measure import measure
from negpo.lab.sweep.spec import SweepSpec
from negpo.objectives import extrapolate_weight, nll_loss
from negpo.trainers import METHODS
from negpo.trainers._unlearn.base import UnlearnTrainer


@dataclass
class Subject:
    """Target, retain model (or None) and data of one seed; loaded when asked for."""

    target: str
    retain: str | None
    data: str
    forget: str
    retain_name: str

    @cached_property
    def tokenizer(self) -> Any:
        from negpo.models import load_tokenizer

        return load_tokenizer(self.target)

    @cached_property
    def tofu(self) -> TofuData:
        return load_tofu(self.data, self.forget)

    @cached_property
    def forget_rows(self) -> list[dict[str, Any]]:
        return list(load_rows(self.data, name=self.forget))

    @cached_property
    def retain_rows(self) -> list[dict[str, Any]]:
        return list(load_rows(self.data, name=self.retain_name))

    def model(self, name: str | None = None) -> Any:
        from negpo.models import load_causal_lm

        return load_causal_lm(name or self.target)


class FineTuneTrainer(UnlearnTrainer):
    """Likelihood of the given rows *up*: the direction that weight-space methods walk away from."""

    def forget_loss(self, parts):
        return nll_loss(parts["forget"].logps, parts["forget"].mask)


def subject(spec: SweepSpec, out: Path, seed: int) -> Subject:
    """The lab of the seed (built when missing), or the models that the spec names."""
    if spec.lab is not None:
        from negpo.lab.build import build_lab

        lab = build_lab(out / "labs", seed, spec.lab)
        percent = int(lab.forget.removeprefix("forget"))
        return Subject(str(lab.target), str(lab.retain), str(lab.data), lab.forget, f"retain{100 - percent}")
    assert spec.target is not None
    assert spec.data is not None
    assert spec.forget is not None
    percent = int(spec.forget.removeprefix("forget"))
    return Subject(spec.target, spec.retain_model, spec.data, spec.forget, f"retain{100 - percent:02d}")


def references(subject: Subject, folder: Path) -> dict[str, Any]:
    """The same measurement of target and retain model, kept in ``references.json``."""
    path = folder / "references.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = {"target": measure(subject.model(), subject.tokenizer, subject.tofu)}
    if subject.retain is not None:
        found["retain"] = measure(subject.model(subject.retain), subject.tokenizer, subject.tofu)
    atomic_write_json(path, found)
    return found


def trainer(subject: Subject, spec: SweepSpec, method: str, settings: dict[str, Any], folder: Path, seed: int) -> Any:
    """The shipped trainer of ``method`` with one trial's settings and the sweep's budget."""
    if method in METHODS:
        module, trainer_name, config_name = METHODS[method]
        trainer_class, config_class = (getattr(import_module(module), name) for name in (trainer_name, config_name))
    else:
        trainer_class, config_class = FineTuneTrainer, FineTuneTrainer.config_class
    known = set(config_class.__dataclass_fields__)
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"methods.{method}: {config_class.__name__} has no setting {unknown[0]!r}")
    args = config_class(
        **{"lr_scheduler_type": "linear", "weight_decay": 0.01, "warmup_steps": max(1, spec.steps // 10)} | settings,
        output_dir=str(folder / "run"),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.batch,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        reference_cache_dir=str(folder.parents[1] / "reference"),
    )
    uses_retain = args.retain_loss != "none" or trainer_class.has_own_retain_term
    more = {"idk_answers": refusals(subject)} if method == "idkdpo" else {}
    return trainer_class(
        model=subject.model(),
        args=args,
        train_dataset=training_rows(subject, method),
        retain_dataset=subject.retain_rows if uses_retain else None,
        processing_class=subject.tokenizer,
        **more,
    )


def training_rows(subject: Subject, method: str) -> list[dict[str, Any]]:
    """The forget rows; with alternates for altpo, with the model's own answers for extrapolation."""
    if method == "altpo":
        return [row | {"alternate": alternate(row, subject.retain_rows)} for row in subject.forget_rows]
    if method == "extrapolation":
        return own_answers(subject)
    return subject.forget_rows


def alternate(row: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """The answer to the most similar question about somebody else: plausible, other facts.

    It stands in for an answer that the target writes itself (`negpo data alternates`), which a model of a million
    parameters cannot.
    """
    words = row["question"].split()
    similar = max(others, key=lambda other: difflib.SequenceMatcher(None, words, other["question"].split()).ratio())
    return similar["answer"]


def own_answers(subject: Subject) -> list[dict[str, Any]]:
    """The target's own greedy answers to the forget questions; empty ones are left out."""
    from negpo.data.qa import QATemplate, encode_qa
    from negpo.eval.scoring import generate_texts

    template = QATemplate.for_model("sweep", subject.tokenizer)
    prompts = [
        encode_qa(subject.tokenizer, template, row["question"], row["answer"], generation=True)["input_ids"]
        for row in subject.forget_rows
    ]
    texts = generate_texts(subject.model(), subject.tokenizer, prompts, max_new_tokens=[64] * len(prompts))
    pairs = zip(subject.forget_rows, texts, strict=True)
    return [{"question": row["question"], "answer": text} for row, text in pairs if text.strip()]


def refusals(subject: Subject) -> list[str]:
    return load_lines(Path(subject.data) / "idontknow.jsonl")


@torch.no_grad()
def walk_away(tuned: Any, subject: Subject, weights: list[float], watch: Any) -> None:
    """Leaves ``tuned`` at ``target - w (tuned - target)`` for the last w, measured at each.

    With the forget rows as training data this is the negated task vector, with the model's own answers Neon's line.
    """
    start = {name: value.detach().clone() for name, value in subject.model().named_parameters()}
    end = {name: value.detach().clone() for name, value in tuned.named_parameters()}
    for weight in weights:
        for name, parameter in tuned.named_parameters():
            parameter.copy_(extrapolate_weight(start[name], end[name], weight=weight))
        watch.add(weight, tuned)
        if watch.hopeless():
            return
