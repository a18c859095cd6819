"""``negpo demo``: build an embedded lab, unlearn with every method or evaluate reasoning, write one report."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job: lab, GA, GradDiff, NPO, SimNPO and CATNIP, one report; or reason: pass@k of a lab model",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    jobs = "unlearn: every method on the lab's authors; reason: pass@k of the arithmetic model on every engine"
    parser.add_argument("job", nargs="?", default="unlearn", choices=("unlearn", "reason"), help=jobs)
    out = "folder for labs, results and report.html (default: runs/demo or runs/reason)"
    parser.add_argument("--out", type=Path, default=argparse.SUPPRESS, help=out)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="worlds to build; reason takes one")
    parser.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")
    parser.add_argument("--fresh", action="store_true", help="delete the folder first instead of going on")
    unlearn = parser.add_argument_group("unlearn")
    unlearn.add_argument("--tofu", type=Path, help="folder of the published TOFU files: the real questions, forget01")
    unlearn.add_argument("--methods", nargs="+", help="default: all; an unknown name is answered with the list")
    unlearn.add_argument("--every", type=int, default=5, help="optimiser steps between evaluations")
    unlearn.add_argument("--workers", type=int, default=2, help="child processes at once, one thread each")
    reason = parser.add_argument_group("reason")
    reason.add_argument("--samples", type=int, default=64, help="drawn per problem; the largest k")
    reason.add_argument("--problems", type=int, default=100, help="the first of the lab's 500 test problems")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    if args.job == "reason":
        _reason(args)
    else:
        _unlearn(args)
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
            problems=args.problems,
            fresh=args.fresh,
        )
    )
