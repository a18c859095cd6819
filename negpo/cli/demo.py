"""``negpo demo``: build the embedded lab, unlearn with every method, write one report."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job: lab, GA, GradDiff, NPO, SimNPO and CATNIP, one report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for labs, results and report.html")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one world and one set of models per seed")
    parser.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")
    parser.add_argument("--tofu", type=Path, help="folder of the published TOFU files: the real questions, forget01")
    parser.add_argument("--methods", nargs="+", help="default: all; an unknown name is answered with the list")
    parser.add_argument("--every", type=int, default=5, help="optimiser steps between evaluations")
    parser.add_argument("--workers", type=int, default=2, help="child processes at once, one thread each")
    parser.add_argument("--fresh", action="store_true", help="delete the folder first instead of going on")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.lab.demo import DemoSettings, run_demo

    run_demo(
        DemoSettings(
            out=args.out,
            seeds=tuple(args.seeds),
            size=args.size,
            methods=tuple(args.methods) if args.methods else DemoSettings.methods,
            every=args.every,
            workers=args.workers,
            fresh=args.fresh,
            tofu=args.tofu,
        )
    )
    return 0
