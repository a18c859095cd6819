"""``negpo data rollouts``: the answers of an evaluation as stored rollouts for TOPR, NSR, NFT and other RL methods."""

from __future__ import annotations

import argparse
from pathlib import Path

from negpo.cli._data_common import add_benchmark_flags, run_of, show_counts, write_rows
from negpo.cli._flags import output_file


def add_parser(kinds) -> None:
    parser = kinds.add_parser(
        "rollouts",
        help="answers of an evaluation, to be trained on offline (--rollouts)",
        description="Write prompt, completion and verdict of every answer of an evaluation, one JSON object a line.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--eval", required=True, metavar="FOLDER", help="folder written by `negpo eval`")
    parser.add_argument("--output", type=output_file, required=True, help="JSON-lines file to write")
    add_benchmark_flags(parser)


def run(args: argparse.Namespace) -> int:
    from negpo.data.io import read_jsonl
    from negpo.data.protocols import find_protocol
    from negpo.errors import ConfigError

    folder = Path(args.eval)
    manifest, problems, _ = run_of(args.eval, args)
    for name in ("samples.jsonl", "verdicts.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; it is not a folder written by `negpo eval`")
    card = find_protocol(manifest["protocol"].get("name", ""))
    prompts = {problem.id: card.ask(problem.question) for problem in problems}
    verdicts = {(row["problem"], row["sample"]): row["status"] for row in read_jsonl(folder / "verdicts.jsonl")}
    rows = []
    for row in read_jsonl(folder / "samples.jsonl"):
        status = verdicts.get((row["problem"], row["sample"]))
        if status is not None and row["text"] and row["problem"] in prompts:
            finished = row.get("finish_reason") != "length"
            kept = {"prompt": prompts[row["problem"]], "completion": row["text"], "verdict": status}
            rows.append(kept | ({} if finished else {"finished": False}))
    if not rows:
        raise ConfigError(f"{folder} holds no judged answer")
    output = Path(args.output)
    write_rows(output, rows)
    counts = [("answers", len(rows))]
    counts += [(status, sum(row["verdict"] == status for row in rows)) for status in ("correct", "wrong", "unknown")]
    show_counts("rollouts", counts, [output])
    return 0
