"""A sweep's leaderboard as HTML, CSV, Markdown, and in the format of open-unlearning's community leaderboard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment

from negpo.data.io import atomic_write

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Unlearning leaderboard</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}.low{color:#777}.sig{background:#dff0d8}</style>
<h1>Unlearning at matched utility</h1>
<p>{{ board.trials }} settings a method, {{ board.steps }} steps of {{ board.batch }} forget rows each, seeds
{{ board.seeds|join(', ') }}{% if board.missing_seeds %} (not finished: {{ board.missing_seeds|join(', ') }}){% endif %}.
Settings were chosen on validation authors; every number below is on the other authors.</p>
<p>Forgetting: harmonic mean of 1 &minus; extraction strength, 1 &minus; exact memorisation, 1 &minus; paraphrase
probability and 1 &minus; truth ratio; larger is less memorised. Retain model {{ '%.3f'|format(board.references.retain.value)
if board.references.retain else 'not given' }}, target {{ '%.3f'|format(board.references.target.value) }}. Intervals: 95 %,
bootstrap over seeds and rows.</p>
{% for level in levels %}<h2>At least {{ '%.0f'|format(level|float * 100) }} % of the target's utility</h2><table>
<tr><th>method<th>by checkpoints<th>interval<th>by mixing<th>settings of each seed</tr>
{% for name, entry in ranked[level] %}<tr><td>{{ name }}<td>{{ '%.3f'|format(entry.levels[level].value) }}
<td>{{ '%.3f'|format(entry.levels[level].low) }} to {{ '%.3f'|format(entry.levels[level].high) }}
<td>{{ '%.3f'|format(entry.levels[level].mixing) if entry.levels[level].mixing is not none else '–' }}
<td class="low">{% for seed, found in entry.seeds.items() %}{{ found.checkpoints[level].settings }} at
{{ '%.0f'|format(found.checkpoints[level].step) }}{{ '; ' if not loop.last }}{% endfor %}</tr>
{% endfor %}</table>
<table><tr><th>p, Holm{% for name, _ in ranked[level] %}<th>{{ name }}{% endfor %}</tr>
{% for name, _ in ranked[level] %}<tr><td>{{ name }}{% for other, _ in ranked[level] %}
<td{% if board.significance[level][name].get(other, 1) < 0.05 %} class="sig"{% endif %}>{{
'%.2f'|format(board.significance[level][name][other]) if other in board.significance[level][name] else '' }}{% endfor %}</tr>
{% endfor %}</table>{% endfor %}</html>"""  # noqa: E501


def ranked(board: dict[str, Any], level: str) -> list[tuple[str, dict[str, Any]]]:
    """Methods by their forgetting at a level, best first."""
    return sorted(board["methods"].items(), key=lambda item: -item[1]["levels"][level]["value"])


def to_html(board: dict[str, Any]) -> str:
    levels = [str(level) for level in board["levels"]]
    page = Environment(autoescape=True).from_string(PAGE)
    return page.render(board=board, levels=levels, ranked={level: ranked(board, level) for level in levels})


def to_csv(board: dict[str, Any]) -> str:
    """One line per method, seed, level and definition."""
    names = (
        "method", "seed", "level", "definition", "trial", "step", "utility", "validation", "report",
        "extraction_strength",
        "exact_memorization", "paraphrase_probability", "knows_truth", "forget_quality", "mixing_ratio",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for method, entry in board["methods"].items():
        for seed, found in entry["seeds"].items():
            for definition in ("checkpoints", "mixing"):
                for level, place in found[definition].items():
                    more = {"mixing_ratio": place["ratio"]} if "ratio" in place else {}
                    key = {"method": method, "seed": seed, "level": level, "definition": definition}
                    writer.writerow({**key, **place, **more})
    return text.getvalue()


def to_markdown(board: dict[str, Any]) -> str:
    """The table of the documentation."""
    levels = [str(level) for level in board["levels"]]
    head = ["method", *(f"at {float(level):.0%}" for level in levels), "by mixing, at " + f"{float(levels[0]):.0%}"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, entry in ranked(board, levels[0]):
        cells = [f"{e['value']:.2f} ({e['low']:.2f} to {e['high']:.2f})" for e in (entry["levels"][x] for x in levels)]
        mixing = entry["levels"][levels[0]]["mixing"]
        lines.append(f"| {name} | {' | '.join(cells)} | {'–' if mixing is None else f'{mixing:.2f}'} |")
    for name, entry in board.get("references", {}).items():
        value = f"{entry['value']:.2f}"
        lines.append(f"| {name} model | {' | '.join([value] * len(levels))} | |")
    return "\n".join(lines) + "\n"


def to_open_unlearning(board: dict[str, Any]) -> str:
    """Rows as open-unlearning's community leaderboard has them: method, forget quality, model utility.

    Forget quality here is on the report half of the forget set, and utility has no ROUGE (six of nine numbers): the
    column heads say so, because its own rows are neither.
    """
    level = str(board["levels"][0])
    lines = [
        "| Method | forget_quality (report half) | model_utility (6 of 9, share of target) |",
        "|---|---|---|",
    ]
    for name, entry in ranked(board, level):
        places = [found["checkpoints"][level] for found in entry["seeds"].values()]
        quality = [place["forget_quality"] for place in places if "forget_quality" in place]
        shown = f"{sum(quality) / len(quality):.2e}" if quality else "–"
        lines.append(f"| {name} | {shown} | {sum(place['utility'] for place in places) / len(places):.2f} |")
    return "\n".join(lines) + "\n"


def write_leaderboard(board: dict[str, Any], out: str | Path) -> list[Path]:
    """leaderboard.html, .csv, .md and open_unlearning.md beside leaderboard.json."""
    if not board["methods"]:
        return []
    makers = {
        "leaderboard.html": to_html,
        "leaderboard.csv": to_csv,
        "leaderboard.md": to_markdown,
        "open_unlearning.md": to_open_unlearning,
    }
    for name, make in makers.items():
        atomic_write(Path(out) / name, make(board))
    return [Path(out) / name for name in makers]
