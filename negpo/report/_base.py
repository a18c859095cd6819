"""What every report shares: one HTML file without external parts, pictures inside it, everything escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.data.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe-Ito), in the order in which methods are drawn.
COLORS = ("#D55E00", "#CC79A7", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#7F3C8D", "#666666")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
DPI = 150


@dataclass(frozen=True)
class Cell:
    """One table cell: what it shows, a note below it, and whether it is good, bad or neither."""

    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table of `Cell`s; `caption` explains the columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, its alternative text and the sentence below it."""

    uri: str
    alt: str
    caption: str = ""


@dataclass
class Page:
    """Head of a report; `links` are (title, anchor) of its sections."""

    title: str
    subtitle: str
    links: list[tuple[str, str]] = field(default_factory=list)


def new_figure(columns: int = 1, width: float = 7.2, height: float = 4.4) -> tuple[Figure, Any]:
    """An empty figure with `columns` axes in the reports' look; no display is needed or touched."""
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for axis in [axes] if columns == 1 else axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E6E8EC", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def as_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """Render `figure` to PNG inside a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), alt, caption)


def render_page(template: str, path: str | Path, **context: Any) -> Path:
    """Fill `negpo/report/<template>` (autoescaped) and write it in one piece; returns the path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty spot in a report
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = Path(path)
    atomic_write(path, environment.get_template(template).render(**context))
    return path
