"""``negpo data rationales``: positives by self-consistency, negatives from earlier checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from negpo.cli._data_common import add_benchmark_flags, run_of, show_counts, write_rows
from negpo.cli._flags import output_folder


def add_parser(kinds) -> None:
    parser = kinds.add_parser(
        "rationales",
        help="right and wrong rationales without golds: self-consistency against earlier checkpoints (QCRD)",
        description="Vote on the answers of one evaluation, take what reaches the voted answer for right and what "
        "earlier checkpoints answered otherwise for wrong; write rationales.jsonl (AFT, LiPO) and pairs.jsonl (DPO, "
        "REDI, SimPO).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--eval", required=True, metavar="FOLDER", help="folder of `negpo eval` with the model that votes"
    )
    parser.add_argument(
        "--earlier",
        required=True,
        nargs="+",
        metavar="FOLDER",
        help="folders of its earlier checkpoints, weakest first",
    )
    parser.add_argument("--out", type=output_folder, required=True, help="folder for the two files and report.json")
    add_benchmark_flags(parser)
    parser.add_argument("--min-agreement", type=float, default=0.5, help="least share of samples behind the answer")
    parser.add_argument("--max-positives", type=int, default=4, help="rationales per question")
    parser.add_argument("--max-negatives", type=int, default=4, help="rationales per question")


def run(args: argparse.Namespace) -> int:
    from negpo.data.io import atomic_write_json
    from negpo.data.rationales import RationaleReport, build_rationales, pairs_of, traces_of
    from negpo.errors import ConfigError

    if not 0 < args.min_agreement <= 1:
        raise ConfigError(f"--min-agreement is {args.min_agreement}; it is a share of the samples, above 0, at most 1")
    for name in ("max_positives", "max_negatives"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    manifest, problems, _ = run_of(args.eval, args)
    for folder in args.earlier:
        other, _, _ = run_of(folder, args)
        if other["benchmark"] != manifest["benchmark"]:
            raise ConfigError(
                f"{folder} is a run of {other['benchmark']!r}, {args.eval} one of {manifest['benchmark']!r}"
            )
    report = RationaleReport()
    rows = build_rationales(
        {problem.id: problem.question for problem in problems},
        traces_of(Path(args.eval)),
        [traces_of(Path(folder)) for folder in args.earlier],
        report,
        min_agreement=args.min_agreement,
        max_positives=args.max_positives,
        max_negatives=args.max_negatives,
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "rationales.jsonl", rows)
    write_rows(out / "pairs.jsonl", pairs_of(rows))
    atomic_write_json(out / "report.json", {"settings": vars(args), "counts": dict(report.rows())})
    show_counts("rationales", report.rows(), [out / "rationales.jsonl", out / "pairs.jsonl"])
    return 0 if rows else 1
