"""``negpo doctor``: versions, devices, usable engines, and the command that fixes each thing that is missing."""

import argparse


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("doctor", help="what is installed, which engines work, what to fix")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """0 if training and evaluation with transformers can run here, else 1."""
    from negpo import health

    report = health.examine()
    if args.json:
        import json

        print(json.dumps(report.as_dict(), indent=2))
    else:
        from negpo.progress import plain_console

        console = plain_console()
        console.print(*health.tables(report))
        console.print(*health.advice(report), sep="\n", soft_wrap=True)  # a wrapped command cannot be copied
    return 0 if report.core_usable else 1
