"""``negpo demo``: an embedded lab, unlearning, reasoning or training on verified or rejected answers, one report."""

import argparse
from pathlib import Path


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
    parser.add_argument("job", nargs="?", default="unlearn", choices=("unlearn", "reason", "rlvr", "prefer"), help=jobs)
    out = "folder for labs, results and report.html (default: runs/demo or runs/JOB)"
    parser.add_argument("--out", type=Path, default=argparse.SUPPRESS, help=out)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="worlds to build; reason takes one")
    parser.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")
    parser.add_argument("--fresh", action="store_true", help="delete the folder first instead of going on")
    methods = "of unlearn, rlvr or prefer; default: all; an unknown name is answered with the list"
    parser.add_argument("--methods", nargs="+", help=methods)
    parser.add_argument("--workers", type=int, default=2, help="child processes at once, one thread each")
    unlearn = parser.add_argument_group("unlearn")
    unlearn.add_argument("--tofu", type=Path, help="folder of the published TOFU files: the real questions, forget01")
    unlearn.add_argument("--every", type=int, default=5, help="optimiser steps between evaluations")
    reason = parser.add_argument_group("reason and rlvr")
    reason.add_argument("--samples", type=int, default=64, help="drawn per problem; the largest k")
    problems = "the first of the lab's 500 test problems (default: 100 for reason, 300 for rlvr)"
    reason.add_argument("--problems", type=int, default=argparse.SUPPRESS, help=problems)
    rlvr = parser.add_argument_group("rlvr")
    rlvr.add_argument("--steps", type=int, help="optimiser steps per method; default: the recipes'")
    rlvr.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help="draws the rollouts")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    {"unlearn": _unlearn, "reason": _reason, "rlvr": _rlvr, "prefer": _prefer}[args.job](args)
    return 0


def _unlearn(args: argparse.Namespace) -> None:
    from negpo.lab.demo import DemoSettings, run_demo

    run_demo(
        DemoSettings(
            out=getattr(args, "out", DemoSettings.out),
            seeds=tuple(args.seeds),
            size=args.size,
            methods=tuple(args.methods) if args.methods else DemoSettings.methods,
            every=args.every,
            workers=args.workers,
            fresh=args.fresh,
            tofu=args.tofu,
        )
    )


def _reason(args: argparse.Namespace) -> None:
    from negpo.errors import ConfigError
    from negpo.lab.reason_demo import ReasonDemoSettings, run_reason_demo

    if len(args.seeds) != 1:
        raise ConfigError(f"demo reason takes one seed, got {len(args.seeds)}: their problems differ, run them apart")
    run_reason_demo(
        ReasonDemoSettings(
            out=getattr(args, "out", ReasonDemoSettings.out),
            seed=args.seeds[0],
            size=args.size,
            samples=args.samples,
            problems=getattr(args, "problems", ReasonDemoSettings.problems),
            fresh=args.fresh,
        )
    )


def _rlvr(args: argparse.Namespace) -> None:
    from negpo.lab.rlvr_demo import RlvrSettings, run_rlvr_demo

    run_rlvr_demo(
        RlvrSettings(
            out=getattr(args, "out", RlvrSettings.out),
            seeds=tuple(args.seeds),
            size=args.size,
            methods=tuple(args.methods) if args.methods else RlvrSettings.methods,
            steps=args.steps,
            engine=args.engine,
            problems=getattr(args, "problems", RlvrSettings.problems),
            samples=args.samples,
            workers=args.workers,
            fresh=args.fresh,
        )
    )


def _prefer(args: argparse.Namespace) -> None:
    from negpo.lab.prefer_demo import PreferDemoSettings, run_prefer_demo

    run_prefer_demo(
        PreferDemoSettings(
            out=getattr(args, "out", PreferDemoSettings.out),
            seeds=tuple(args.seeds),
            size=args.size,
            methods=tuple(args.methods) if args.methods else PreferDemoSettings.methods,
            workers=args.workers,
            fresh=args.fresh,
        )
    )
