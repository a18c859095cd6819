"""Child processes of the demo: measure a model, or unlearn with one method and measure along the way.

`python -m negpo.lab.runs measure LAB FORGET OUT` evaluates the lab's retain model, then its target.
`python -m negpo.lab.runs unlearn LAB FORGET OUT SEED EVERY RUN...` trains the named runs one after the other. Every run
ends with its `results.json`, written last and in one piece: a run that has it is finished, any other is done again.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.eval.retain_log import RetainLog
from negpo.eval.tofu import TofuData, TofuResult, TofuSettings, evaluate_tofu, load_tofu
from negpo.lab._jobs import report_progress
from negpo.lab.build import LabPaths
from negpo.report.results import RUN_FILE, pick_examples

RETAIN_LOG = "retain_log.json"


@dataclass(frozen=True)
class Run:
    """One line of the demo: which method, which shipped recipe, and whether retain rows are used."""

    name: str
    title: str
    method: str
    recipe: str
    retain: bool


RUNS = {
    run.name: run
    for run in (
        Run("ga", "GA", "ga", "ga/lab", retain=False),
        Run("graddiff", "GradDiff (GA + retain)", "graddiff", "graddiff/lab", retain=True),
        Run("npo", "NPO + retain", "npo", "npo/lab", retain=True),
        Run("npo_no_retain", "NPO, no retain data", "npo", "npo/lab_no_retain", retain=False),
        Run("simnpo", "SimNPO + retain", "simnpo", "simnpo/lab", retain=True),
        Run("catnip", "CATNIP, no retain data", "catnip", "catnip/lab", retain=False),
    )
}


def train_arguments(run: Run, lab: LabPaths, out: Path, seed: int) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.target), "--forget_dataset", str(lab.data)]
    arguments += ["--forget_name", lab.forget, "--output_dir", str(out), "--seed", str(seed)]
    if run.retain:
        percent = int(lab.forget.removeprefix("forget"))
        arguments += ["--retain_dataset", str(lab.data), "--retain_name", f"retain{100 - percent}"]
    return arguments


def measure(
    lab: LabPaths, model: Any, tokenizer: Any, data: TofuData, retain_log: RetainLog | None = None
) -> TofuResult:
    """The demo's evaluation: the whole TOFU harness with a short generation budget."""
    settings = TofuSettings(max_new_tokens=lab.manifest["model"]["max_new_tokens"])
    return evaluate_tofu(model, tokenizer, data, settings, retain_log=retain_log, name="lab")


def point(step: int, result: TofuResult) -> dict[str, Any]:
    """What is kept of one evaluation: metrics, mean answer log-likelihood per token, forget truth ratios by row."""
    forget = [row for row in result.per_item if row["set"] == "forget"]
    return {
        "step": step,
        "metrics": dict(result.metrics),
        "details": result.details,
        "forget_logp": -sum(row["nll"] for row in forget) / len(forget),
        "forget_truth_ratio": [row["truth_ratio"] for row in forget],
    }


def measure_references(lab: LabPaths, out: Path) -> None:
    """Evaluate the retain model, whose log everything else is compared with, and the target."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = load_tofu(lab.data, lab.forget)
    log: RetainLog | None = None
    for name, folder in (("retain", lab.retain), ("target", lab.target)):
        started = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        result = measure(lab, AutoModelForCausalLM.from_pretrained(folder), tokenizer, data, log)
        if log is None:
            log = result.retain_log()
            log.save(out / RETAIN_LOG)
        content: dict[str, Any] = {"name": name, "trajectory": [point(0, result)], "manifest": result.manifest}
        content |= {"examples": pick_examples(result.per_item)}
        content |= {"seconds": {"evaluation": time.perf_counter() - started}}
        atomic_write_json(out / name / RUN_FILE, content)


class Trajectory:
    """Measures the model every few optimiser steps; `callback` goes into the trainer."""

    def __init__(self, run: Run, lab: LabPaths, tokenizer: Any, retain_log: RetainLog, every: int):
        self.run, self.lab, self.tokenizer, self.retain_log, self.every = run, lab, tokenizer, retain_log, every
        self.data = load_tofu(lab.data, lab.forget)
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.last: TofuResult | None = None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        trajectory = self

        class Measure(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step % trajectory.every == 0 or state.global_step == state.max_steps:
                    trajectory.add(state.global_step, model)
                report_progress(state.global_step, state.max_steps, f"{trajectory.run.name} {trajectory.summary()}")

        return Measure()

    def add(self, step: int, model: Any) -> None:
        started = time.perf_counter()
        self.last = measure(self.lab, model, self.tokenizer, self.data, self.retain_log)
        self.points.append(point(step, self.last))
        self.seconds += time.perf_counter() - started

    def summary(self) -> str:
        """Forget quality and utility of the last measurement, for the progress display."""
        if not self.points:
            return ""
        metrics = self.points[-1]["metrics"]
        return f"forget quality {metrics['forget_quality']:.1e}, utility {metrics['model_utility']:.2f}"


def unlearn(run: Run, lab: LabPaths, out: Path, seed: int, every: int, overrides: tuple[str, ...] = ()) -> None:
    """Train one run with the shipped trainer and recipe and write `out/<run>/results.json` and `out/<run>/model`."""
    from negpo.trainers import _script as script_module

    folder = out / run.name
    shutil.rmtree(folder, ignore_errors=True)  # an unfinished attempt
    arguments = train_arguments(run, lab, folder / "model", seed)
    script, config = script_module.parse(run.method, [*arguments, *overrides])
    config.disable_tqdm, config.report_to, config.save_strategy = True, [], "no"
    trainer = script_module.build(run.method, script, config)
    retain_log = RetainLog.load(out / RETAIN_LOG, forget=lab.forget, mode="open-unlearning")
    trajectory = Trajectory(run, lab, trainer.processing_class, retain_log, every)
    trainer.add_callback(trajectory.callback())
    started = time.perf_counter()
    trainer.train()
    seconds = {"training": time.perf_counter() - started - trajectory.seconds, "evaluation": trajectory.seconds}
    trainer.save_model()
    assert trajectory.last is not None, "the last step is always measured"
    content = {
        **asdict(run),
        "command": ["negpo", "train", run.method, *arguments, *overrides],
        "config": {key: value for key, value in config.to_dict().items() if key in shown_settings(run.method)},
        "trajectory": trajectory.points,
        "training_log": trainer.state.log_history,
        "examples": pick_examples(trajectory.last.per_item),
        "manifest": trajectory.last.manifest,
        "seconds": seconds,
    }
    atomic_write_json(folder / RUN_FILE, content)


def shown_settings(method: str) -> list[str]:
    """Names of the settings a report lists: the optimiser's main ones and everything the method adds."""
    from dataclasses import fields
    from importlib import import_module

    from transformers import TrainingArguments

    from negpo.trainers import METHODS

    module, _, config = METHODS[method]
    inherited = {item.name for item in fields(TrainingArguments)}
    own = [item.name for item in fields(getattr(import_module(module), config)) if item.name not in inherited]
    common = ["learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "weight_decay"]
    return [*common, "lr_scheduler_type", "warmup_steps", *own]


def main(arguments: list[str]) -> None:
    command, lab, forget, out, *rest = arguments
    paths, out_dir = LabPaths(Path(lab), forget), Path(out)
    if command == "measure":
        measure_references(paths, out_dir)
        return
    seed, every, *names = rest
    for name in names:
        unlearn(RUNS[name], paths, out_dir, int(seed), int(every))


if __name__ == "__main__":
    main(sys.argv[1:])
