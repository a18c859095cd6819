"""Self-contained HTML reports."""

from __future__ import annotations

from pathlib import Path


def render_report(results: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of an unlearning result folder (see `negpo.report.results`); default: `results/report.html`."""
    from negpo.report.unlearning import render

    return render(Path(results), Path(path) if path is not None else Path(results) / "report.html")


__all__ = ["render_report"]
