"""The report of an unlearning experiment: findings, pictures, tables, examples, and how to repeat it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from negpo.report import figures
from negpo.report._base import (
    Card,
    Cards,
    Cell,
    Fold,
    Section,
    Table,
    Text,
    print_cards,
    print_tables,
    render_sections,
    settings_table,
    text_rows,
)
from negpo.report.results import Experiment, RunResult, load_experiments
from negpo.report.verdict import FORGOTTEN, KEPT, equal_forgetting, judge, spread

FOOTER = "Made by negpo; metrics as in TOFU (arXiv 2401.06121). Every number above is in the result folder."
SHOWN_COLUMNS = 8  # in the terminal; the rest stands in the HTML report
# (metric, column, decimals, note): the second line of a head is the direction
COLUMNS = [
    ("forget_truth_ratio", "forget truth ratio"),
    ("forget_Q_A_Prob", "forget probability"),
    ("forget_Q_A_ROUGE", "forget ROUGE-L"),
    ("extraction_strength", "extraction strength"),
    ("mia_min_k", "MIA AUC (Min-K)"),
    ("privleak", "PrivLeak"),
    ("retain_Q_A_Prob", "retain probability"),
    ("retain_Q_A_ROUGE", "retain ROUGE-L"),
]


def render(folder: Path, path: Path) -> Path:
    """Read `folder`, write the report to `path`; returns the path."""
    experiments, demo = load_experiments(folder)
    first = experiments[0]
    size = first.target.manifest.get("parameters", 0)
    seeds = ", ".join(str(one.seed) for one in experiments)
    subtitle = f"{demo.get('forget', 'the forget set')}, {size / 1e6:.2f} million parameters, "
    subtitle += f"seed{'s' if len(experiments) > 1 else ''} {seeds}"
    configs = {run.title: run.config for run in first.runs if run.config}
    repeat = [
        Text("pre", "\n".join(lines)) if (lines := commands(first, demo)) else None,
        *([Text("heading", "Settings"), settings_table(configs)] if configs else []),
        Fold("Seconds", [timings_table(experiments, demo)]),
        Fold("Versions and hashes", [Text("pre", "\n".join(manifest_lines(first, demo)))]),
    ]
    pictures = (figures.likelihood(experiments), figures.weights(experiments), figures.utility(experiments))
    answered = [Fold(run.title, [answers(first.target, run)], open=not i) for i, run in enumerate(first.runs)]
    sections = [
        Section("Findings", "findings", [Cards(findings(experiments))]),
        Section("Forgetting against utility", "pareto", [figures.pareto(experiments)]),
        Section("Along training", "training", pictures),
        Section("All numbers at the end of training", "numbers", [metrics_table(experiments)]),
        *([Section("Trials", "trials", [trials_table(demo)])] if demo.get("trials") else []),
        Section("Equal forgetting", "equal", [figures.equal_forgetting(experiments), equal_table(experiments)]),
        Section("Answers before and after", "answers", answered),
        Section("How to repeat it", "repeat", repeat),
    ]
    return render_sections(path, "What unlearning did to a model", subtitle, sections, FOOTER)


def print_summary(folder: Path, report: Path) -> None:
    """Findings and main numbers of the results in `folder`, and where the report is."""
    experiments, _ = load_experiments(folder)
    print_tables({"unlearning": metrics_table(experiments)}, columns=SHOWN_COLUMNS)
    print_tables({"utility at equal forgetting": equal_table(experiments)})
    print_cards([Card(card.title, card.headline, card.tone) for card in findings(experiments)], report)


def findings(experiments: Sequence[Experiment]) -> list[Card]:
    """One card per run: the verdict of the first seed, and how many seeds share it."""
    cards = []
    for run in experiments[0].runs:
        verdicts = [judge(one, other) for one, other in twins(experiments, run.name)]
        same = sum(verdict.tone == verdicts[0].tone for verdict in verdicts)
        agreement = f" The same on {same} of {len(verdicts)} seeds." if len(verdicts) > 1 else ""
        cards.append(Card(run.title, verdicts[0].headline, verdicts[0].tone, [verdicts[0].why + agreement]))
    return cards


def twins(experiments: Sequence[Experiment], name: str) -> list[tuple[Experiment, RunResult]]:
    """The run called `name` in every experiment that has it."""
    return [(one, run) for one in experiments for run in one.runs if run.name == name]


def number(value: float) -> str:
    """Two digits after the point, two significant ones below 0.1, scientific below 0.001."""
    if math.isnan(value):
        return "–"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.0e}"
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def cell(values: Sequence[float], tone: str = "") -> Cell:
    """Mean over seeds, with smallest and largest below it when there are several."""
    mean, low, high = spread(values)
    note = f"{number(low)} … {number(high)}" if len(values) > 1 and not math.isnan(mean) else ""
    return Cell(number(mean), note, tone)


def metrics_table(experiments: Sequence[Experiment]) -> Table:
    """All models in rows, target and retain model first."""
    header = ["model", "forget quality", "KS distance", "model utility", *(title for _, title in COLUMNS)]
    rows = [_metrics_row("target (before)", [one.target for one in experiments])]
    if retains := [one.retain for one in experiments if one.retain is not None]:
        rows.append(_metrics_row("retain model (the goal)", retains))
    start = spread([one.start.utility for one in experiments])[0]
    for run in experiments[0].runs:
        rows.append(_metrics_row(run.title, [other for _, other in twins(experiments, run.name)], start))
    caption = (
        "Forget quality: p-value of a KS test between truth ratios of the model and of the retain model; above "
        f"{FORGOTTEN} they are indistinguishable. Utility is green from {KEPT:.0%} of the target's. The goal of the "
        "other forget columns is the retain model's value, not zero: an MIA AUC far below it means that "
        "the answers have become conspicuously unlikely. PrivLeak is 0 at the retain model's AUC, negative while the "
        "model leaks."
    )
    return Table(header, rows, caption)


def trials_table(demo: dict[str, Any]) -> Table:
    """Every trial that a learning rate was chosen from; the chosen one is marked."""
    rows = []
    for trial in demo["trials"]:
        chosen = demo["chosen"].get(trial["method"]) == trial["learning_rate"]
        values = [trial["forget_quality"], trial["model_utility"], trial["forget_Q_A_Prob"]]
        rate = Cell(f"{trial['learning_rate']:g}", "chosen" if chosen else "", "good" if chosen else "")
        rows.append([Cell(trial["method"]), rate, *(Cell(number(value)) for value in values)])
    seeds = ", ".join(map(str, demo["tuning_seeds"]))
    caption = (
        f"On another forget set (seed {seeds}), the same number of trials and steps for every method. Chosen: the "
        "highest forget quality among trials that keep 85 % of the target's utility, else the highest utility."
    )
    return Table(["method", "learning rate", "forget quality", "model utility", "forget probability"], rows, caption)


def _metrics_row(title: str, runs: Sequence[RunResult], start: float | None = None) -> list[Cell]:
    points = [run.last for run in runs]
    quality, utility = [point.forget_quality for point in points], [point.utility for point in points]
    distance = [point.details.get("forget_quality", {}).get("statistic", math.nan) for point in points]
    quality_tone = utility_tone = ""
    if start is not None:
        quality_tone = "good" if min(quality) > FORGOTTEN else "bad"
        utility_tone = "good" if min(utility) >= KEPT * start else "bad"
    cells = [Cell(title), cell(quality, quality_tone), cell(distance), cell(utility, utility_tone)]
    return cells + [cell([point.metrics.get(name, math.nan) for point in points]) for name, _ in COLUMNS]


def equal_table(experiments: Sequence[Experiment]) -> Table:
    """Utility of every run at the moment it has forgotten as much as the retain model never knew."""
    measures = list(equal_forgetting(experiments[0], experiments[0].runs[0]))
    rows = []
    for run in experiments[0].runs:
        found = [equal_forgetting(one, other) for one, other in twins(experiments, run.name)]
        rows.append([Cell(run.title), *(_reached([values[measure] for values in found]) for measure in measures)])
    caption = (
        "Model utility at the first moment of the run at which the forget answers are as improbable, as little "
        "reproduced or as little extractable as with the retain model, or forget quality reaches 0.05. Compare runs "
        "with retain data with each other, and runs without."
    )
    return Table(["run", *(f"utility at equal {measure}" for measure in measures)], rows, caption)


def _reached(values: Sequence[float | None]) -> Cell:
    reached = [value for value in values if value is not None]
    if not reached:
        return Cell("not reached")
    found = cell(reached)
    missed = len(values) - len(reached)
    notes = [found.note, f"{missed} not reached" if missed else ""]
    return Cell(found.text, "; ".join(filter(None, notes)))


def answers(target: RunResult, run: RunResult) -> Table:
    """A few questions with the true answer, the target's and the run's. Plain text: the template escapes it."""
    before = {row["question"]: row["generation"] for row in target.examples}
    columns = [[row[field] for row in run.examples] for field in ("set", "question", "answer", "generation")]
    columns[0] = [name.replace("_", " ") for name in columns[0]]
    columns.insert(3, [before.get(question, "–") for question in columns[1]])
    return Table(["set", "question", "true answer", "before", "after"], text_rows(*columns))


def commands(experiment: Experiment, demo: dict[str, Any]) -> list[str]:
    """Shell lines that repeat the experiment."""
    lines = [demo["command"]] if "command" in demo else []
    return lines + [shlex.join(run.command) for run in experiment.runs if run.command]


def timings_table(experiments: Sequence[Experiment], demo: dict[str, Any]) -> Table:
    """Wall-clock seconds of every part."""
    rows = [[Cell(name), cell([float(value)])] for name, value in demo.get("seconds", {}).items()]
    parts: dict[str, Callable[[RunResult], float]] = {
        "training": lambda run: run.seconds.get("training", math.nan),
        "evaluation": lambda run: run.seconds.get("evaluation", math.nan),
    }
    for run in experiments[0].runs:
        for part, value in parts.items():
            seconds = [value(other) for _, other in twins(experiments, run.name)]
            if not any(math.isnan(second) for second in seconds):
                rows.append([Cell(f"{run.title}: {part}"), cell(seconds)])
    return Table(["part", "seconds"], rows)


def manifest_lines(experiment: Experiment, demo: dict[str, Any]) -> list[str]:
    """Versions, hashes and seeds as `key: value` lines."""
    manifest = experiment.target.manifest
    lines = [f"{key}: {value}" for key, value in demo.items() if key in ("seeds", "forget", "size", "every", "labs")]
    lines += [f"{name}: {version}" for name, version in manifest.get("versions", {}).items()]
    lines += [
        f"target {key}: {manifest[key]}" for key in ("model_sha256", "tokenizer_sha256", "dtype") if key in manifest
    ]
    for run in experiment.runs:
        lines.append(f"{run.name} model_sha256: {run.manifest.get('model_sha256', '–')}")
    return lines
