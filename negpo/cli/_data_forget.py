"""``negpo data forget``: forget and retain files for any share, authors or rows of a question-answer set."""

from __future__ import annotations

import argparse
from pathlib import Path

from negpo.cli._data_common import show_counts, write_rows
from negpo.cli._flags import natural, number, output_folder, positive


def add_parser(kinds) -> None:
    parser = kinds.add_parser(
        "forget",
        help="a forget set of your own: by share, authors or rows",
        description="Write forget.jsonl and retain.jsonl with the row numbers they came from.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="the full set: file, folder or Hub id (locuslab/TOFU)")
    parser.add_argument("--name", help="its configuration, e.g. full")
    parser.add_argument("--split", default="train")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--percent", type=number(0, 100, exclude_low=True), help="the last so many percent of the rows (TOFU: 20 to 90)"
    )
    which.add_argument("--authors", type=natural, nargs="+", help="numbers of authors, 0 is the first")
    which.add_argument("--draw-authors", type=positive, metavar="N", help="N authors drawn with --seed")
    which.add_argument("--rows", type=natural, nargs="+", help="numbers of rows")
    parser.add_argument("--rows-per-author", type=positive, default=20)
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument(
        "--out", type=output_folder, required=True, help="folder for forget.jsonl, retain.jsonl and report.json"
    )


def run(args: argparse.Namespace) -> int:
    from negpo.data.forget_sets import by_authors, by_rows, by_share, draw_authors
    from negpo.data.io import atomic_write_json
    from negpo.data.rows import load_rows

    full = list(load_rows(args.dataset, name=args.name, split=args.split, required=()))
    authors = args.authors
    if args.draw_authors is not None:
        authors = draw_authors(len(full), args.draw_authors, seed=args.seed, rows_per_author=args.rows_per_author)
    if args.percent is not None:
        split = by_share(len(full), args.percent)
    elif args.rows is not None:
        split = by_rows(len(full), args.rows)
    else:
        split = by_authors(len(full), authors, rows_per_author=args.rows_per_author)
    forget, retain = split.rows(full)
    out = Path(args.out)
    write_rows(out / "forget.jsonl", forget)
    write_rows(out / "retain.jsonl", retain)
    chosen = {"authors": None if authors is None else list(authors), "forget_rows": list(split.forget)}
    atomic_write_json(out / "report.json", {"settings": vars(args), **chosen})
    counts = [("rows to forget", len(forget)), ("rows to keep", len(retain))]
    show_counts("forget set", counts, [out / "forget.jsonl", out / "retain.jsonl"])
    return 0
