"""`negpo demo prefer`: learning from rejected answers on two labs, for every seed, with intervals.

Distillation: what wrong traces add to right ones (SFT, DPO, SimPO, symmetric and asymmetric REDI). Dispreference: how
an unwanted style is unlearned from negatives alone (D2O, against DPO with noisy positives, NPO and GA).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from negpo.data.io import atomic_write_json
from negpo.lab.experiment import TUNING_SEEDS, Settings
from negpo.lab.prefer_results import DEMO_FILE
from negpo.lab.prefer_runs import RUNS, PreferPlan


@dataclass(frozen=True)
class PreferDemoSettings(Settings):
    """What `negpo demo prefer` was asked to do."""

    out: Path = Path("runs/prefer")
    job: ClassVar[str] = "prefer"
    summary_file: ClassVar[str] = DEMO_FILE

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(RUNS)

    def plan(self, seed: int) -> PreferPlan:
        return PreferPlan(str(self.out), seed, self.size)


def run_prefer_demo(settings: PreferDemoSettings) -> Path:
    """Do what is left to do, print tables and claims, write the report; returns its path.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.lab.prefer_report import print_prefer, render_prefer

    demo = {
        "command": settings.command,
        "seeds": settings.seeds,
        "tuning_seeds": TUNING_SEEDS,
        "size": settings.size,
        "methods": settings.methods,
        "seconds": settings.run(),
    }
    atomic_write_json(settings.out / DEMO_FILE, demo)
    report = render_prefer(settings.out, settings.out / "report.html")
    print_prefer(settings.out, report)
    return report
