"""The command line: ``negpo COMMAND`` or ``python -m negpo COMMAND``.

One file a command, each with ``add_parser(subparsers)`` and ``run(args, extra)``. At import time these files use the
standard library only, so that every ``--help`` answers at once; torch and the rest are imported inside ``run``.
"""

import argparse
import sys
from collections.abc import Sequence

from negpo import __version__
from negpo.cli import audit, data, demo, doctor, eval, extrapolate, lab, plan, report, reproduce, sweep, train
from negpo.errors import NegpoError, TrainingInterrupted

COMMANDS = {
    "demo": demo,
    "data": data,
    "train": train,
    "eval": eval,
    "audit": audit,
    "report": report,
    "sweep": sweep,
    "extrapolate": extrapolate,
    "lab": lab,
    "plan": plan,
    "reproduce": reproduce,
    "doctor": doctor,
}
TAKES_CONFIG_FLAGS = {"train"}  # flags that argparse does not know are fields of the method's config class


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="negpo",
        description="Post-training on negative signals: unlearning, wrong answers, rejected answers.",
    )
    parser.add_argument("--version", action="version", version=f"negpo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a negative answer, 2 an error the user can act on, 130 an interrupt, 143 a
    training that wrote its checkpoint after SIGTERM (124: one that hung, see ``negpo.trainers._run.hang_watch``)."""
    parser = build_parser()
    args, extra = parser.parse_known_args(argv)
    if extra and args.command not in TAKES_CONFIG_FLAGS:
        parser.error(f"unrecognized arguments: {' '.join(extra)} (see negpo {args.command} --help)")
    try:
        status = COMMANDS[args.command].run(args, extra)
    except NegpoError as error:
        print(f"negpo: error: {error}", file=sys.stderr)
        status = 143 if isinstance(error, TrainingInterrupted) else 2
    except KeyboardInterrupt:
        print("negpo: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
