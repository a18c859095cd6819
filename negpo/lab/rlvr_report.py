"""The report of `negpo demo rlvr`: claims with verdicts, pass@k curves, training curves, mismatch, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negpo.eval.bootstrap import estimate
from negpo.lab.claims import Claim, parts_table
from negpo.lab.rlvr_estimates import (
    BASE,
    SMOOTHED,
    Results,
    all_wrong_shares,
    curve,
    distinct_values,
    drop_values,
    entropy,
    smoothed,
)
from negpo.report import _base as page
from negpo.report._base import Cell, Picture, Section, Table, Text, as_picture, interval_cell, new_figure

SIGNED = ("psr", "nsr", "w_reinforce", "topr")  # drawn apart from the group-normalised methods


def render_rlvr_report(results: Results, found: Sequence[Claim], path: Path, *, command: str) -> Path:
    """Write the page; returns its path."""
    seeds, base = list(results.seeds), results.runs(BASE)[0]
    runs = [results.runs(name)[0] for name in results.names if name != BASE]
    subtitle = (
        f"{len(base['problems'])} test problems x {base['problems'][0]['n']} samples, {base['parameters'] / 1e3:.0f} "
        f"thousand parameters, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )
    versions = [f"{name} {version}" for name, version in base["versions"].items()]
    repeat = [
        Text("pre", "\n".join([command, *(shlex.join(run["command"]) for run in runs)])),
        *(Text("heading", "Settings"), page.settings_table({run["title"]: run["config"] for run in runs})),
        *(Text("heading", "Equal rollouts"), budget_table(results)),
        page.Fold("Versions", [Text("pre", "\n".join(versions))]),
    ]
    cards = page.Cards([claim.card for claim in found])
    sections = [
        Section("What was claimed, and what happened", "findings", [cards, parts_table(found)]),
        Section("pass@k before and after", "curves", [pass_curves(results), numbers_table(results)]),
        Section("A verifier that errs", "errors", [errors_table(results)]),
        Section("By level", "levels", [level_curves(results), levels_table(results)]),
        Section("Along training", "training", training_pictures(results)),
        Section("Sampling against training", "mismatch", [mismatch_curves(results), mismatch_table(results)]),
        Section("How to repeat it", "repeat", repeat),
    ]
    footer = "Made by negpo. Every number above is in the result folder."
    title = "Reinforcement learning from right and from wrong answers"
    return page.render_sections(path, title, subtitle, sections, footer)


def _style(results: Results, name: str) -> dict[str, Any]:
    return {"color": "black", "ls": "--"} if name == BASE else page.style(results.names.index(name) - 1)


# ---- findings and numbers --------------------------------------------------------------------------------------------


def numbers_table(results: Results) -> Table:
    """pass@k, entropy and displacement of every run."""
    header = ["", *(f"pass@{k}" for k in results.ks), "entropy per token", "different right answers"]
    header += ["fall of right answers", "change of them"]
    rows = []
    for name in results.names:
        cells = [interval_cell(value) for value in curve(results, name)] + [interval_cell(entropy(results, name))]
        cells.append(interval_cell(estimate([distinct_values(run) for run in results.runs(name)]), "{:.1f}"))
        if name != BASE:
            drops = [drop_values(run) for run in results.runs(name)]
            cells += [
                interval_cell(estimate(drops)),
                interval_cell(estimate([table[:, 1:] for table in drops]), "{:+.3f}"),
            ]
        rows.append([Cell(results.title(name), _stopped(results, name)), *cells])
    caption = (
        "Entropy in nats, from the samples of the test. Different right answers: among the samples of a question. "
        "Fall and change: log-prob of right answers that the model "
        "before training gave to the test problems, nats per answer; the fall counts what became less likely only."
    )
    return Table(header, rows, caption)


def errors_table(results: Results) -> Table | None:
    """True pass@1 after training with a verifier that errs; None where it never did."""
    if not results.noisy:
        return None
    errors = list(dict.fromkeys(name.partition("-")[2] for name in results.noisy))
    rows = []
    for name in results.names:
        runs = [name, *(f"{name}-{error}" for error in errors)]
        if runs[1] not in results.noisy:
            continue
        cells = [interval_cell(curve(results, run)[0]) if run in (name, *results.noisy) else Cell("") for run in runs]
        rows.append([Cell(results.title(name)), *cells])
    before = curve(results, BASE)[0].text("{:.3f}")
    caption = (
        f"pass@1 by the verifier itself, with the 95 % interval over seeds and problems; before training {before}. fp: "
        "share of wrong answers called right in training, fn: of right answers called wrong, in percent; errors depend "
        "on question and answer alone, so the same answer is always judged alike."
    )
    return Table(["", "no errors", *errors], rows, caption)


def _stopped(results: Results, name: str) -> str:
    reasons = [] if name == BASE else [run["stopped"] for run in results.runs(name) if run["stopped"]]
    return f"stopped early on {len(reasons)} seeds: {reasons[0]}" if reasons else ""


def levels_table(results: Results) -> Table:
    """pass@1 and pass@(largest k) of every run on every level."""
    shares, last = all_wrong_shares(results), results.ks[-1]
    rows = []
    for name in results.names:
        curves = [curve(results, name, level) for level in results.levels]
        rows.append([Cell(results.title(name)), *(interval_cell(one[place]) for one in curves for place in (0, -1))])
    header = ["", *(f"{level}, pass@{k}" for level in results.levels for k in (1, last))]
    found = ", ".join(f"{level} {share:.0%}" for level, share in shares.items())
    return Table(header, rows, f"Groups that are all wrong before training: {found}.")


# ---- pictures --------------------------------------------------------------------------------------------------------


def _draw_curve(axis: Any, results: Results, name: str, *, band: bool, level: str | None = None) -> None:
    estimates, style = curve(results, name, level), _style(results, name)
    if band:
        page.draw_estimates(axis, results.ks, estimates, style, results.title(name))
    else:
        axis.plot(results.ks, [one.value for one in estimates], **style, ms=4, lw=1.4, label=results.title(name))
    axis.set_xscale("log", base=2)
    axis.set_xticks(results.ks, map(str, results.ks))
    axis.set(xlabel="k", ylim=(None if band else 0, 1.01))


def pass_curves(results: Results) -> Picture:
    """pass@k with bands: signed methods on the left, group-normalised ones on the right, before in both."""
    figure, axes = new_figure(2, width=11.5, height=4.8)
    for axis, signed in zip(axes, (True, False), strict=True):
        for name in results.names:
            if name == BASE or (name in SIGNED) == signed:
                _draw_curve(axis, results, name, band=True)
        axis.set(ylabel="pass@k")
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    caption = "Unbiased pass@k; bands are 95 % intervals over seeds and problems. Dashed: before training."
    return as_picture(figure, "pass@k before and after training", caption)


def level_curves(results: Results) -> Picture:
    """pass@k per level, one panel each."""
    figure, axes = new_figure(len(results.levels), width=2.9 * len(results.levels) + 1.2, height=3.4)
    for axis, level in zip(np.atleast_1d(axes), results.levels, strict=True):
        for name in results.names:
            _draw_curve(axis, results, name, band=False, level=level)
        axis.set_title(level, fontsize=10)
    page.outside_legend(np.atleast_1d(axes)[-1])
    return as_picture(figure, "pass@k by level", "The same by level, without bands.")


def _lines(results: Results, axis: Any, series: Callable[[Mapping[str, Any]], tuple[Sequence[float], Sequence[float]]]):
    """Mean over seeds of a series of every run, with the range over seeds as a band."""
    for name in results.names:
        pairs = [] if name == BASE else [series(run) for run in results.runs(name)]
        shared = min((len(values) for _, values in pairs), default=0)
        if not shared:
            continue
        table = np.array([values[:shared] for _, values in pairs], dtype=np.float64)
        band, look = (table.mean(0), table.min(0), table.max(0)), {"color": _style(results, name)["color"]}
        page.line_with_band(axis, pairs[0][0][:shared], band, look, results.title(name))


def _rollouts(quantity: str) -> Callable[[Mapping[str, Any]], tuple[Sequence[float], Sequence[float]]]:
    def series(run: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        values = smoothed(run, quantity)
        return list(range(len(run["rollouts"]) - len(values) + 1, len(run["rollouts"]) + 1)), values.tolist()

    return series


def _draw_entropy_at_accuracy(results: Results, axis: Any) -> None:
    """Means over seeds of both, rollout by rollout."""
    for name in results.names:
        if name == BASE:
            continue
        pairs = [[smoothed(run, quantity) for quantity in ("right", "entropy")] for run in results.runs(name)]
        shared = min(len(values) for pair in pairs for values in pair)
        means = np.mean([[values[:shared] for values in pair] for pair in pairs], axis=0)
        axis.plot(*means, color=_style(results, name)["color"], lw=1.3, label=results.title(name))
    axis.set(xlabel="share of right answers", title="entropy per token at equal accuracy")


def _probe(run: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    points = run["probe"]["curve"]
    return [point["step"] for point in points], [point["mean"] for point in points]


def training_pictures(results: Results) -> list[Picture]:
    """Entropy, accuracy and displacement; then diversity, style and dead groups."""
    smooth = f"running mean over {SMOOTHED} rollouts; bands span the seeds"
    figure, axes = new_figure(3, width=14.5, height=4.0)
    panels = [("entropy", "entropy per token of rollouts (nats)"), ("right", "share of right answers in rollouts")]
    for axis, (quantity, title) in zip(axes, panels, strict=False):
        _lines(results, axis, _rollouts(quantity))
        axis.set(xlabel="rollout", title=title)
    _lines(results, axes[2], _probe)
    axes[2].set(xlabel="optimiser step", title="right answers of before: change of log-prob")
    page.outside_legend(axes[2])
    first = as_picture(
        figure,
        "entropy, accuracy and displacement along training",
        f"All answers of all rollouts, trained on or not: {smooth}. Right: nats per answer, on test problems.",
    )
    figure, axes = new_figure(3, width=14.5, height=4.0)
    panels = [("complete", f"answers that {results.style} (share)"), ("all_wrong", "groups without a right answer")]
    for axis, (quantity, title) in zip(axes, panels, strict=False):
        _lines(results, axis, _rollouts(quantity))
        axis.set(xlabel="rollout", title=title)
    _draw_entropy_at_accuracy(results, axes[2])
    page.outside_legend(axes[2])
    return [first, as_picture(figure, "what the answers look like along training", f"From the rollouts: {smooth}.")]


# ---- mismatch --------------------------------------------------------------------------------------------------------


def _logged(run: Mapping[str, Any], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], float(entry[name])) for entry in run["training_log"] if name in entry]


def mismatch_curves(results: Results) -> Picture | None:
    """Mean gap between sampling and training log-probs after each sync; None where the trainer's model samples."""
    runs = [(name, run) for name in results.names if name != BASE for run in results.runs(name)[:1]]
    if not any(_logged(run, "sync/max_gap") for _, run in runs):
        return None
    figure, axis = new_figure(width=8.6, height=3.8)
    for name, run in runs:
        points = [(step, value) for step, value in _logged(run, "mismatch/mean") if value > 0]
        if points:
            axis.plot(
                *zip(*points, strict=True), color=_style(results, name)["color"], lw=1.3, label=results.title(name)
            )
    axis.set(xlabel="optimiser step", ylabel="mean |gap| per token (nats)", yscale="log")
    page.outside_legend(axis)
    return as_picture(figure, "sampling against training log-probs", "First seed, after every weight sync.")


