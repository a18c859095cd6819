"""How every demo runs: what is missing, side by side in child processes, with keys that say whose results are whose.

An experiment is one `Plan` per seed. A plan knows what to `prepare` (its labs), which results come `first` (the models
before training), how to `perform` a named run, and what each result `depends` on. A result is the file `results.json`,
written last and in one piece, with the hash of what it depends on: one with the right hash is finished, any other is
done again. `python -m negpo.lab.experiment MODULE:CLASS PLAN NAME...` is the child process.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from negpo.configs import recipe_path
from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab._cache import settings_key
from negpo.lab._jobs import Job, report_progress, run_jobs
from negpo.report.results import RUN_FILE

TUNING_SEEDS = (100, 101, 102)  # the labs on which the settings in configs/recipes/*/lab*.yaml were chosen


@dataclass(frozen=True)
class Run:
    """One line of a demo: which method, which shipped recipe; `part` and `data` as its demo needs them."""

    name: str
    title: str
    method: str
    recipe: str
    part: str = ""
    data: str = ""

    @property
    def recipe_text(self) -> str:
        return recipe_path(self.recipe).read_text(encoding="utf-8")


def by_name(*runs: Run) -> dict[str, Run]:
    return {run.name: run for run in runs}


@dataclass(frozen=True)
class Settings(ABC):
    """What a demo was asked to do. `methods`: none for all; `workers`: child processes at once, one thread each;
    `fresh`: delete `out` first.
    """

    out: Path = Path("runs")
    seeds: tuple[int, ...] = (0,)
    size: str = "default"
    methods: tuple[str, ...] = ()
    workers: int = 2
    fresh: bool = False
    job: ClassVar[str] = ""  # of `negpo demo JOB`
    summary_file: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds}: give at least one, each once")
        if used := set(TUNING_SEEDS) & set(self.seeds):
            raise ConfigError(f"the settings were tuned on the labs of seed {sorted(used)}; choose other seeds")
        if unknown := sorted(set(self.methods) - set(self.known)):
            raise ConfigError(f"unknown method {', '.join(unknown)}; choose from {', '.join(self.known)}")
        if not self.methods:
            object.__setattr__(self, "methods", self.known)
        self.at_least_one("workers")

    @property
    def known(self) -> tuple[str, ...]:
        """Names of all methods; those of the default where a demo says nothing else."""
        default: Any = type(self).__dataclass_fields__["methods"].default
        return default

    def at_least_one(self, *names: str) -> None:
        """Refuse counts below 1."""
        for name in names:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value} (--{name}={value}); it must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """All runs of a seed."""
        return self.methods

    @abstractmethod
    def plan(self, seed: int) -> Plan:
        """What is done for one seed."""

    def run(self) -> dict[str, float]:
        """Do what is left to do, see `run_plans`."""
        if self.fresh:
            shutil.rmtree(self.out, ignore_errors=True)
        plans = [self.plan(seed) for seed in self.seeds]
        return run_plans(plans, self.names, workers=self.workers, summary=self.out / self.summary_file)

    @property
    def command(self) -> str:
        """The command line that repeats this."""
        parts = ["negpo", "demo", *([self.job] if self.job else [])]
        parts += ["--out", str(self.out), "--seeds", *map(str, self.seeds)]
        for field in fields(self):
            value = getattr(self, field.name)
            usual = self.known if field.name == "methods" else field.default
            if field.name not in ("out", "seeds", "workers", "fresh") and value != usual:
                parts += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(parts)


@dataclass(frozen=True)
class Plan(ABC):
    """What the runs of one seed have in common; travels to child processes as JSON, so its fields are plain values."""

    out: str
    seed: int
    size: str
    first: ClassVar[tuple[str, ...]] = ()  # results that others compare themselves with
    continues: ClassVar[bool] = False  # whether `perform` goes on with what an interrupted attempt left

    @property
    def place(self) -> Path:
        return Path(self.out) / f"seed{self.seed}"

    def prepare(self) -> None:  # noqa: B027  # not every experiment has a lab of its own
        """Build what all runs need."""

    @abstractmethod
    def depends(self, name: str) -> dict[str, Any]:
        """Everything the result `name` depends on, beside the code of trainers and evaluations; plain values."""

    @abstractmethod
    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        """Do the run `name`, put its files in `folder`, and return the content of its result."""

    @property
    def has_lab(self) -> bool:
        return type(self).prepare is not Plan.prepare

    def key(self, name: str) -> str:
        return settings_key(self.depends(name))

    def finished(self, name: str) -> bool:
        """Whether the result is there and belongs to these settings."""
        path = self.place / name / RUN_FILE
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("key") == self.key(name)

    def result(self, name: str) -> dict[str, Any]:
        return json.loads((self.place / name / RUN_FILE).read_text(encoding="utf-8"))

    def do(self, name: str) -> None:
        """Perform one run and write its result."""
        folder = self.place / name
        if not self.continues:
            shutil.rmtree(folder, ignore_errors=True)  # an unfinished attempt, or one with other settings
        content = self.perform(name, folder)
        atomic_write_json(folder / RUN_FILE, {"key": self.key(name), **content})


def run_plans(plans: Sequence[Plan], names: Sequence[str], *, workers: int, summary: Path) -> dict[str, float]:
    """Do what is left to do of the runs `names` of every plan.

    Returns wall-clock seconds by part; for what an earlier call did, those that it left in `summary`.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    missing = {plan: [name for name in names if not plan.finished(name)] for plan in plans}
    before = {plan: [name for name in plan.first if not plan.finished(name)] for plan in plans}
    seconds: dict[str, float] = {}
    with timed(seconds, "labs and models before training"):
        jobs = [_job(plan, before[plan]) for plan in plans if before[plan] or (missing[plan] and plan.has_lab)]
        run_jobs(jobs, workers=workers, title="")
    with timed(seconds, "training and measuring"):
        # as many jobs per seed as workers: importing the training stack takes as long as some runs
        shares = [(plan, left[i::workers]) for plan, left in missing.items() for i in range(workers)]
        run_jobs([_job(plan, share) for plan, share in shares if share], workers=workers, title="")
    old = json.loads(summary.read_text(encoding="utf-8")).get("seconds", {}) if summary.is_file() else {}
    return {part: max(value, old.get(part, 0.0)) for part, value in seconds.items()}


