"""Child processes of `negpo demo prefer`: build the labs of a seed, or train with a few methods and measure on the way.

`python -m negpo.lab.prefer_runs labs OUT SEED SIZE` builds the arithmetic lab, and both labs of the demo on it.
`python -m negpo.lab.prefer_runs train OUT SEED SIZE RUN...` trains the named runs one after the other. Every run ends
with its `results.json`, written last and in one piece: a run that has it is finished, any other is done again.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.lab import dispreference_lab, distill_lab
from negpo.lab._jobs import report_progress
from negpo.lab.arithmetic_build import build_arithmetic_lab
from negpo.lab.dispreference_lab import IMPOLITE, POLITE, DispreferenceLab, build_dispreference_lab, is_harmful
from negpo.lab.distill_lab import DistillLab, build_distill_lab
from negpo.lab.prefer_measure import Divergence, measure_answers
from negpo.lab.runs import shown_settings
from negpo.report.results import RUN_FILE

DISTILL, DISPREFER = "distill", "disprefer"
POINTS = 6  # measurements along a run, the last one at its end
REFERENCE = "reference"


@dataclass(frozen=True)
class PreferRun:
    """One line of the demo. `data`: name of a file of the part's lab."""

    name: str
    title: str
    part: str
    method: str
    recipe: str
    data: str


RUNS = {
    run.name: run
    for run in (
        PreferRun("sft", "SFT, right traces only", DISTILL, "sft", "sft/lab", distill_lab.RIGHT_TRACES),
        PreferRun("dpo", "DPO", DISTILL, "dpo", "dpo/lab", distill_lab.PAIRS),
        PreferRun("simpo", "SimPO", DISTILL, "simpo", "simpo/lab", distill_lab.PAIRS),
        PreferRun("redi_symmetric", "REDI, alpha 1", DISTILL, "redi", "redi/lab_symmetric", distill_lab.PAIRS),
        PreferRun("redi", "REDI, alpha 0.8", DISTILL, "redi", "redi/lab", distill_lab.PAIRS),
        PreferRun("d2o", "D2O, negatives only", DISPREFER, "d2o", "d2o/lab", "negatives"),
        PreferRun("dpo_noisy", "DPO, noisy positives", DISPREFER, "dpo", "dpo/lab_noisy", "pairs"),
        PreferRun("npo", "NPO", DISPREFER, "npo", "npo/lab_harm", "forget"),
        PreferRun("ga", "GA", DISPREFER, "ga", "ga/lab_harm", "forget"),
    )
}


@dataclass(frozen=True)
class Labs:
    """The labs of one seed."""

    distill: DistillLab
    disprefer: DispreferenceLab

    def of(self, run: PreferRun) -> DistillLab | DispreferenceLab:
        return self.distill if run.part == DISTILL else self.disprefer


def build_labs(out: Path, seed: int, size: str) -> Labs:
    """Build all labs of a seed under `out/labs`, or find them."""
    folder = out / "labs"
    report_progress(0, distill_lab.STEPS, "arithmetic lab")
    arithmetic = build_arithmetic_lab(folder, seed, size)
    disprefer = build_dispreference_lab(arithmetic, folder, seed, size)
    distill = build_distill_lab(arithmetic, folder, seed, size)
    report_progress(distill_lab.STEPS, distill_lab.STEPS, "")
    return Labs(distill, disprefer)


def train_arguments(run: PreferRun, labs: Labs, out: Path, seed: int) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    lab = labs.of(run)
    dataset = "--forget_dataset" if run.method in ("ga", "npo") else "--dataset"
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.model), dataset, str(lab.data(run.data))]
    return [*arguments, "--output_dir", str(out), "--seed", str(seed)]


class Meter:
    """Measures a model of one part on the held-out questions of its lab."""

    def __init__(self, run: PreferRun, labs: Labs, size: str, tokenizer: Any):
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


def make_callback(run: PreferRun, meter: Meter, points: list[dict[str, Any]]) -> Any:
    """A trainer callback that measures `POINTS` times along the run and appends to `points`."""
    from transformers import TrainerCallback

    class Measure(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            every = max(1, state.max_steps // POINTS)
            if (state.global_step % every == 0 and state.max_steps - state.global_step >= every // 2) or (
                state.global_step == state.max_steps
            ):
                points.append(meter.measure(model, state.global_step))
            report_progress(state.global_step, state.max_steps, run.title)

    return Measure()


def train(run: PreferRun, labs: Labs, out: Path, seed: int, size: str, overrides: Sequence[str] = ()) -> None:
    """Train one run with the shipped trainer and recipe and write `out/<run>/results.json` and `out/<run>/model`."""
    from negpo.trainers import _script as script_module

    folder = out / run.name
    shutil.rmtree(folder, ignore_errors=True)  # an unfinished attempt
    arguments = [*train_arguments(run, labs, folder / "model", seed), *overrides]
    arguments += ["--max_steps", "2"] if size == "tiny" else []
    script, config = script_module.parse(run.method, arguments)
    config.disable_tqdm, config.report_to, config.save_strategy = True, [], "no"
    trainer = script_module.build(run.method, script, config)
    meter, points = Meter(run, labs, size, trainer.processing_class), []
    before = time.perf_counter()
    points.append(meter.measure(trainer.model, 0))
    trainer.add_callback(make_callback(run, meter, points))
    trainer.train()
    trainer.save_model()
    content = {
        **asdict(run),
        "seed": seed,
        "lab": labs.of(run).summary,
        "command": ["negpo", "train", run.method, *arguments],
        "config": {key: value for key, value in config.to_dict().items() if key in shown_settings(run.method)},
        "questions": [asdict(question) for question in meter.questions],
        "points": points,
        "training_log": trainer.state.log_history,
        "seconds": time.perf_counter() - before,
    }
    atomic_write_json(folder / RUN_FILE, content, indent=None)


def main(arguments: list[str]) -> None:
    # an interrupted parent terminates its children: end as Python code does, so that theirs are ended too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command, out, seed, size, *names = arguments
    labs = build_labs(Path(out), int(seed), size)
    if command == "train":
        import torch

        torch.set_num_threads(1)
        for name in names:
            train(RUNS[name], labs, Path(out) / f"seed{seed}", int(seed), size)


if __name__ == "__main__":
    main(sys.argv[1:])