def mismatch_table(results: Results) -> Table:
    """Largest and mean gaps of every run, all seeds together."""
    columns: dict[str, tuple[str, Callable[[Sequence[float]], Any]]] = {
        "mean gap per token": ("mismatch/mean", np.mean),
        "largest gap": ("mismatch/max", np.max),
        "KL(sampling || training)": ("mismatch/kl", np.mean),
        "largest gap of a sync's proof": ("sync/max_gap", np.max),
        "seconds per sync": ("sync/seconds", np.mean),
    }
    rows = []
    for name in results.names:
        if name == BASE:
            continue
        cells = [Cell(results.title(name))]
        for metric, reduce in columns.values():
            values = [value for run in results.runs(name) for _, value in _logged(run, metric)]
            cells.append(Cell(f"{reduce(values):.2g}" if values else "–"))
        rows.append(cells)
    caption = (
        "Log-probs of the same tokens from the engine that drew them and from the training pass, nats. The embedded "
        "engine decodes with the trained weights themselves, so it has no sync; another engine proves every sync by "
        "scoring the same tokens as the trainer."
    )
    return Table(["", *columns], rows, caption)


# ---- how to repeat it ------------------------------------------------------------------------------------------------


def budget_table(results: Results) -> Table:
    """Prompts and samples drawn, whether they are those of the first run, and seconds."""
    rows = []
    first = results.runs(results.names[1])
    for name in results.names[1:]:
        runs = results.runs(name)
        same = all(one["prompts"] == other["prompts"] for one, other in zip(runs, first, strict=True))
        drawn = sum(rollout["samples"] for run in runs for rollout in run["rollouts"])
        seconds = [sum(run["seconds"][part] for run in runs) / len(runs) for part in ("training", "evaluation")]
        cells = [str(sum(run["prompts"]["count"] for run in runs)), str(drawn), "yes" if same else "no"]
        cells += [f"{value:.0f}" for value in seconds]
        rows.append([Cell(results.title(name)), *map(Cell, cells)])
    header = ["", "prompts", "samples", f"same prompts as {results.title(results.names[1])}"]
    return Table([*header, "training (s per seed)", "evaluation (s per seed)"], rows)
