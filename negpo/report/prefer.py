"""The report of `negpo demo prefer`: claims, curves, tables, answers, and how to repeat it; and its short version."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from negpo.eval.passk import Interval
from negpo.lab.dispreference_lab import IMPOLITE, POLITE
from negpo.lab.prefer_runs import DISPREFER, DISTILL
from negpo.report import prefer_figures as figures
from negpo.report._base import Cell, Page, Table, render_page
from negpo.report.prefer_claims import claims
from negpo.report.prefer_results import Method, level, load_methods

SECTIONS = [
    ("Claims", "claims"),
    ("Distillation", "distill"),
    ("Dispreference", "disprefer"),
    ("Answers", "answers"),
    ("How to repeat it", "repeat"),
]
TONES = {"good": "green", "bad": "red", "warn": "yellow", "": "default"}


def render_prefer(folder: Path, path: Path) -> Path:
    """Read the finished demo in `folder` and write its page to `path`; returns the path."""
    methods, demo = load_methods(folder)
    seeds = ", ".join(map(str, demo["seeds"]))
    distill = [method for method in methods.values() if method.part == DISTILL]
    disprefer = [method for method in methods.values() if method.part == DISPREFER]
    page = Page("Learning from rejected answers", f"two labs, seed{'s' if len(demo['seeds']) > 1 else ''} {seeds}")
    page.links = SECTIONS
    return render_page(
        "prefer.html",
        path,
        page=page,
        claims=claims(methods),
        distill=_distill(distill) if distill else None,
        disprefer=_disprefer(disprefer) if disprefer else None,
        answers=[(method.title, answers_table(method)) for method in methods.values()],
        commands=[demo["command"], *(shlex.join(method.runs[0]["command"]) for method in methods.values())],
        settings=settings_table(list(methods.values())),
        seconds=[f"{part}: {value:.0f} s" for part, value in demo["seconds"].items()],
    )


def _distill(methods: Sequence[Method]) -> dict[str, Any]:
    pictures = [
        figures.accuracy_curves(methods, {name: _reference(methods[0], name) for name in ("teacher", "start")}),
        figures.log_probs(methods),
        figures.degeneration(methods),
    ]
    return {"pictures": pictures, "table": distill_table(methods), "sets": sets_table(methods[0])}


def _disprefer(methods: Sequence[Method]) -> dict[str, Any]:
    return {"pictures": [figures.harm_curves(methods), figures.trade_off(methods)], "table": harm_table(methods)}


def _reference(method: Method, name: str) -> float:
    """Accuracy of `teacher`, `start` or `student`, mean over seeds."""
    found = [run["lab"]["references"][name] for run in method.runs]
    return fmean(fmean(item["right"]) / item["samples"] for item in found)


def _cell(found: Interval, digits: int = 3, tone: str = "") -> Cell:
    return Cell(f"{found.value:.{digits}f}", f"{found.low:.{digits}f} to {found.high:.{digits}f}", tone)


def distill_table(methods: Sequence[Method]) -> Table:
    """Accuracy at the end with its interval, pass@n, log-probs of both signs, lengths and degeneration."""
    header = ["model", "accuracy (avg@n)", "pass@n", "chosen log-prob", "rejected log-prob", "tokens", "no result"]
    rows = []
    for name, title in (("teacher", "teacher"), ("start", "student before stage 1"), ("student", "after stage 1")):
        rows.append([Cell(title), Cell(f"{_reference(methods[0], name):.3f}"), *[Cell("")] * (len(header) - 2)])
    for method in methods:
        rows.append(
            [
                Cell(method.title),
                _cell(level(method.table("right"))),
                Cell(f"{_solved(method):.3f}"),
                *(_moved(method, f"{name}/logp") for name in ("chosen", "rejected")),
                Cell(f"{method.mean('tokens'):.0f}"),
                Cell(f"{method.mean('unanswered'):.1%}"),
            ]
        )
    caption = (
        "At the end of training (not at the best point). Small print: 95 % interval over seeds, questions and samples; "
        "for log-probs per token the first step of training."
    )
    return Table(header, rows, caption)


def _solved(method: Method) -> float:
    """Share of questions with at least one right answer (pass@n)."""
    return float((method.table("right").values > 0).mean())


def _moved(method: Method, name: str) -> Cell:
    logged = method.logged(name)
    if logged is None:
        return Cell("–")
    return Cell(f"{logged[1][:, -1].mean():.2f}", f"from {logged[1][:, 0].mean():.2f}")


def sets_table(method: Method) -> Table:
    """What the builder of `negpo data redi` made of the teacher's traces, by seed."""
    found = [run["lab"]["sets"] for run in method.runs]
    names = dict.fromkeys(name for counts in found for name in counts)
    rows = [[Cell(name), *(Cell(str(counts.get(name, 0))) for counts in found)] for name in names]
    return Table(["training sets", *(f"seed {run['seed']}" for run in method.runs)], rows)


