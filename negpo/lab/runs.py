"""The runs of `negpo demo`: measure target and retain model, or unlearn with one method and measure along the way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from negpo.lab.build import LabPaths, build_lab, plan_lab
from negpo.lab.experiment import Plan, Run, build_trainer, by_name, describe, watch_steps
from negpo.report.results import pick_examples

if TYPE_CHECKING:
    from negpo.eval.retain_log import RetainLog
    from negpo.eval.tofu import TofuData, TofuResult

RETAIN_LOG = "retain_log.json"
RETAIN = "retain"  # `Run.data` of runs that use retain rows

RUNS = by_name(
    Run("ga", "GA", "ga", "ga/lab"),
    Run("graddiff", "GradDiff (GA + retain)", "graddiff", "graddiff/lab", data=RETAIN),
    Run("npo", "NPO + retain", "npo", "npo/lab", data=RETAIN),
    Run("npo_no_retain", "NPO, no retain data", "npo", "npo/lab_no_retain"),
    Run("simnpo", "SimNPO + retain", "simnpo", "simnpo/lab", data=RETAIN),
    Run("catnip", "CATNIP, no retain data", "catnip", "catnip/lab"),
)


@dataclass(frozen=True)
class UnlearnPlan(Plan):
    """The runs of one lab. `every`: optimiser steps between evaluations; `tofu`: see `build_lab`."""

    every: int
    tofu: str | None = None
    first: ClassVar[tuple[str, ...]] = ("retain", "target")

    @property
    def lab(self) -> LabPaths:
        return _lab(self)

    def prepare(self) -> None:
        build_lab(Path(self.out) / "labs", self.seed, self.size, self.tofu)

    def depends(self, name: str) -> dict[str, Any]:
        lab = {"lab": self.lab.root.name}
        return lab if name in self.first else lab | {"every": self.every, "recipe": RUNS[name].recipe_text}

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        return measure_reference(self, name) if name in self.first else unlearn(RUNS[name], self, folder)


@lru_cache(maxsize=64)
def _lab(plan: UnlearnPlan) -> LabPaths:
    return plan_lab(Path(plan.out) / "labs", plan.seed, plan.size, plan.tofu)[0]


def train_arguments(run: Run, lab: LabPaths, out: Path, seed: int) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.target), "--forget_dataset", str(lab.data)]
    arguments += ["--forget_name", lab.forget, "--output_dir", str(out), "--seed", str(seed)]
    if run.data == RETAIN:
        percent = int(lab.forget.removeprefix("forget"))
        arguments += ["--retain_dataset", str(lab.data), "--retain_name", f"retain{100 - percent}"]
    return arguments


def measure(
    lab: LabPaths, model: Any, tokenizer: Any, data: TofuData, retain_log: RetainLog | None = None
) -> TofuResult:
    """The demo's evaluation: the whole TOFU harness with a short generation budget."""
    from negpo.eval.tofu import TofuSettings, evaluate_tofu

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


def measure_reference(plan: UnlearnPlan, name: str) -> dict[str, Any]:
    """Evaluate the retain model, whose log everything else is compared with, or the target."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from negpo.eval.retain_log import RetainLog
    from negpo.eval.tofu import load_tofu

    started, lab, retain_log = time.perf_counter(), plan.lab, plan.place / RETAIN_LOG
    log = None if name == RETAIN else RetainLog.load(retain_log, forget=lab.forget, mode="open-unlearning")
    model = AutoModelForCausalLM.from_pretrained(lab.root / name)
    result = measure(lab, model, AutoTokenizer.from_pretrained(lab.root / name), load_tofu(lab.data, lab.forget), log)
    if log is None:
        result.retain_log().save(retain_log)
    content = {"name": name, "trajectory": [point(0, result)], "manifest": result.manifest}
    content |= {"examples": pick_examples(result.per_item)}
    return content | {"seconds": {"evaluation": time.perf_counter() - started}}


class Trajectory:
    """Measures the model every few optimiser steps: `look` is called after each."""

    def __init__(self, run: Run, plan: UnlearnPlan, tokenizer: Any):
        from negpo.eval.retain_log import RetainLog
        from negpo.eval.tofu import load_tofu

        self.run, self.lab, self.tokenizer, self.every = run, plan.lab, tokenizer, plan.every
        self.retain_log = RetainLog.load(plan.place / RETAIN_LOG, forget=plan.lab.forget, mode="open-unlearning")
        self.data = load_tofu(self.lab.data, self.lab.forget)
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.last: TofuResult | None = None

    def look(self, state: Any, model: Any) -> str:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            started = time.perf_counter()
            self.last = measure(self.lab, model, self.tokenizer, self.data, self.retain_log)
            self.points.append(point(state.global_step, self.last))
            self.seconds += time.perf_counter() - started
        if not self.points:
            return self.run.name
        metrics = self.points[-1]["metrics"]
        quality = f"forget quality {metrics['forget_quality']:.1e}"
        return f"{self.run.name} {quality}, utility {metrics['model_utility']:.2f}"


def unlearn(run: Run, plan: UnlearnPlan, folder: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train one run with the shipped trainer and recipe; writes `folder/model` and returns its result."""
    arguments = [*train_arguments(run, plan.lab, folder / "model", plan.seed), *overrides]
    trainer = build_trainer(run, arguments)
    trajectory = Trajectory(run, plan, trainer.processing_class)
    watch_steps(trainer, trajectory.look)
    started = time.perf_counter()
    trainer.train()
    seconds = {"training": time.perf_counter() - started - trajectory.seconds, "evaluation": trajectory.seconds}
    trainer.save_model()
    assert trajectory.last is not None, "the last step is always measured"
    return {
        **describe(run, arguments, trainer),
        "retain": run.data == RETAIN,
        "trajectory": trajectory.points,
        "examples": pick_examples(trajectory.last.per_item),
        "manifest": trajectory.last.manifest,
        "seconds": seconds,
    }
