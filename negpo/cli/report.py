"""``negpo report DIR [DIR ...]``: one HTML file from unlearning results, or from one or several reasoning runs."""

import argparse
from pathlib import Path

from negpo.cli._flags import output_file

LAYOUT = """\
DIR is the --out folder of `negpo demo`, or a folder made by hand:

  DIR/target/     negpo eval tofu --model TARGET --retain-model RETAIN --out DIR/target
  DIR/retain/     negpo eval tofu --model RETAIN --is-retain --out DIR/retain
  DIR/npo/        negpo eval tofu --model RUN    --retain-model RETAIN --out DIR/npo

A run that was evaluated at several checkpoints has DIR/npo/checkpoint-<step>/ instead.

Or DIR is the --out folder of `negpo eval math500` and its like; several such folders are drawn into one page and
tested against the first.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="render a report from results",
        description=__doc__,
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, metavar="DIR", nargs="+", help="folder of results")
    parser.add_argument("--out", type=output_file, help="HTML file; default: report.html in the first DIR")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.errors import ConfigError

    if missing := [str(folder) for folder in args.results if not folder.is_dir()]:
        raise ConfigError(f"there is no folder {missing[0]}; give the --out folder of negpo demo or negpo eval")
    first = args.results[0]
    if (first / "samples.jsonl").is_file():
        from negpo.report.reasoning import render_reasoning_report

        print(f"report: {render_reasoning_report(args.results, args.out or first / 'report.html')}")
        return 0
    if len(args.results) > 1:
        raise ConfigError(f"{first} holds no reasoning run, and only those are compared; give one folder")
    from negpo.report import render_report
    from negpo.report.unlearning import print_summary

    print_summary(first, render_report(first, args.out))
    return 0
