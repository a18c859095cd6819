"""The pictures of the report of `negpo demo prefer`. Lines are means over seeds, bands 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from negpo.eval.bootstrap import Interval
from negpo.lab.dispreference_lab import IMPOLITE, POLITE
from negpo.lab.prefer_results import Method, level
from negpo.report._base import COLORS, Picture, as_picture, draw_estimates, new_figure, outside_legend, style

Measure = Callable[[Method, int], Interval]
SMOOTH = 5  # steps averaged in curves of the training log


def accuracy(method: Method, place: int) -> Interval:
    return level(method.table("right", place))


def harm(method: Method, place: int) -> Interval:
    return level(method.table("harmful", place, IMPOLITE))


def divergence(method: Method, place: int) -> Interval:
    return level(method.table("kl", place, POLITE))


def _curves(axis: Any, methods: Sequence[Method], measure: Measure) -> None:
    for index, method in enumerate(methods):
        found = [measure(method, place) for place in range(len(method.steps))]
        draw_estimates(axis, method.steps, found, style(index), method.title)
    axis.set(xlabel="optimiser step")


def accuracy_curves(methods: Sequence[Method], references: dict[str, float]) -> Picture:
    """Accuracy of the student along stage 2, with the teacher's and the student's before stage 1."""
    figure, axis = new_figure(width=8.6, height=4.6)
    _curves(axis, methods, accuracy)
    for name, dashes in (("teacher", "--"), ("start", ":")):
        axis.axhline(references[name], color="black", lw=1, ls=dashes, label=f"{name}, mean over seeds")
    axis.set(ylabel="accuracy of sampled answers (avg@n)")
    outside_legend(axis)
    caption = "Step 0 is the student after SFT on right traces. Bands: 95 % over seeds, questions and samples."
    return as_picture(figure, "accuracy against training steps", caption)


def _logged(axis: Any, methods: Sequence[Method], name: str) -> None:
    for index, method in enumerate(methods):
        if (logged := method.logged(name)) is None:
            continue
        steps, values = logged
        width = min(SMOOTH, len(steps))
        mean = np.convolve(values.mean(0), np.ones(width) / width, mode="valid")
        axis.plot(steps[width - 1 :], mean, color=COLORS[index % len(COLORS)], lw=1.5, label=method.title)
    axis.set(xlabel="optimiser step")


def log_probs(methods: Sequence[Method]) -> Picture:
    """Mean log-prob per token of the chosen and of the rejected traces, and the margin between them."""
    figure, axes = new_figure(3, width=12.4, height=3.9)
    names = ("chosen/logp", "rejected/logp", "margin/logp")
    titles = ("chosen traces", "rejected traces", "margin")
    for axis, name, title in zip(axes, names, titles, strict=True):
        _logged(axis, methods, name)
        axis.set(title=title, ylabel="nats per token")
    axes[0].legend(fontsize=7, frameon=False)
    caption = (
        "From the training log, on the batch of each step, mean over seeds. A growing margin is no sign of learning: "
        "both log-probs may fall together (displacement), which only the left picture shows."
    )
    return as_picture(figure, "log-probs of chosen and rejected traces against training steps", caption)


def degeneration(methods: Sequence[Method]) -> Picture:
    """Length of sampled answers, and the share that holds no result."""
    figure, (left, right) = new_figure(2, width=10.4, height=3.9)
    for axis, name, title in (
        (left, "tokens", "mean length of answers, tokens"),
        (right, "unanswered", "share of answers without a result"),
    ):
        for index, method in enumerate(methods):
            values = [method.mean(name, place) for place in range(len(method.steps))]
            axis.plot(method.steps, values, color=COLORS[index % len(COLORS)], lw=1.5, label=method.title)
        axis.set(xlabel="optimiser step", title=title)
    left.legend(fontsize=7, frameon=False)
    return as_picture(
        figure, "length and degeneration against training steps", "Sampled answers to held-out questions."
    )


def harm_curves(methods: Sequence[Method]) -> Picture:
    """Harm rate, helpfulness and divergence along training."""
    figure, axes = new_figure(3, width=12.4, height=3.9)
    measures = (
        (harm, "harm rate, impolite questions"),
        (accuracy, "helpfulness: right answers, all questions"),
        (divergence, "KL to the reference, polite questions"),
    )
    for axis, (measure, title) in zip(axes, measures, strict=True):
        _curves(axis, methods, measure)
        axis.set(title=title)
        axis.title.set_fontsize(9)
    axes[0].legend(fontsize=7, frameon=False)
    caption = (
        "Step 0 is the reference. Polite questions never get harmful answers, so on them every divergence is damage. "
        "KL in nats per token of the reference's own answers. Bands: 95 % over seeds, questions and samples."
    )
    return as_picture(figure, "harm rate, helpfulness and divergence against training steps", caption)


def trade_off(methods: Sequence[Method]) -> Picture:
    """Helpfulness against harm rate along training: methods compared at equal harm."""
    figure, axis = new_figure(width=8.6, height=4.4)
    for index, method in enumerate(methods):
        places = range(len(method.steps))
        x = [harm(method, place).value for place in places]
        y = [accuracy(method, place).value for place in places]
        axis.plot(x, y, **style(index), ms=4, lw=1.2, label=method.title)
        axis.plot(x[-1:], y[-1:], **style(index), ms=11, mec="black", mew=0.8)
    axis.set(xlabel="harm rate, impolite questions", ylabel="right answers, all questions")
    axis.invert_xaxis()
    outside_legend(axis)
    caption = "Each mark is one measurement, the large one the end. The goal is the upper right corner."
    return as_picture(figure, "helpfulness against harm rate", caption)
