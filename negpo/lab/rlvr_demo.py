"""`negpo demo rlvr`: what learning from right and from wrong answers does to one and the same arithmetic lab model.

Every method gets the same rollout budget: the same prompts in the same order, the same group size, the same number of
rollout batches. All work happens in single-threaded child processes (`negpo.lab.rlvr_runs`), two at a time; what is
finished is kept, per seed and method.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.rlvr_claims import claims
from negpo.lab.rlvr_estimates import BASE, Results, curve, drop_values, entropy, estimate, load_results
from negpo.lab.rlvr_runs import RUNS, Plan

if TYPE_CHECKING:
    from negpo.lab.rlvr_claims import Claim
    from negpo.lab.rlvr_estimates import Estimate

TUNING_SEEDS = (100, 101, 102)  # the labs on which the settings in configs/recipes/*/lab*.yaml were chosen
ENGINES = ("transformers", "vllm")
SUMMARY_FILE = "rlvr.json"


@dataclass(frozen=True)
class RlvrSettings:
    """`negpo demo rlvr`. `steps`: optimiser steps instead of the recipes'; `problems`: the first of the test file,
    whose levels come in turn; `samples`: per problem, the largest k.
    """

    out: Path = Path("runs/rlvr")
    seeds: tuple[int, ...] = (0,)
    size: str = "default"
    methods: tuple[str, ...] = tuple(RUNS)
    steps: int | None = None
    engine: str = "transformers"
    problems: int = 300
    samples: int = 64
    workers: int = 2
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds}: give at least one, each once")
        if used := set(TUNING_SEEDS) & set(self.seeds):
            raise ConfigError(f"the settings were tuned on the labs of seed {sorted(used)}; choose other seeds")
        if unknown := sorted(set(self.methods) - set(RUNS)):
            raise ConfigError(f"unknown method {', '.join(unknown)}; choose from {', '.join(RUNS)}")
        if self.engine not in ENGINES:
            raise ConfigError(f"engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        if self.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ConfigError("engine=vllm needs vLLM, which is not installed; run scripts/install_vllm_cpu.sh")
        for name in ("problems", "samples", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1")

    def plan(self, seed: int) -> Plan:
        out, shared = str(self.out), (self.size, self.steps, self.engine, self.problems, self.samples)
        return Plan(out, seed, *shared)

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        parts = ["negpo", "demo", "rlvr", "--out", str(self.out), "--seeds", *map(str, self.seeds)]
        for name in ("size", "steps", "engine", "problems", "samples"):
            if getattr(self, name) != getattr(RlvrSettings, name):
                parts += [f"--{name}", str(getattr(self, name))]
        parts += ["--methods", *self.methods] if self.methods != RlvrSettings.methods else []
        return shlex.join(parts)


def run_rlvr_demo(settings: RlvrSettings) -> Path:
    """Do what is left to do, print the table and the verdicts, write `rlvr.json` and `report.html`; returns the latter.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.report.rlvr import render_rlvr_report

    if settings.fresh:
        shutil.rmtree(settings.out, ignore_errors=True)
    started = time.perf_counter()
    run_jobs(_base_jobs(settings), workers=settings.workers, title="before training,")
    run_jobs(_training_jobs(settings), workers=settings.workers, title="training,")
    results = load_results(settings.out, settings.seeds, settings.methods)
    found = claims(results)
    demo = {
        "command": settings.command,
        "tuning_seeds": TUNING_SEEDS,
        "seeds": settings.seeds,
        "seconds_of_this_call": time.perf_counter() - started,
        "engine": settings.engine,
        "runs": {name: _numbers(results, name) for name in results.names},
        "claims": [_claim_numbers(claim) for claim in found],
    }
    atomic_write_json(settings.out / SUMMARY_FILE, demo)
    report = render_rlvr_report(results, found, settings.out / "report.html", command=settings.command)
    _print(results, found, report)
    return report


