"""`negpo demo unlearn --model`: the whole job on a pretrained model, from fine-tuning to the audit, with equal budgets.

Order of work: target and retain models of the tuning plan and of every seed, their evaluations, the trials (as many per
method, all shown in the report), the reported runs at the chosen rates, an audit of them. Everything finished is kept;
a second call goes on. A time budget ends the work between two runs, and what is finished is reported.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError, NegpoError
from negpo.lab.experiment import TUNING_SEEDS, Settings, run_plans
from negpo.lab.model_runs import FITS, METHODS, REFERENCES, ModelPlan, forget_percent, model_world, split_name
from negpo.report.results import DEMO_FILE

SUMMARISED = (
    *("forget_quality", "model_utility", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "retain_Q_A_Prob", "retain_Q_A_ROUGE"),
    *("extraction_strength", "mia_min_k", "privleak"),
)
UTILITY_KEPT = 0.85  # of the target's: a trial below it is not chosen while another is above
DEFAULT_METHODS = ("ga", "graddiff", "npo", "npo_no_retain", "simnpo", "catnip")


@dataclass(frozen=True)
class ModelDemoSettings(Settings):
    """`negpo demo unlearn --model`.

    Attributes:
        model: folder or Hub id of the pretrained model.
        tofu: folder of the published TOFU files; without it invented authors in the same schema.
        forget: split of TOFU to forget, forget01 or forget05.
        authors: how many authors are learned and kept (TOFU only).
        rates: learning rates tried for every method.
        steps, every, batch: optimiser steps of every run, steps between evaluations, rows per step.
        fit_rate, fit_steps: of the fine-tuning.
        limit: rows of every evaluation set; None: all.
        hours: time budget; None: none.
    """

    out: Path = Path("runs/demo-model")
    methods: tuple[str, ...] = DEFAULT_METHODS
    model: str = ""
    tofu: Path | None = None
    forget: str = "forget01"
    authors: int = 18
    rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5)
    steps: int = 50
    every: int = 10
    batch: int = 8
    fit_rate: float = 1e-4
    fit_steps: int = 300
    limit: int | None = None
    max_new_tokens: int = 64
    dtype: str = "float32"
    audit: str = "quick"
    hours: float | None = None
    job: ClassVar[str] = "unlearn"
    summary_file: ClassVar[str] = DEMO_FILE

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is missing: pass --model with a folder or a Hub id")
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ConfigError(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}")
        if used := set(TUNING_SEEDS) & set(self.seeds):
            raise ConfigError(f"learning rates are chosen with seed {sorted(used)}; choose other seeds")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds}: give at least one, each once")
        self.at_least_one("workers", "steps", "every", "batch", "fit_steps", "limit", "max_new_tokens")
        for name in ("rates", "fit_rate", "hours"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not (math.isfinite(value) and value > 0):
                    raise ConfigError(f"{name} is {value}; it must be a finite number above 0")
        if len(set(self.rates)) < len(self.rates) or not self.rates:
            raise ConfigError(f"rates {self.rates}: give at least one learning rate, each once")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; choose float32 or bfloat16 (autocast over float32 weights)")
        if self.audit not in ("none", "quick", "standard", "full"):
            raise ConfigError(f"audit is {self.audit!r}; choose none, quick, standard or full")
        if self.tofu is not None:
            forget_percent(self.forget)

    def plan(self, seed: int, *, rates: Mapping[str, float] | None = None, deadline: float = 0.0) -> ModelPlan:
        tuning = seed in TUNING_SEEDS
        return ModelPlan(
            out=str(self.out / "tuning" if tuning else self.out),
            seed=seed,
            size=self.size,
            model=self.model,
            tofu=None if self.tofu is None else str(self.tofu),
            forget=self.forget,
            authors=self.authors,
            fit_rate=self.fit_rate,
            fit_steps=self.fit_steps,
            steps=self.steps,
            every=self.steps if tuning else min(self.every, self.steps),
            batch=self.batch,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            dtype=self.dtype,
            tuning=tuning,
            rates=tuple((rates or {}).items()),
            deadline=deadline,
        )


def run_model_demo(settings: ModelDemoSettings) -> Path:
    """Do what is left to do, print the tables, write the report; returns its path.

    Raises:
        ConfigError: the model is not there, does not fit into memory, or the data does not fit the split.
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from rich.console import Console

    from negpo.lab.model_budget import check_memory, estimate, show_estimate

    console = Console(stderr=True)
    model_world(
        None if settings.tofu is None else str(settings.tofu), settings.forget, settings.authors, 0, tuning=True
    )
    check_memory(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    planned = estimate(settings)
    show_estimate(console, settings, planned)
    deadline = time.time() + settings.hours * 3600 if settings.hours else 0.0
    seconds, choice, trials = _work(settings, deadline)
    report = settings.out / "report.html"
    missing = [
        f"seed {seed}: {name}"
        for seed in settings.seeds
        for name in settings.methods
        if not settings.plan(seed, rates=choice).finished(name)
    ]
    _write_summary(settings, seconds, choice, trials, planned, missing)
    if len(missing) == len(settings.seeds) * len(settings.methods):
        raise ConfigError(
            f"no run was finished within {settings.hours} hours; what was done is kept in {settings.out}: call again "
            "with a larger --hours"
        )
    from negpo.report.unlearning import print_summary, render

    render(settings.out, report)
    print_summary(settings.out, report)
    if missing:
        console.print(
            f"not finished in {settings.hours} hours (call again to go on): {', '.join(missing)}", markup=False
        )
    elif settings.audit != "none":
        _audit(settings, choice, console)
    return report


def _work(
    settings: ModelDemoSettings, deadline: float
) -> tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]:
    """All parts in order: (seconds by part, chosen rates, all trials)."""
    tuning = settings.plan(TUNING_SEEDS[0], deadline=deadline)
    plans = [settings.plan(seed, deadline=deadline) for seed in settings.seeds]
    one_rate = len(settings.rates) == 1
    fitted = plans if one_rate else [tuning, *plans]
    parts: list[tuple[str, Sequence[ModelPlan], Sequence[str]]] = [
        ("fine-tuning", fitted, tuple(FITS)),
        ("retain models measured", fitted, ("retain",)),
        ("targets measured", fitted, ("target",)),
    ]
    trial_names = [f"{method}@{rate!r}" for method in settings.methods for rate in settings.rates]
    if not one_rate:
        parts.append(("trials", [tuning], trial_names))
    seconds: dict[str, float] = {}

    def do(title: str, group: Sequence[ModelPlan], names: Sequence[str]) -> bool:
        started = time.perf_counter()
        run_plans(group, names, workers=settings.workers, summary=settings.out / DEMO_FILE)
        seconds[title] = time.perf_counter() - started
        return all(plan.finished(name) for plan in group for name in names)

    trials: list[dict[str, Any]] = []
    choice = dict.fromkeys(settings.methods, settings.rates[0])
    for part in parts:
        if not do(*part):  # the time is up
            return seconds, choice, trials
    if not one_rate:
        trials = [_trial(tuning, name) for name in trial_names]
        choice = choose(trials, float(_metrics(tuning, "target")["model_utility"]))
    do("unlearning", [replace(plan, rates=tuple(choice.items())) for plan in plans], settings.methods)
    return seconds, choice, trials


