"""The command line: ``negpo COMMAND`` or ``python -m negpo COMMAND``.

One file a command, each with ``add_parser(subparsers)`` and ``run(args, extra)``. At import time these files use the
standard library only, so that every ``--help`` answers at once; torch and the rest are imported inside ``run``.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from negpo import __version__
from negpo.cli import (
    audit,
    data,
    demo,
    doctor,
    eval,
    extrapolate,
    lab,
    meta_eval,
    plan,
    report,
    reproduce,
    sweep,
    train,
)
from negpo.cli._hub import quiet_retries
from negpo.errors import NegpoError, TrainingInterrupted

COMMANDS = {
    "demo": demo,
    "data": data,
    "train": train,
    "eval": eval,
    "audit": audit,
    "report": report,
    "sweep": sweep,
    "meta-eval": meta_eval,
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
    """Run one command and exit: 0 done, 1 a negative answer, 2 an error the user can act on, 130 an interrupt, 141 the
    reader of the output has gone, 143 a training that wrote its checkpoint after SIGTERM (124: one that hung, see
    ``negpo.trainers._run.watch``)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            status = _status(argv)
        except SystemExit as stop:  # argparse
            status = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # or Python complains at exit that it cannot flush
        os.dup2(nowhere, sys.stdout.fileno())
        status = 141
    sys.exit(status or 0)


def _status(argv: Sequence[str] | None) -> int | str | None:
    """The exit status of a command whose errors have been told."""
    parser = build_parser()
    args, extra = parser.parse_known_args(argv)
    if extra and args.command not in TAKES_CONFIG_FLAGS:
        parser.error(f"unrecognized arguments: {' '.join(extra)} (see negpo {args.command} --help)")
    quiet_retries()
    try:
        return COMMANDS[args.command].run(args, extra)
    except NegpoError as error:
        print(f"negpo: error: {error}", file=sys.stderr)
        return 143 if isinstance(error, TrainingInterrupted) else 2
    except KeyboardInterrupt:
        print("negpo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.strerror is None:  # not the system's: another library's, or a bug
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"negpo: error: {where}{error.strerror}", file=sys.stderr)
        return 2
