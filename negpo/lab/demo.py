"""The main job: build a lab, unlearn with every method, measure along the way, write one report.

What is finished is kept: a second call goes on where the first one stopped, and only renders when nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from negpo.data.io import atomic_write_json
from negpo.lab.experiment import TUNING_SEEDS, Settings
from negpo.lab.runs import RUNS, UnlearnPlan
from negpo.report.results import DEMO_FILE


@dataclass(frozen=True)
class DemoSettings(Settings):
    """`negpo demo`. `every`: optimiser steps between evaluations; `methods`: names of `negpo.lab.runs.RUNS`;
    `tofu`: folder of the published TOFU files, for the real questions instead of the invented world.
    """

    out: Path = Path("runs/demo")
    every: int = 5
    tofu: Path | None = None
    summary_file: ClassVar[str] = DEMO_FILE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("every")

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(RUNS)

    def plan(self, seed: int) -> UnlearnPlan:
        return UnlearnPlan(str(self.out), seed, self.size, self.every, str(self.tofu) if self.tofu else None)


def run_demo(settings: DemoSettings) -> Path:
    """Do what is left to do, print the table, write the report; returns its path.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.report.unlearning import print_summary, render

    seconds = settings.run()
    labs = {seed: settings.plan(seed).lab for seed in settings.seeds}
    demo = {
        "command": settings.command,
        "seeds": settings.seeds,
        "tuning_seeds": TUNING_SEEDS,
        "size": settings.size,
        "every": settings.every,
        "forget": labs[settings.seeds[0]].forget,
        "labs": {str(seed): lab.root.name for seed, lab in labs.items()},
        "seconds": seconds,
    }
    atomic_write_json(settings.out / DEMO_FILE, demo)
    report = render(settings.out, settings.out / "report.html")
    print_summary(settings.out, report)
    return report
