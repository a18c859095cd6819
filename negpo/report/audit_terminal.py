"""The short version of an audit for the terminal: verdict lines of all models side by side, and unmet conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from negpo.report._base import Cell, Table, print_tables
from negpo.report.audit import lines_of, twin_of
from negpo.report.unlearning import number

MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "undecided": ("~", "yellow"), "no power": ("?", "dim")}
INTERVALS_UP_TO = 3  # models; more columns leave no room


def print_audit(audit: dict[str, Any], path: Path, report: Path) -> None:
    """Verdict lines, warnings and conditions of an ``audit.json``, and where everything lies."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(_verdicts(audit))
    for model in audit["models"]:
        for warning in model["warnings"]:
            console.print(Text(f"warning: {warning}", "yellow"))
    if audit["requirements"]:
        print_tables({"required": _conditions(audit)}, console=console)
    console.print(f"report: {report}, numbers: {path}, rows: {path.parent / 'models'}", highlight=False, soft_wrap=True)


def _verdicts(audit: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    models = audit["models"]
    table = Table(title="negpo audit: ✓ pass, ✗ fail, ~ undecided, ? no power")
    for name in ("line", *(model["label"] for model in models), "retain", "target"):
        table.add_column(name, no_wrap=name == "line")
    for group in models[0]["groups"]:
        lines = lines_of(audit, group)
        for line in lines:
            twins = (twin_of(model, line["metric"]) for model in models)
            cells = [_cell(twin, intervals=len(models) <= INTERVALS_UP_TO) for twin in twins]
            controls = (number(float(line[name]["value"])) for name in ("retain", "target"))
            table.add_row(line["metric"], *cells, *controls, end_section=line is lines[-1])
    for group in models[0]["groups"]:
        counts = [model["groups"][group] for model in models]
        if any(sum(one.values()) for one in counts):
            cells = [" ".join(f"{MARKS[name][0]}{count}" for name, count in one.items() if count) for one in counts]
            table.add_row(Text(group, "bold"), *(Text(text, "bold") for text in cells), "", "")
    return table


def _cell(line: dict[str, Any] | None, *, intervals: bool) -> Any:
    from rich.text import Text

    if line is None:
        return Text("–", "dim")
    mark, style = MARKS[line["outcome"]]
    values = [number(float(line[name])) for name in ("value", "low", "high")]
    return Text(f"{mark} {values[0]}" + (f" [{values[1]}, {values[2]}]" if intervals else ""), style)


def _conditions(audit: dict[str, Any]) -> Table:
    rows = []
    for one in audit["requirements"]:
        end = ("met", "", "good") if one["met"] else ("not met", "", "bad")
        value, bound = (f"{float(one[name]):.4g}" for name in ("value", "bound"))
        rows.append([Cell(one["model"]), Cell(one["requirement"]), Cell(value), Cell(bound), Cell(*end)])
    return Table(["model", "condition", "value", "bound", ""], rows)
