"""What every report shares: one HTML file without external parts, pictures inside it, everything escaped.

A page is a list of sections, a section a list of blocks: `Cards`, `Table`, `Picture`, `Text`, `Fold`. `page.html` knows
how to show them, so a report only says what there is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from negpo.data.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from negpo.eval.bootstrap import Interval

# Colour-blind safe (Okabe-Ito), in the order in which methods are drawn.
COLORS = ("#D55E00", "#CC79A7", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#7F3C8D", "#666666")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
DPI = 150
TONES = {"good": "green", "bad": "red", "warn": "yellow", "": "default"}  # in a terminal


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
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, its alternative text and the sentence below it."""

    uri: str
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Card:
    """One finding: what it is about, how it came out (good, bad, warn), and why."""

    title: str
    headline: str
    tone: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Findings side by side."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Text:
    """A `heading`, a `note`, or lines as they are (`pre`)."""

    style: str
    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line to click on."""

    title: str
    blocks: Sequence[Any]
    open: bool = False
    kind: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Section:
    """Part of a page with its own link; blocks that are None are left out. `fixed`: columns of tables equally wide."""

    title: str
    anchor: str
    blocks: Sequence[Any]
    fixed: bool = False


# ---- tables ----------------------------------------------------------------------------------------------------------


def interval_cell(found: Interval, form: str = "{:.3f}", tone: str = "") -> Cell:
    """Value, and the interval below it."""
    return Cell(form.format(found.value), f"{form.format(found.low)} to {form.format(found.high)}", tone)


def settings_table(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Settings by title of the run, one column each; rows where nothing was set are left out."""
    rows = []
    for name in dict.fromkeys(name for config in configs.values() for name in config):
        values = [config.get(name) for config in configs.values()]
        if any(value not in (None, "", [], {}) for value in values):
            rows.append([Cell(name), *(Cell("–" if value is None else str(value)) for value in values)])
    return Table(["setting", *configs], rows)


def text_rows(*columns: Sequence[str]) -> list[list[Cell]]:
    """Rows of what people and models said; an empty answer is shown as such. The template escapes it."""
    return [[Cell(text or "(nothing)") for text in row] for row in zip(*columns, strict=True)]


def print_tables(tables: Mapping[str, Table], *, columns: int | None = None, console: Any = None) -> None:
    """Tables by title on the terminal, the first `columns` of each."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    console = console or Console()
    for title, content in tables.items():
        table = RichTable(*content.header[:columns], title=title, title_justify="left", padding=(0, 0))
        for row in content.rows:
            lines = [RichText(cell.text + (f"\n{cell.note}" if cell.note else ""), TONES[cell.tone]) for cell in row]
            table.add_row(*lines[:columns])
        console.print(table)


def print_cards(cards: Sequence[Card], report: Path) -> None:
    """Findings on the terminal, and where the report is."""
    from rich.console import Console
    from rich.text import Text as RichText

    console = Console()
    for card in cards:
        console.print(RichText(f"{card.title}: ", "bold").append(f"{card.headline}.", TONES[card.tone]))
        for note in card.notes:
            console.print(f"  {note}", soft_wrap=True, highlight=False)
    console.print(f"report: {report}", soft_wrap=True)


# ---- pictures --------------------------------------------------------------------------------------------------------


def style(index: int) -> dict[str, Any]:
    """Colour and marker of method number `index`."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def new_figure(columns: int = 1, width: float = 7.2, height: float = 4.4, rows: int = 1) -> tuple[Figure, Any]:
    """An empty figure in the reports' look with one axis, or an array of them; no display is needed or touched."""
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E6E8EC", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[0] if len(axes) == 1 else axes


def line_with_band(axis: Any, x: Sequence[float], band: Sequence[Any], look: Mapping[str, Any], label: str) -> None:
    """A curve and the band around it in the same colour; `band`: curve, lower and upper end."""
    line, low, high = band
    axis.plot(x, line, **{"ms": 4, "lw": 1.4, **look}, label=label)
    axis.fill_between(x, low, high, color=look["color"], alpha=0.13, lw=0)


def draw_estimates(
    axis: Any, x: Sequence[float], found: Sequence[Interval], look: Mapping[str, Any], label: str
) -> None:
    """A curve of estimates with their intervals as a band."""
    band = [[getattr(one, name) for one in found] for name in ("value", "low", "high")]
    line_with_band(axis, x, band, look, label)


def outside_legend(axis: Any) -> None:
    """The legend right of the axis."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def as_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """Render `figure` to PNG inside a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Picture("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), alt, caption)


# ---- pages -----------------------------------------------------------------------------------------------------------


def render_sections(path: str | Path, title: str, subtitle: str, sections: Sequence[Section], footer: str) -> Path:
    """Write a page of sections (autoescaped, in one piece); those without a block are left out. Returns the path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty spot in a report
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kept = [section for section in sections if any(block is not None for block in section.blocks)]
    content = {"title": title, "subtitle": subtitle, "sections": kept, "footer": footer}
    return atomic_write(path, environment.get_template("page.html").render(**content))
