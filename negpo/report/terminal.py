"""The short version of an unlearning report for the terminal."""

from __future__ import annotations

from pathlib import Path

from negpo.report.results import load_experiments
from negpo.report.unlearning import equal_table, findings, metrics_table

TONES = {"good": "green", "bad": "red", "warn": "yellow", "": "default"}
SHOWN_COLUMNS = 8  # the rest stands in the HTML report


def print_summary(folder: Path, report: Path) -> None:
    """Findings and main numbers of the results in `folder`, and where the report is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    experiments, _ = load_experiments(folder)
    console = Console()
    numbers = metrics_table(experiments)
    table = Table(*numbers.header[:SHOWN_COLUMNS], title="unlearning")
    for row in numbers.rows:
        cells = [Text(cell.text + (f"\n{cell.note}" if cell.note else ""), TONES[cell.tone]) for cell in row]
        table.add_row(*cells[:SHOWN_COLUMNS])
    console.print(table)
    equal = equal_table(experiments)
    table = Table(*equal.header, title="utility at equal forgetting")
    for row in equal.rows:
        table.add_row(*(cell.text + (f"\n{cell.note}" if cell.note else "") for cell in row))
    console.print(table)
    for card in findings(experiments):
        console.print(Text(f"{card['title']}: ", "bold").append(f"{card['headline']}.", TONES[card["tone"]]))
    console.print(f"report: {report}", soft_wrap=True)
