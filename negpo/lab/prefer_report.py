"""The report of `negpo demo prefer`: claims, curves, tables, answers, and how to repeat it; and its short version."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from negpo.lab import prefer_figures as figures
from negpo.lab.claims import parts_table, print_claims
from negpo.lab.dispreference_lab import IMPOLITE, POLITE
from negpo.lab.prefer_claims import claims
from negpo.lab.prefer_results import Method, level, load_methods
from negpo.lab.prefer_runs import DISPREFER, DISTILL
from negpo.report._base import (
    Cards,
    Cell,
    Fold,
    Section,
    Table,
    Text,
    interval_cell,
    print_tables,
    render_sections,
    settings_table,
    text_rows,
)

FOOTER = "Made by negpo; REDI: arXiv 2505.24850, D2O: arXiv 2403.03419. Every number above is in the result folder."


def render_prefer(folder: Path, path: Path) -> Path:
    """Read the finished demo in `folder` and write its page to `path`; returns the path."""
    methods, demo = load_methods(folder)
    everything = list(methods.values())
    distill, disprefer = ([one for one in everything if one.part == part] for part in (DISTILL, DISPREFER))
    found = claims(methods)
    lines = [demo["command"], *(shlex.join(method.runs[0]["command"]) for method in everything)]
    seconds = [f"{part}: {value:.0f} s" for part, value in demo["seconds"].items()]
    sections = [
        Section("Claims", "claims", [Cards([claim.card for claim in found]), parts_table(found)]),
        Section("Distillation: right and wrong traces of a stronger teacher", "distill", _distill(distill)),
        Section("Dispreference: unlearning a harmful style from negatives", "disprefer", _disprefer(disprefer)),
        Section(
            "Answers before and after",
            "answers",
            [Fold(method.title, [answers_table(method)], open=not i) for i, method in enumerate(everything)],
        ),
        Section(
            "How to repeat it",
            "repeat",
            [
                Text("pre", "\n".join(lines)),
                Text("heading", "Settings"),
                settings_table({method.title: method.runs[0]["config"] for method in everything}),
                Text("pre", "\n".join(seconds)),
            ],
        ),
    ]
    subtitle = f"two labs, seed{'s' if len(demo['seeds']) > 1 else ''} {', '.join(map(str, demo['seeds']))}"
    return render_sections(path, "Learning from rejected answers", subtitle, sections, FOOTER)


def _distill(methods: Sequence[Method]) -> list[Any]:
    if not methods:
        return []
    references = {name: _reference(methods[0], name) for name in ("teacher", "start")}
    pictures = [figures.accuracy_curves(methods, references), figures.log_probs(methods), figures.degeneration(methods)]
    sets = [Text("heading", "What the traces became"), sets_table(methods[0])]
    return [*pictures, distill_table(methods), *sets]


def _disprefer(methods: Sequence[Method]) -> list[Any]:
    return [figures.harm_curves(methods), figures.trade_off(methods), harm_table(methods)] if methods else []


def _reference(method: Method, name: str) -> float:
    """Accuracy of `teacher`, `start` or `student`, mean over seeds."""
    found = [run["lab"]["references"][name] for run in method.runs]
    return fmean(fmean(item["right"]) / item["samples"] for item in found)


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
                interval_cell(level(method.table("right"))),
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
    cells = [interval_cell(level(method.table(name, place, group))) for name, group in wanted]
    return [Cell(title), *cells, Cell(f"{method.mean('unanswered', place):.1%}")]


def answers_table(method: Method) -> Table:
    """One sampled answer to a few questions, before and after. Plain text: the template escapes it."""
    run = method.runs[0]
    asked = [question["prompt"] for question in run["questions"][:: max(1, len(run["questions"]) // 8)]]
    before, after = (run["points"][place]["examples"] for place in (0, -1))
    return Table(["question", "before", "after"], text_rows(asked, before, after))


def print_prefer(folder: Path, report: Path) -> None:
    """Main tables and claims of the demo in `folder`, and where the report is."""
    methods, _ = load_methods(folder)
    for title, part, table in (("distillation", DISTILL, distill_table), ("dispreference", DISPREFER, harm_table)):
        if members := [method for method in methods.values() if method.part == part]:
            print_tables({title: table(members)})
    print_claims(claims(methods), report)
