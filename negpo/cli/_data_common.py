"""What the builders of training data share: finding the benchmark of an evaluation, writing rows, showing counts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negpo.data.problems import Problem


def add_benchmark_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="--eval: local file or folder of the benchmark instead of the Hub")
    parser.add_argument("--benchmark-file", metavar="YAML", help="--eval: the file of a custom benchmark")


def run_of(folder: str, args: argparse.Namespace) -> tuple[dict[str, Any], list[Problem], str | None]:
    """Manifest of a folder written by ``negpo eval``, problems of the benchmark it names, and their answer kind.

    Raises:
        ConfigError: no manifest, or a custom benchmark without its file.
        DataError: a manifest that `negpo eval` did not write.
    """
    from negpo.data.io import read_json
    from negpo.data.problems import BENCHMARKS, custom_benchmark, load_problems, read_problems
    from negpo.errors import ConfigError, DataError

    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no manifest.json; it is not a folder written by `negpo eval`")
    manifest = read_json(path)
    name, card = manifest.get("benchmark"), manifest.get("protocol")
    if not isinstance(name, str) or not isinstance(card, dict):
        raise DataError("names no benchmark and protocol; it is not the manifest of a reasoning run", file=str(path))
    if args.benchmark_file:
        bench, source = custom_benchmark(args.benchmark_file)
        return manifest, read_problems(args.data or source, bench), bench.kind
    if name not in BENCHMARKS:
        raise ConfigError(f"{folder} is a run of {name!r}, a benchmark of your own; pass its --benchmark-file")
    return manifest, load_problems(name, args.data), BENCHMARKS[name].kind


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import json

    from negpo.data.io import atomic_write

    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def show_counts(title: str, counts: Sequence[tuple[str, int]], files: Sequence[Path]) -> None:
    """A table of what was made and dropped, and where it lies; report.json stands beside the files."""
    from rich.table import Table

    from negpo.progress import plain_console

    table = Table(title=title)
    table.add_column("what")
    table.add_column("number", justify="right")
    for what, number in counts:
        table.add_row(what, f"{number:,}")
    console = plain_console()
    console.print(table)
    listed = ", ".join(map(str, [*files, files[0].parent / "report.json"]))
    console.print(f"written: {listed}", soft_wrap=True)
