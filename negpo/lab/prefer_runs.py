"""The runs of `negpo demo prefer`: build the labs of a seed, train with one method and measure on the way."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.configs import recipe_path
from negpo.lab import dispreference_lab, distill_lab
from negpo.lab._cache import source_hash
from negpo.lab._jobs import report_progress
from negpo.lab.arithmetic_build import build_arithmetic_lab
from negpo.lab.dispreference_lab import IMPOLITE, POLITE, DispreferenceLab, build_dispreference_lab, is_harmful
from negpo.lab.distill_lab import DistillLab, build_distill_lab
from negpo.lab.experiment import Plan, Run, build_trainer, by_name, describe, watch_steps
from negpo.lab.prefer_measure import Divergence, measure_answers

DISTILL, DISPREFER = "distill", "disprefer"
POINTS = 6  # measurements along a run, the last one at its end
SOURCES = (  # what a result depends on, beside the trainers
    *("arithmetic.py", "arithmetic_build.py", "problem_lab.py", "_models.py", "distill_lab.py", "dispreference_lab.py"),
    *("prefer_runs.py", "prefer_measure.py"),
)

# `data`: name of a file of the part's lab
RUNS = by_name(
    Run("sft", "SFT, right traces only", "sft", "sft/lab", DISTILL, distill_lab.RIGHT_TRACES),
    Run("dpo", "DPO", "dpo", "dpo/lab", DISTILL, distill_lab.PAIRS),
    Run("simpo", "SimPO", "simpo", "simpo/lab", DISTILL, distill_lab.PAIRS),
    Run("redi_symmetric", "REDI, alpha 1", "redi", "redi/lab_symmetric", DISTILL, distill_lab.PAIRS),
    Run("redi", "REDI, alpha 0.8", "redi", "redi/lab", DISTILL, distill_lab.PAIRS),
    Run("d2o", "D2O, negatives only", "d2o", "d2o/lab", DISPREFER, "negatives"),
    Run("dpo_noisy", "DPO, noisy positives", "dpo", "dpo/lab_noisy", DISPREFER, "pairs"),
    Run("npo", "NPO", "npo", "npo/lab_harm", DISPREFER, "forget"),
    Run("ga", "GA", "ga", "ga/lab_harm", DISPREFER, "forget"),
)


@dataclass(frozen=True)
class Labs:
    """The labs of one seed."""

    distill: DistillLab
    disprefer: DispreferenceLab

    def of(self, run: Run) -> DistillLab | DispreferenceLab:
        return self.distill if run.part == DISTILL else self.disprefer


@dataclass(frozen=True)
class PreferPlan(Plan):
    """The runs of one seed's labs."""

    def prepare(self) -> None:
        build_labs(Path(self.out), self.seed, self.size)

    def depends(self, name: str) -> dict[str, Any]:
        stage1 = recipe_path(distill_lab.STAGE1).read_text(encoding="utf-8")
        own = {"seed": self.seed, "size": self.size, "recipe": RUNS[name].recipe_text}
        return own | {"source": source_hash(SOURCES), "stage1": stage1}

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        return train(RUNS[name], build_labs(Path(self.out), self.seed, self.size), folder, self.seed, self.size)


def build_labs(out: Path, seed: int, size: str) -> Labs:
    """Build all labs of a seed under `out/labs`, or find them."""
    folder = out / "labs"
    report_progress(0, distill_lab.STEPS, "arithmetic lab")
    arithmetic = build_arithmetic_lab(folder, seed, size)
    disprefer = build_dispreference_lab(arithmetic, folder, seed, size)
    distill = build_distill_lab(arithmetic, folder, seed, size)
    report_progress(distill_lab.STEPS, distill_lab.STEPS, "")
    return Labs(distill, disprefer)


def train_arguments(run: Run, labs: Labs, out: Path, seed: int) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    lab = labs.of(run)
    dataset = "--forget_dataset" if run.method in ("ga", "npo") else "--dataset"
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.model), dataset, str(lab.data(run.data))]
    return [*arguments, "--output_dir", str(out), "--seed", str(seed)]


class Meter:
    """Measures a model of one part on the held-out questions of its lab."""

    def __init__(self, run: Run, labs: Labs, size: str, tokenizer: Any):
        from transformers import AutoModelForCausalLM

        self.tokenizer, self.lab, self.divergence = tokenizer, labs.of(run), {}
        self.questions = self.lab.questions
        if run.part == DISTILL:
            shape = distill_lab.SIZES[size]
            self.samples, self.max_new_tokens = shape.samples, shape.max_new_tokens
            return
        lab_size = dispreference_lab.SIZES[size]
        self.samples, self.max_new_tokens = lab_size.test_samples, lab_size.max_new_tokens
        reference = AutoModelForCausalLM.from_pretrained(self.lab.model)
        for group in (POLITE, IMPOLITE):
            prompts = [question.prompt for question in self.questions if question.group == group]
            self.divergence[group] = Divergence(reference, tokenizer, prompts, self.max_new_tokens)

    def measure(self, model: Any, step: int) -> dict[str, Any]:
        """One point: the fields of `measure_answers`, and `kl` per group of questions where there is a reference."""
        found = measure_answers(
            model, self.tokenizer, self.questions, self.samples, self.max_new_tokens, is_harmful=is_harmful
        )
        divergence = {group: meter.per_prompt(model) for group, meter in self.divergence.items()}
        return {"step": step, **found, "kl": divergence}


def train(run: Run, labs: Labs, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Train one run with the shipped trainer and recipe; writes `folder/model` and returns its result."""
    arguments = train_arguments(run, labs, folder / "model", seed)
    arguments += ["--max_steps", "2"] if size == "tiny" else []
    trainer = build_trainer(run, arguments)
    meter = Meter(run, labs, size, trainer.processing_class)
    before = time.perf_counter()
    points = [meter.measure(trainer.model, 0)]

    def look(state: Any, model: Any) -> str:
        every = max(1, state.max_steps // POINTS)
        early = state.global_step % every == 0 and state.max_steps - state.global_step >= every // 2
        if early or state.global_step == state.max_steps:
            points.append(meter.measure(model, state.global_step))
        return run.title

    watch_steps(trainer, look)
    trainer.train()
    trainer.save_model()
    return {
        **describe(run, arguments, trainer),
        "seed": seed,
        "lab": labs.of(run).summary,
        "questions": [asdict(question) for question in meter.questions],
        "points": points,
        "seconds": time.perf_counter() - before,
    }