def _metrics(plan: ModelPlan, name: str) -> dict[str, Any]:
    return plan.result(name)["trajectory"][-1]["metrics"]


def _trial(plan: ModelPlan, name: str) -> dict[str, Any]:
    method, _, rate = name.partition("@")
    metrics = _metrics(plan, name)
    shown = {key: float(metrics[key]) for key in ("forget_quality", "model_utility", "forget_Q_A_Prob")}
    return {"method": method, "learning_rate": float(rate), **shown}


def choose(trials: Sequence[Mapping[str, Any]], target_utility: float) -> dict[str, float]:
    """Per method the learning rate of highest forget quality among the trials that keep 85 % of the target's utility;
    where none does, the one of highest utility. Ties go to the smaller rate."""
    found: dict[str, float] = {}
    for method in dict.fromkeys(trial["method"] for trial in trials):
        own = sorted((t for t in trials if t["method"] == method), key=lambda t: t["learning_rate"])
        kept = [trial for trial in own if trial["model_utility"] >= UTILITY_KEPT * target_utility]
        best = max(kept, key=lambda t: t["forget_quality"]) if kept else max(own, key=lambda t: t["model_utility"])
        found[method] = best["learning_rate"]
    return found


def _write_summary(
    settings: ModelDemoSettings,
    seconds: dict[str, float],
    choice: dict[str, float],
    trials: list[dict[str, Any]],
    planned: dict[str, float],
    missing: list[str],
) -> None:
    plan = settings.plan(settings.seeds[0])
    demo = {
        "command": settings.command,
        "seeds": settings.seeds,
        "tuning_seeds": TUNING_SEEDS[:1],
        "size": settings.model,
        "every": settings.every,
        "forget": split_name(plan),
        "labs": {str(seed): f"seed{seed}" for seed in settings.seeds},
        "seconds": seconds,
        "planned_seconds": planned,
        "trials": trials,
        "chosen": choice,
        "unfinished": missing,
        "runs": {str(seed): _results(settings.plan(seed, rates=choice)) for seed in settings.seeds},
        "settings": {name: value for name, value in asdict(settings).items() if name != "out"},
    }
    atomic_write_json(settings.out / DEMO_FILE, demo)


def _results(plan: ModelPlan) -> dict[str, Any]:
    """The numbers of one seed's finished models at every look, by model."""
    found = {}
    for name in (*REFERENCES, *dict(plan.rates)):
        if not plan.finished(name):
            continue
        result = plan.result(name)
        points = [
            {"step": point["step"]} | {key: point["metrics"][key] for key in SUMMARISED if key in point["metrics"]}
            for point in result["trajectory"]
        ]
        found[name] = {"title": result.get("title", name), "points": points, "seconds": result["seconds"]}
    return found


def _audit(settings: ModelDemoSettings, choice: dict[str, float], console: Any) -> None:
    """`negpo audit` of the first seed's models; its report stands beside the demo's."""
    plan = settings.plan(settings.seeds[0], rates=choice)
    models = [f"{name}={plan.place / name / 'model'}" for name in settings.methods]
    arguments = ["audit", *models, "--target", str(plan.place / "fit_target" / "model")]
    arguments += ["--retain", str(plan.place / "fit_retain" / "model"), "--suite", settings.audit]
    arguments += ["--forget", str(plan.data), "--split", split_name(plan), "--out", str(settings.out / "audit")]
    arguments += ["--max-new-tokens", str(settings.max_new_tokens)]
    if settings.limit is not None:
        arguments += ["--limit", str(settings.limit)]
    console.print("auditing the models of the first seed")
    ended = subprocess.run([sys.executable, "-m", "negpo", *arguments], check=False)
    if ended.returncode not in (0, 1):
        raise NegpoError(f"the audit ended with status {ended.returncode}: negpo {shlex.join(arguments)}")
