"""``negpo lab build``: an embedded world and its models, without running a method or an evaluation."""

import argparse
from pathlib import Path

from negpo.cli._flags import natural, output_folder


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("lab", help="build the embedded world and its models", description=__doc__)
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    build = commands.add_parser(
        "build",
        help="build a lab, or find the one built before",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    kinds = "authors: target and retain model for unlearning; arithmetic, countdown: problems and a model for RL"
    build.add_argument("--kind", default="authors", choices=("authors", "arithmetic", "countdown"), help=kinds)
    build.add_argument("--out", type=output_folder, default=Path("runs/labs"), help="folder for labs")
    build.add_argument("--seed", type=natural, default=0, help="which world")
    build.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.lab import build_lab
    from negpo.lab.problem_lab import build_problem_lab
    from negpo.lab.worlds import WORLDS
    from negpo.progress import plain_console

    console = plain_console()
    if args.kind in WORLDS:
        built = build_problem_lab(WORLDS[args.kind], args.out, args.seed, args.size)
        console.print(f"lab:   {built.root}", f"model: {built.model}", sep="\n", soft_wrap=True)
        console.print(f"test:  negpo eval custom --benchmark-file {built.benchmark} --protocol lab", soft_wrap=True)
        return 0
    lab = build_lab(args.out, args.seed, args.size)
    console.print(f"lab:    {lab.root}", f"data:   {lab.data} ({lab.forget})", sep="\n", soft_wrap=True)
    console.print(f"target: {lab.target}", f"retain: {lab.retain}", sep="\n", soft_wrap=True)
    return 0