def _job(plan: Plan, names: Sequence[str]) -> Job:
    home = f"{type(plan).__module__}:{type(plan).__qualname__}"
    log = plan.place / "logs" / f"{'-'.join(names) or 'prepare'}.log"
    title = f"seed {plan.seed}: {', '.join(names) or 'lab'}"
    return Job(title, "negpo.lab.experiment", (home, json.dumps(asdict(plan)), *names), log)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the wall-clock seconds of its block to a dict under a name."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


# ---- in a child process ----------------------------------------------------------------------------------------------


def build_trainer(run: Run, arguments: Sequence[str]) -> Any:
    """The trainer that `negpo train METHOD ARGUMENTS` would run, silent and without checkpoints."""
    from transformers import PrinterCallback

    from negpo.trainers._script import build, parse

    script, config = parse(run.method, list(arguments))
    config.disable_tqdm, config.report_to, config.save_strategy = True, [], "no"
    trainer = build(run.method, script, config)
    trainer.remove_callback(PrinterCallback)  # every step's log is kept in the result
    return trainer


def watch_steps(trainer: Any, look: Callable[[Any, Any], str]) -> None:
    """Call `look(state, model)` after every optimiser step; what it returns stands beside the progress bar."""
    from transformers import TrainerCallback

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            report_progress(state.global_step, state.max_steps, look(state, model))

    trainer.add_callback(Look())


def describe(run: Run, arguments: Sequence[str], trainer: Any) -> dict[str, Any]:
    """What every result says about its training: the run, the command that repeats it, settings, the trainer's log."""
    return {
        **asdict(run),
        "command": ["negpo", "train", run.method, *arguments],
        "config": shown_settings(trainer.args),
        "training_log": trainer.state.log_history,
    }


def shown_settings(config: Any) -> dict[str, Any]:
    """What a report lists: the optimiser's main settings, sampling, and everything that the method's config adds."""
    inherited = next(base for base in type(config).__mro__ if not base.__module__.startswith("negpo."))
    own = [item.name for item in fields(config) if item.name not in {base.name for base in fields(inherited)}]
    common = ["learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "weight_decay"]
    common += ["lr_scheduler_type", "warmup_steps", "num_generations", "temperature", "max_completion_length"]
    common += ["epsilon", "epsilon_high", "delta"]
    values: Mapping[str, Any] = config.to_dict()
    return {name: values[name] for name in (*common, *own) if name in values}


def main(arguments: Sequence[str]) -> None:
    import torch

    # an interrupted parent terminates its children: end as Python code does, so that theirs are ended too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    home, content, *names = arguments
    module, name = home.split(":")
    plan: Plan = getattr(import_module(module), name)(**json.loads(content))
    plan.prepare()
    for run in names:
        plan.do(run)


if __name__ == "__main__":
    main(sys.argv[1:])