def harm_table(methods: Sequence[Method]) -> Table:
    """Harm rate, helpfulness and divergence at the end, and the reference itself in the first row."""
    header = ["model", "harm rate", "right, polite", "right, impolite", "KL, polite", "KL, impolite", "no result"]
    rows = [_harm_row("reference", methods[0], 0)] + [_harm_row(method.title, method, -1) for method in methods]
    caption = (
        "Harm rate on impolite questions. KL(reference || model) in nats per token of the reference's answers; on "
        "impolite questions it must grow when harm goes. Small print: 95 % over seeds, questions and samples."
    )
    return Table(header, rows, caption)


def _harm_row(title: str, method: Method, place: int) -> list[Cell]:
    wanted = [("harmful", IMPOLITE), ("right", POLITE), ("right", IMPOLITE), ("kl", POLITE), ("kl", IMPOLITE)]
    cells = [_cell(level(method.table(name, place, group))) for name, group in wanted]
    return [Cell(title), *cells, Cell(f"{method.mean('unanswered', place):.1%}")]


def answers_table(method: Method) -> Table:
    """One sampled answer to a few questions, before and after. Plain text: the template escapes it."""
    run = method.runs[0]
    before, after = (run["points"][place]["examples"] for place in (0, -1))
    stride = max(1, len(run["questions"]) // 8)
    asked = [question["prompt"] for question in run["questions"][::stride]]
    rows = [
        [Cell(question), Cell(old), Cell(new or "(nothing)")]
        for question, old, new in zip(asked, before, after, strict=True)
    ]
    return Table(["question", "before", "after"], rows)


def settings_table(methods: Sequence[Method]) -> Table:
    """Settings of every run, one column per run; rows where nothing was set are left out."""
    configs = [method.runs[0]["config"] for method in methods]
    rows = []
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(name) for config in configs]
        if any(value not in (None, "", [], {}) for value in values):
            rows.append([Cell(name), *(Cell("–" if value is None else str(value)) for value in values)])
    return Table(["setting", *(method.title for method in methods)], rows)


def print_prefer(folder: Path, report: Path) -> None:
    """Main tables and claims of the demo in `folder`, and where the report is."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    methods, _ = load_methods(folder)
    console = Console()
    tables = []
    if distill := [method for method in methods.values() if method.part == DISTILL]:
        tables.append(("distillation", distill_table(distill)))
    if disprefer := [method for method in methods.values() if method.part == DISPREFER]:
        tables.append(("dispreference", harm_table(disprefer)))
    for title, content in tables:
        table = RichTable(*content.header, title=title, title_justify="left")
        for row in content.rows:
            table.add_row(*(cell.text + (f"\n{cell.note}" if cell.note else "") for cell in row))
        console.print(table)
    for claim in claims(methods):
        verdict = Text(f"{claim.headline}. ", TONES[claim.tone])
        console.print(Text(f"{claim.title}: ", "bold").append_text(verdict).append(claim.why))
    console.print(f"report: {report}", soft_wrap=True)
