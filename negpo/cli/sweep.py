"""``negpo sweep``: methods x settings x seeds with equal budgets, judged at matched utility."""

from __future__ import annotations

import argparse

from negpo.cli._flags import output_folder, positive


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="compare unlearning methods at matched utility, with equal budgets",
        description="Run every trial of a sweep that is not finished (a killed one goes on), choose settings on the "
        "validation half of the forget set and report on the other half.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("spec", help="YAML file, or the name of a shipped one: lab")
    parser.add_argument(
        "--out", type=output_folder, default="runs/sweep", help="folder for trials, logs and the leaderboard"
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes at once, one thread each")
    parser.add_argument("--report-only", action="store_true", help="judge what is finished, run nothing")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from pathlib import Path

    from negpo.configs import CONFIGS
    from negpo.data.io import atomic_write_json
    from negpo.lab.sweep.run import RESULT_FILE, judge, run_sweep
    from negpo.lab.sweep.spec import read_spec
    from negpo.report.leaderboard import to_markdown, write_leaderboard

    shipped = CONFIGS / "sweeps" / f"{args.spec}.yaml"
    path = shipped if not Path(args.spec).is_file() and shipped.is_file() else Path(args.spec)
    if args.report_only:
        board = judge(read_spec(path), Path(args.out))
        atomic_write_json(Path(args.out) / RESULT_FILE, board)
    else:
        board = run_sweep(path, args.out, workers=args.workers)
    files = write_leaderboard(board, args.out)
    print(to_markdown(board) if files else f"no seed is complete yet: {board['missing_seeds']}")
    print("\n".join(map(str, files)))
    return 0
