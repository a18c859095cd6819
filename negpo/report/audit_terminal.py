"""The short version of an audit for the terminal: verdict lines of all models side by side, and unmet conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKS = {True: ("pass", "green"), False: ("fail", "red"), None: ("–", "dim")}


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
        console.print(_conditions(audit))
    console.print(f"report: {report}, numbers: {path}, rows: {path.parent / 'models'}", highlight=False, soft_wrap=True)


def _verdicts(audit: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    models = audit["models"]
    table = Table("line", *(model["label"] for model in models), "retain model", "target", title="negpo audit")
    for line in models[0]["lines"]:
        twins = [next(one for one in model["lines"] if one["metric"] == line["metric"]) for model in models]
        cells = []
        for twin in twins:
            mark, style = MARKS[twin["passed"]]
            cells.append(
                Text(f"{mark} {float(twin['value']):.3g} [{float(twin['low']):.3g}, {float(twin['high']):.3g}]", style)
            )
        controls = (f"{float(line[name]['value']):.3g}" for name in ("retain", "target"))
        table.add_row(line["title"], *cells, *controls)
    return table


def _conditions(audit: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "condition", "value", "bound", "", title="required")
    for outcome in audit["requirements"]:
        mark, style = ("met", "green") if outcome["met"] else ("not met", "red")
        value, bound = f"{float(outcome['value']):.4g}", f"{float(outcome['bound']):.4g}"
        table.add_row(outcome["model"], Text(outcome["requirement"]), value, bound, Text(mark, style))
    return table
