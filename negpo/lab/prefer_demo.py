"""`negpo demo prefer`: learning from rejected answers on two labs, for every seed, with intervals.

Distillation: what wrong traces add to right ones (SFT, DPO, SimPO, symmetric and asymmetric REDI). Dispreference: how
an unwanted style is unlearned from negatives alone (D2O, against DPO with noisy positives, NPO and GA). All work is
done by child processes with one thread each; what is finished is kept, and a second call only does what is missing.
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
from negpo.lab._cache import source_hash
from negpo.lab._jobs import Job, run_jobs
from negpo.report.results import RUN_FILE

MODULE = "negpo.lab.prefer_runs"
METHODS: tuple[str, ...] = ("sft", "dpo", "simpo", "redi_symmetric", "redi", "d2o", "dpo_noisy", "npo", "ga")
TUNING_SEEDS = (100, 101, 102)  # the labs on which the settings in configs/recipes/*/lab*.yaml were chosen
DEMO_FILE, STATE_FILE = "prefer.json", "state.json"
SOURCES = (
    "arithmetic.py",
    "arithmetic_build.py",
    "_models.py",
    "distill_lab.py",
    "dispreference_lab.py",
    "prefer_runs.py",
    "prefer_measure.py",
)


@dataclass(frozen=True)
class PreferDemoSettings:
    """What `negpo demo prefer` was asked to do. `workers`: child processes at once, one thread each."""

    out: Path = Path("runs/prefer")
    seeds: tuple[int, ...] = (0,)
    size: str = "default"
    methods: tuple[str, ...] = METHODS
    workers: int = 2
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds}: give at least one, each once")
        if self.size == "default" and (used := set(TUNING_SEEDS) & set(self.seeds)):
            raise ConfigError(f"the settings were tuned on the labs of seed {sorted(used)}; choose other seeds")
        if unknown := set(self.methods) - set(METHODS):
            raise ConfigError(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(METHODS)}")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        parts = ["negpo", "demo", "prefer", "--out", str(self.out), "--seeds", *map(str, self.seeds)]
        parts += ["--size", self.size] if self.size != PreferDemoSettings.size else []
        parts += ["--methods", *self.methods] if self.methods != METHODS else []
        return shlex.join(parts)


def run_prefer_demo(settings: PreferDemoSettings) -> Path:
    """Do what is left to do, print tables and claims, write the report; returns its path.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.report.prefer import print_prefer, render_prefer

    if settings.fresh:
        shutil.rmtree(settings.out, ignore_errors=True)
    seconds: dict[str, float] = {}
    for seed in settings.seeds:
        _discard_stale(settings, seed)
    _timed(seconds, "labs", settings, _lab_jobs(settings))
    _timed(seconds, "training and measuring", settings, _train_jobs(settings))
    demo = {
        "command": settings.command,
        "seeds": settings.seeds,
        "tuning_seeds": TUNING_SEEDS,
        "size": settings.size,
        "methods": settings.methods,
        "seconds": _kept_seconds(settings.out / DEMO_FILE, seconds),
    }
    atomic_write_json(settings.out / DEMO_FILE, demo)
    report = render_prefer(settings.out, settings.out / "report.html")
    print_prefer(settings.out, report)
    return report


def _place(settings: PreferDemoSettings, seed: int) -> Path:
    return settings.out / f"seed{seed}"


def _unfinished(settings: PreferDemoSettings, seed: int) -> list[str]:
    return [name for name in settings.methods if not (_place(settings, seed) / name / RUN_FILE).exists()]


def _lab_jobs(settings: PreferDemoSettings) -> list[Job]:
    """One job per seed that has something left to train."""
    return [
        Job(
            f"labs of seed {seed}",
            MODULE,
            ("labs", str(settings.out), str(seed), settings.size),
            _place(settings, seed) / "logs" / "labs.log",
        )
        for seed in settings.seeds
        if _unfinished(settings, seed)
    ]


def _train_jobs(settings: PreferDemoSettings) -> list[Job]:
    """Two shares per seed: one process for several runs, because importing the training stack takes as long as one."""
    jobs = []
    for seed in settings.seeds:
        left = _unfinished(settings, seed)
        for share in filter(None, (left[0::2], left[1::2])):
            arguments = ("train", str(settings.out), str(seed), settings.size, *share)
            log = _place(settings, seed) / "logs" / f"{'-'.join(share)}.log"
            jobs.append(Job(f"seed {seed}: {', '.join(share)}", MODULE, arguments, log))
    return jobs


def _discard_stale(settings: PreferDemoSettings, seed: int) -> None:
    """Throw away results of other labs, measurements or recipes: they would be mixed with new ones."""
    from negpo.lab.distill_lab import STAGE1
    from negpo.lab.prefer_runs import RUNS

    place = _place(settings, seed)
    old: dict[str, Any] = {}
    if (place / STATE_FILE).exists():
        old = json.loads((place / STATE_FILE).read_text(encoding="utf-8"))
    recipes = {name: recipe_path(run.recipe).read_text(encoding="utf-8") for name, run in RUNS.items()}
    state = {"size": settings.size, "source": source_hash(SOURCES), "recipes": recipes}
    state["stage1"] = recipe_path(STAGE1).read_text(encoding="utf-8")
    same = all(old.get(key) == state[key] for key in ("size", "source", "stage1"))
    for name in METHODS:
        if old and not (same and old["recipes"].get(name) == recipes[name]):
            shutil.rmtree(place / name, ignore_errors=True)
    atomic_write_json(place / STATE_FILE, state)


def _timed(seconds: dict[str, float], part: str, settings: PreferDemoSettings, jobs: list[Job]) -> None:
    started = time.perf_counter()
    run_jobs(jobs, workers=settings.workers, title="")
    seconds[part] = time.perf_counter() - started


def _kept_seconds(demo_file: Path, seconds: dict[str, float]) -> dict[str, float]:
    """Timings of this call, and of earlier ones for parts that were only looked up now."""
    old = json.loads(demo_file.read_text(encoding="utf-8"))["seconds"] if demo_file.exists() else {}
    return {part: max(value, old.get(part, 0.0)) for part, value in seconds.items()}
