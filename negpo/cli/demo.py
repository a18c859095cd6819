"""``negpo demo``: an embedded lab, unlearning, reasoning or training on verified or rejected answers, one report."""

import argparse
from pathlib import Path

from negpo.cli._flags import natural, output_folder, positive

JOBS = {  # module of negpo.lab, its settings, its function
    "unlearn": ("demo", "DemoSettings", "run_demo"),
    "reason": ("reason_demo", "ReasonDemoSettings", "run_reason_demo"),
    "rlvr": ("rlvr_demo", "RlvrSettings", "run_rlvr_demo"),
    "prefer": ("prefer_demo", "PreferDemoSettings", "run_prefer_demo"),
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job: lab, unlearning with every method, report; reason: pass@k; rlvr: RL; prefer: REDI, D2O",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    jobs = (
        "unlearn: every method on the lab's authors; reason: pass@k of the arithmetic model on every engine; rlvr: "
        "PSR, NSR, W-REINFORCE, GRPO, NGRPO, NFT and ResRL from the arithmetic model with equal rollouts; prefer: "
        "REDI and D2O against SFT, DPO, SimPO, NPO and GA on a distillation and a dispreference lab"
    )
    parser.add_argument("job", nargs="?", default="unlearn", choices=tuple(JOBS), help=jobs)
    out = "folder for labs, results and report.html (default: runs/demo or runs/JOB)"
    parser.add_argument("--out", type=output_folder, default=argparse.SUPPRESS, help=out)
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0], help="worlds to build; reason takes one")
    parser.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")
    parser.add_argument("--fresh", action="store_true", help="delete the folder first instead of going on")
    methods = "of unlearn, rlvr or prefer; default: all; an unknown name is answered with the list"
    parser.add_argument("--methods", nargs="+", help=methods)
    parser.add_argument("--workers", type=positive, default=2, help="child processes at once, one thread each")
    unlearn = parser.add_argument_group("unlearn")
    unlearn.add_argument("--tofu", type=Path, help="folder of the published TOFU files: the real questions, forget01")
    unlearn.add_argument("--every", type=positive, default=5, help="optimiser steps between evaluations")
    reason = parser.add_argument_group("reason and rlvr")
    reason.add_argument("--samples", type=positive, default=64, help="drawn per problem; the largest k")
    problems = "the first of the lab's 500 test problems (default: 100 for reason, 300 for rlvr)"
    reason.add_argument("--problems", type=positive, default=argparse.SUPPRESS, help=problems)
    rlvr = parser.add_argument_group("rlvr")
    rlvr.add_argument("--steps", type=positive, help="optimiser steps per method; default: the recipes'")
    rlvr.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help="draws the rollouts")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Each job reads the arguments that its settings have."""
    from importlib import import_module

    from negpo.errors import ConfigError

    module, settings, function = JOBS[args.job]
    home = import_module(f"negpo.lab.{module}")
    if args.job == "reason":
        if len(args.seeds) != 1:
            raise ConfigError(
                f"demo reason takes one seed, got {len(args.seeds)}: their problems differ, run them apart"
            )
        args.seed = args.seeds[0]
    kind = getattr(home, settings)
    given = {
        name: value for name, value in vars(args).items() if value is not None and name in kind.__dataclass_fields__
    }
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    getattr(home, function)(kind(**given))
    return 0
