"""The main job: build a lab, unlearn with every method, measure along the way, write one report.

All work happens in child processes with one thread each (`negpo.lab.build`, `negpo.lab.runs`), two at a time. What is
finished is kept: a second call goes on where the first one stopped, and only renders when nothing is left to do.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negpo.configs import recipe_path
from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.build import LabPaths, build_lab
from negpo.report.results import DEMO_FILE, RUN_FILE

TUNING_SEEDS = (100, 101, 102)  # the worlds on which the settings in configs/recipes/*/lab*.yaml were chosen
STATE_FILE = "state.json"


@dataclass(frozen=True)
class DemoSettings:
    """`negpo demo`. `every`: optimiser steps between evaluations; `methods`: names of `negpo.lab.runs.RUNS`;
    `tofu`: folder of the published TOFU files, for the real questions instead of the invented world.
    """

    out: Path = Path("runs/demo")
    seeds: tuple[int, ...] = (0,)
    size: str = "default"
    methods: tuple[str, ...] = ("ga", "graddiff", "npo", "npo_no_retain", "simnpo", "catnip")
    every: int = 5
    workers: int = 2
    fresh: bool = False
    tofu: Path | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds}: give at least one, each once")
        if used := set(TUNING_SEEDS) & set(self.seeds):
            raise ConfigError(f"the settings were tuned on the worlds of seed {sorted(used)}; choose other seeds")
        if unknown := set(self.methods) - set(DemoSettings.methods):
            names = ", ".join(DemoSettings.methods)
            raise ConfigError(f"unknown method {', '.join(sorted(unknown))}; choose from {names}")
        if self.every < 1 or self.workers < 1:
            raise ConfigError(f"every={self.every} and workers={self.workers} must be at least 1")

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        parts = ["negpo", "demo", "--out", str(self.out), "--seeds", *map(str, self.seeds), "--every", str(self.every)]
        parts += ["--size", self.size] if self.size != DemoSettings.size else []
        parts += ["--tofu", str(self.tofu)] if self.tofu else []
        parts += ["--methods", *self.methods] if self.methods != DemoSettings.methods else []
        return shlex.join(parts)


def run_demo(settings: DemoSettings) -> Path:
    """Do what is left to do, print the table, write the report; returns its path.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.report import render_report
    from negpo.report.terminal import print_summary

    if settings.fresh:
        shutil.rmtree(settings.out, ignore_errors=True)
    seconds: dict[str, float] = {}
    labs: dict[int, LabPaths] = {}
    for seed in settings.seeds:
        with _timed(seconds, f"seed {seed}: lab"):
            labs[seed] = build_lab(settings.out / "labs", seed, settings.size, settings.tofu)
        with _timed(seconds, f"seed {seed}: methods"):
            _run_seed(settings, seed, labs[seed])
    demo = {
        "command": settings.command,
        "seeds": settings.seeds,
        "tuning_seeds": TUNING_SEEDS,
        "size": settings.size,
        "every": settings.every,
        "forget": labs[settings.seeds[0]].forget,
        "labs": {str(seed): lab.root.name for seed, lab in labs.items()},
        "seconds": _kept_seconds(settings.out / DEMO_FILE, seconds),
    }
    atomic_write_json(settings.out / DEMO_FILE, demo)
    report = render_report(settings.out)
    print_summary(settings.out, report)
    return report


def _run_seed(settings: DemoSettings, seed: int, lab: LabPaths) -> None:
    """Measure target and retain model, then run every method that has no result yet."""
    place = settings.out / f"seed{seed}"
    _discard_stale(place, settings, lab)
    common = (str(lab.root), lab.forget, str(place))
    if not all((place / name / RUN_FILE).exists() for name in ("target", "retain")):
        log = place / "logs" / "measure.log"
        run_jobs(
            [Job("target and retain model", "negpo.lab.runs", ("measure", *common), log)], workers=1, title="measuring"
        )
    left = [name for name in settings.methods if not (place / name / RUN_FILE).exists()]
    # one process for several runs: importing the training stack takes longer than some runs
    shares = [share for i in range(settings.workers) if (share := left[i :: settings.workers])]
    jobs = [
        Job(
            ", ".join(share),
            "negpo.lab.runs",
            ("unlearn", *common, str(seed), str(settings.every), *share),
            place / "logs" / f"{'-'.join(share)}.log",
        )
        for share in shares
    ]
    run_jobs(jobs, workers=settings.workers, title=f"seed {seed}:")


def _discard_stale(place: Path, settings: DemoSettings, lab: LabPaths) -> None:
    """Throw away results of another lab, recipe or evaluation rhythm: they would be mixed with new ones."""
    from negpo.lab.runs import RUNS

    recipes = {name: recipe_path(RUNS[name].recipe).read_text(encoding="utf-8") for name in settings.methods}
    state_file = place / STATE_FILE
    old: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {}
    state = {"lab": lab.root.name, "every": settings.every, "recipes": {**old.get("recipes", {}), **recipes}}
    if old and (old["lab"], old["every"]) != (state["lab"], state["every"]):
        shutil.rmtree(place)
    for name, text in recipes.items():
        if old.get("recipes", {}).get(name, text) != text:
            shutil.rmtree(place / name, ignore_errors=True)
    atomic_write_json(state_file, state)


def _kept_seconds(demo_file: Path, seconds: dict[str, float]) -> dict[str, float]:
    """Timings of this call, and of earlier ones for parts that were only looked up now."""
    old = json.loads(demo_file.read_text(encoding="utf-8"))["seconds"] if demo_file.exists() else {}
    return {part: max(value, old.get(part, 0.0)) for part, value in {**old, **seconds}.items()}


class _timed:
    """Context manager: adds the wall-clock seconds of its block to a dict under a name."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start
