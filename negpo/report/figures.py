"""The pictures of an unlearning report. Every function takes experiments (one per seed) and returns a `Picture`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from negpo.report._base import Picture, as_picture, line_with_band, new_figure, outside_legend, style
from negpo.report.results import Experiment, Point
from negpo.report.verdict import FORGOTTEN

WEIGHT = "forget/grad_weight"
TINY_P = 1e-30  # smallest forget quality drawn


def _stars(axis: Any, experiments: list[Experiment], x: Callable[[Point], float], y: Callable[[Point], float]) -> None:
    """Mark target (before) and retain model (the goal) of every seed."""
    for index, experiment in enumerate(experiments):
        label = index == 0
        axis.plot(
            x(experiment.start), y(experiment.start), "*", ms=15, color="black", label="target" if label else None
        )
        if experiment.retain is not None:
            point = experiment.retain.last
            axis.plot(x(point), y(point), "*", ms=15, mfc="white", mec="black", label="retain model" if label else None)


def _quality(point: Point) -> float:
    """Forget quality for a log axis; the retain model compared with itself is 1."""
    value = point.metrics.get("forget_quality", 1.0)
    return max(value, TINY_P)


def _paths(axis: Any, experiments: list[Experiment], x: Callable[[Point], float], y: Callable[[Point], float]) -> None:
    """One line per run and seed through its evaluations, the last one large; then the stars."""
    for index, run in enumerate(experiments[0].runs):
        for number, experiment in enumerate(experiments):
            twin = next(other for other in experiment.runs if other.name == run.name)
            places = [(x(point), y(point)) for point in experiment.trajectory(twin)]
            label = run.title if number == 0 else None
            axis.plot(*zip(*places, strict=True), **style(index), ms=4, lw=1.2, alpha=0.75, label=label)
            axis.plot(*places[-1], **style(index), ms=11, mec="black", mew=0.8)
    _stars(axis, experiments, x, y)


def pareto(experiments: list[Experiment]) -> Picture:
    """Forget quality (log) against model utility along training; the upper right corner is the goal."""
    figure, axis = new_figure(width=8.6, height=5.2)
    _paths(axis, experiments, lambda point: point.utility, _quality)
    axis.axhline(FORGOTTEN, color="#333333", lw=1, ls="--")
    axis.annotate(f"forget quality {FORGOTTEN}", (0.0, FORGOTTEN), (4, 4), textcoords="offset points", fontsize=8)
    axis.set(
        yscale="log", ylim=(None, 3), xlim=(-0.02, 1.0), xlabel="model utility", ylabel="forget quality (KS p-value)"
    )
    outside_legend(axis)
    caption = (
        "Each line is one run, each mark one evaluation, the large mark the end. Right is useful, up is forgotten: the "
        "goal is the open star, a model that never saw the forget set. Above the dashed line a Kolmogorov-Smirnov test "
        "at 5 % no longer tells the two apart."
    )
    return as_picture(figure, "forget quality against model utility along training", caption)


def _curves(axis: Any, experiments: list[Experiment], value: Callable[[Point], float]) -> None:
    """Mean over seeds of `value` against steps, with a band from the smallest to the largest."""
    for index, run in enumerate(experiments[0].runs):
        twins = [(one, other) for one in experiments for other in one.runs if other.name == run.name]
        lines = [one.trajectory(other) for one, other in twins]
        shared = min(len(line) for line in lines)
        steps = [point.step for point in lines[0][:shared]]
        table = np.array([[value(point) for point in line[:shared]] for line in lines])
        line_with_band(axis, steps, (table.mean(0), table.min(0), table.max(0)), style(index), run.title)


def _reference_line(axis: Any, experiments: list[Experiment], value: Callable[[Point], float]) -> None:
    values = [value(experiment.retain.last) for experiment in experiments if experiment.retain is not None]
    if values:
        axis.axhline(float(np.mean(values)), color="black", lw=1, ls=":", label="retain model")


def likelihood(experiments: list[Experiment]) -> Picture:
    """Mean log-likelihood of the forget answers per token against steps: all of it, and the part near the target."""
    figure, (whole, near) = new_figure(2, width=10.4, height=4.2)
    for axis in (whole, near):
        _curves(axis, experiments, lambda point: point.forget_logp)
        _reference_line(axis, experiments, lambda point: point.forget_logp)
        axis.set(xlabel="optimiser step", ylabel="log-likelihood of forget answers / token")
    floor = min((one.retain.last.forget_logp for one in experiments if one.retain is not None), default=-5.0)
    near.set(ylim=(3 * floor, -floor * 0.15), title="the same, near the retain model")
    whole.set(title="forget log-likelihood")
    whole.legend(fontsize=8, frameon=False)
    caption = (
        "Gradient ascent has no brake: its line falls and falls. NPO's weight shrinks as an answer becomes unlikely, "
        "so its line flattens; CATNIP's does so for every token. Dotted: a model that never saw the answers. All "
        "lines flatten towards the end, where the learning rate decays to zero."
    )
    return as_picture(figure, "log-likelihood of the forget answers against training steps", caption)


def weights(experiments: list[Experiment]) -> Picture | None:
    """The brake itself: mean gradient weight on forget tokens against steps; None where no training log is there."""
    figure, axis = new_figure(width=8.6, height=3.8)
    for index, run in enumerate(experiments[0].runs):
        pairs = [(entry["step"], entry[WEIGHT]) for entry in run.log if WEIGHT in entry]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            axis.plot(steps, values, color=style(index)["color"], lw=1.5, label=run.title)
    if not axis.lines:
        return None
    axis.set(xlabel="optimiser step", ylabel="mean gradient weight", ylim=(0, None))
    outside_legend(axis)
    caption = (
        "How hard each method still pushes a forget token, relative to gradient ascent (1): NPO and SimNPO let go of "
        "an answer, CATNIP of a token, once it has become unlikely. Per batch, first seed."
    )
    return as_picture(figure, "mean gradient weight on forget tokens against training steps", caption)


def utility(experiments: list[Experiment]) -> Picture:
    """Model utility and forget quality against steps."""
    figure, (left, right) = new_figure(2, width=10.4, height=4.2)
    _curves(left, experiments, lambda point: point.utility)
    _reference_line(left, experiments, lambda point: point.utility)
    left.set(xlabel="optimiser step", ylabel="model utility", ylim=(-0.02, 1.0), title="model utility")
    _curves(right, experiments, lambda point: float(np.log10(_quality(point))))
    right.axhline(np.log10(FORGOTTEN), color="#333333", lw=1, ls="--")
    right.set(xlabel="optimiser step", ylabel="log10 forget quality", title="forget quality")
    left.legend(fontsize=8, frameon=False)
    caption = (
        "Utility is the harmonic mean of nine scores, so a single one at zero takes it to zero. Bands span the seeds."
    )
    return as_picture(figure, "model utility and forget quality against training steps", caption)


def equal_forgetting(experiments: list[Experiment]) -> Picture:
    """Utility against how unlikely the forget answers have become: methods compared at equal forgetting."""
    figure, axis = new_figure(width=8.6, height=4.6)
    _paths(axis, experiments, lambda point: -point.forget_logp, lambda point: point.utility)
    axis.set(xscale="log", xlabel="forget loss (nats per answer token, log scale)", ylabel="model utility")
    outside_legend(axis)
    caption = (
        "At the same horizontal place two methods have made the forget answers equally unlikely; the higher one has "
        "kept more. Only methods of one kind compare fairly: with retain data, or without."
    )
    return as_picture(figure, "model utility against forget loss", caption)