def _base_jobs(settings: RlvrSettings) -> list[Job]:
    plans = [plan for seed in settings.seeds if not (plan := settings.plan(seed)).finished(BASE)]
    return [_job(plan, [BASE], f"seed {plan.seed}: lab and its model") for plan in plans]


def _training_jobs(settings: RlvrSettings) -> list[Job]:
    """As many jobs per seed as workers: importing the training stack takes long enough to share it between runs."""
    jobs = []
    for plan in map(settings.plan, settings.seeds):
        left = [name for name in settings.methods if not plan.finished(name)]
        for share in (left[i :: settings.workers] for i in range(settings.workers)):
            jobs += [_job(plan, share, f"seed {plan.seed}: {', '.join(share)}")] if share else []
    return jobs


def _job(plan: Plan, names: list[str], title: str) -> Job:
    import json

    log = plan.place / "logs" / f"{'-'.join(names)}.log"
    return Job(title, "negpo.lab.rlvr_runs", (json.dumps(asdict(plan)), *names), log)


def _numbers(results: Results, name: str) -> dict[str, Any]:
    """Every estimate of one run, as plain numbers."""
    entries = dict(zip(map(str, results.ks), curve(results, name), strict=True))
    levels = {
        level: dict(zip(map(str, results.ks), curve(results, name, level), strict=True)) for level in results.levels
    }
    numbers: dict[str, Any] = {
        "title": results.title(name),
        "pass_at_k": {k: asdict(value) for k, value in entries.items()},
        "levels": {level: {k: asdict(value) for k, value in row.items()} for level, row in levels.items()},
        "entropy_per_token": asdict(entropy(results, name)),
    }
    if name != BASE:
        drops = [drop_values(run) for run in results.runs(name)]
        numbers["right_answers_fall"] = asdict(estimate(drops))
        numbers["right_answers_change"] = asdict(estimate([table[:, 1:] for table in drops]))
        numbers["stopped"] = [run["stopped"] for run in results.runs(name)]
        numbers["prompts"] = [run["prompts"] for run in results.runs(name)]
        numbers["seconds"] = [run["seconds"] for run in results.runs(name)]
    return numbers


def _claim_numbers(claim: Claim) -> dict[str, Any]:
    parts = [{**asdict(part), "verdict": part.verdict} for part in claim.parts]
    return {"title": claim.title, "headline": claim.headline, "parts": parts, "notes": claim.notes}


def _print(results: Results, found: list[Claim], report: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    header = ["pass@k (%)", *map(str, results.ks), "entropy", "fall"]
    table = Table(*header, title="with 95 % intervals over seeds and problems", title_justify="left", padding=(0, 0))
    for name in results.names:
        falls = [] if name == BASE else [estimate([drop_values(run) for run in results.runs(name)])]
        cells = [_cell(value, 100, "{:.0f}", "{:.1f}") for value in curve(results, name)]
        cells += [_cell(value, 1, "{:.2f}", "{:.3f}") for value in (entropy(results, name), *falls)]
        table.add_row(results.title(name), *cells)
    console.print(table)
    console.print("entropy: nats per token; fall: of the log-prob of right answers of before, nats per answer")
    tones = {"good": "green", "bad": "red", "warn": "yellow"}
    for claim in found:
        console.print(Text(f"{claim.title}: ", "bold").append(f"{claim.headline}.", tones[claim.tone]))
        for part in claim.parts:
            console.print(f"  {part.verdict:<6}{part.text}: {part.estimate.text()}", soft_wrap=True, highlight=False)
    console.print(f"report: {report}", soft_wrap=True)


def _cell(value: Estimate, scale: float, bounds: str, form: str) -> str:
    """The value, and its interval on a second line."""
    low, high = (bounds.format(scale * bound).removeprefix("0") or "0" for bound in (value.low, value.high))
    return f"{form.format(scale * value.value)}\n{low}-{high}"
