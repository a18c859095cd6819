"""How the settings in configs/recipes/*/lab*.yaml were chosen: one run, one variant, the labs of the tuning seeds.

    python scripts/tune_lab.py npo
    python scripts/tune_lab.py npo --set learning_rate=7e-4 --set beta=0.05

Prints forget quality, share of the target's utility, and probability of the forget answers along each trajectory.
`negpo demo` refuses these seeds, so nothing chosen here has seen what the demo reports.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from rich.console import Console

from negpo.data.io import atomic_write_json
from negpo.lab import runs
from negpo.lab.experiment import TUNING_SEEDS
from negpo.report.results import RUN_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=sorted(runs.RUNS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe's setting")
    parser.add_argument("--every", type=int, default=20, help="optimiser steps between evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(TUNING_SEEDS), choices=TUNING_SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    args = parser.parse_args()
    overrides = tuple(part for pair in args.set for part in (f"--{pair.split('=')[0]}", pair.split("=", 1)[1]))
    console = Console()
    for seed in args.seeds:
        plan = runs.UnlearnPlan(str(args.out), seed, "default", args.every)
        with contextlib.redirect_stdout(sys.stderr):  # lines for the demo's progress bars
            plan.prepare()
            for name in plan.first:
                if not plan.finished(name):
                    plan.do(name)
            result = runs.unlearn(runs.RUNS[args.run], plan, plan.place / args.run, overrides)
        atomic_write_json(plan.place / args.run / RUN_FILE, result)
        utility = plan.result("target")["trajectory"][0]["metrics"]["model_utility"]
        for point in result["trajectory"]:
            metrics = point["metrics"]
            console.print(
                f"seed {seed} step {point['step']:4d}: forget quality {metrics['forget_quality']:.2g}, "
                f"utility {metrics['model_utility'] / utility:.0%}, probability {metrics['forget_Q_A_Prob']:.2g}"
            )


if __name__ == "__main__":
    main()
