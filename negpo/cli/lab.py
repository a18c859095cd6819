"""``negpo lab build``: the embedded world and its target and retain models, without running a method."""

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("lab", help="build the embedded world and its models", description=__doc__)
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    build = commands.add_parser(
        "build",
        help="build a lab, or find the one built before",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    build.add_argument("--out", type=Path, default=Path("runs/labs"), help="folder for labs")
    build.add_argument("--seed", type=int, default=0, help="which world")
    build.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from rich.console import Console

    from negpo.lab import build_lab

    lab = build_lab(args.out, args.seed, args.size)
    console = Console()
    console.print(f"lab:    {lab.root}", f"data:   {lab.data} ({lab.forget})", sep="\n", soft_wrap=True)
    console.print(f"target: {lab.target}", f"retain: {lab.retain}", sep="\n", soft_wrap=True)
    return 0
