"""``negpo report DIR``: one HTML file from a folder of unlearning results."""

import argparse
from pathlib import Path

LAYOUT = """\
DIR is the --out folder of `negpo demo`, or a folder made by hand:

  DIR/target/     negpo eval tofu --model TARGET --retain-model RETAIN --out DIR/target
  DIR/retain/     negpo eval tofu --model RETAIN --is-retain --out DIR/retain
  DIR/npo/        negpo eval tofu --model RUN    --retain-model RETAIN --out DIR/npo

A run that was evaluated at several checkpoints has DIR/npo/checkpoint-<step>/ instead.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="render a report from results",
        description=__doc__,
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, metavar="DIR", help="folder of results")
    parser.add_argument("--out", type=Path, help="HTML file; default: DIR/report.html")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.report import render_report
    from negpo.report.terminal import print_summary

    print_summary(args.results, render_report(args.results, args.out))
    return 0
