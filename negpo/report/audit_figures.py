"""The pictures of an audit. Every function takes the content of ``audit.json`` and returns a `Picture`, or None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from negpo.report._base import Picture, as_picture, new_figure, style

TINY_P = 1e-30  # smallest forget quality drawn
RETAIN_STYLE = {"color": "black", "lw": 1.4, "ls": "--"}
TARGET_STYLE = {"color": "#888888", "lw": 1.4, "ls": ":"}
PANELS_A_ROW = 3


def forget_utility(audit: dict[str, Any]) -> Picture | None:
    """What is left of the forget answers against what is left of utility, both with intervals."""
    x_name = next((name for name in ("model_utility", "retain_Q_A_ROUGE") if name in audit["retain"]["metrics"]), None)
    if x_name is None:
        return None
    tested = "forget_quality" in audit["retain"]["metrics"]
    figure, axes = new_figure(2 if tested else 1, width=10.4 if tested else 6.4, height=4.4)
    left, right = axes if tested else (axes, None)
    _scatter(left, audit, x_name, "forget_Q_A_ROUGE")
    left.set(
        xlabel=x_name.replace("_", " "), ylabel="ROUGE-L of forget answers", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    if right is not None:
        _scatter(right, audit, x_name, "forget_quality", least=TINY_P)
        level = audit["manifest"]["settings"]["alpha"]
        right.axhline(level, color="#333333", lw=1, ls="--")
        right.set(yscale="log", ylim=(None, 5), xlim=(-0.02, 1.02))
        right.set(xlabel=x_name.replace("_", " "), ylabel="forget quality (KS p-value)")
    left.legend(fontsize=8, frameon=False)
    caption = (
        "Right is useful. Left picture: low is forgotten, but the goal is the height of the open star, a model that "
        "never saw the forget set. Right picture: above the dashed line a test no longer tells the two apart. Bars are "
        "95 % intervals over rows."
    )
    return as_picture(figure, "forgetting against utility of all models", caption)


def _scatter(axis: Any, audit: dict[str, Any], x: str, y: str, least: float = -math.inf) -> None:
    controls = [(audit["target"], "target", {"mfc": "black"}), (audit["retain"], "retain model", {"mfc": "white"})]
    for index, model in enumerate(audit["models"]):
        numbers = [{key: max(float(value), least) for key, value in model["metrics"][name].items()} for name in (x, y)]
        reach = [[[one["value"] - one["low"]], [one["high"] - one["value"]]] for one in numbers]
        clipped = [[[max(0.0, end[0])] for end in pair] for pair in reach]
        places = [[one["value"]] for one in numbers]
        axis.errorbar(
            *places,
            xerr=clipped[0],
            yerr=clipped[1],
            **style(index),
            ms=9,
            lw=1,
            ls="",
            mec="black",
            label=model["label"],
        )
    for control, label, look in controls:
        value = [max(float(control["metrics"][name]["value"]), least) for name in (x, y)]
        axis.plot(*value, "*", ms=15, mec="black", label=label, **look)


def roc_curves(audit: dict[str, Any]) -> Picture | None:
    """One panel a membership attack: share of forget rows found against share of unseen rows accused."""
    attacks = list(audit["retain"]["roc"])
    if not attacks:
        return None
    figure, panels = _grid(len(attacks))
    for axis, attack in zip(panels, attacks, strict=True):
        for index, model in enumerate(audit["models"]):
            axis.plot(*_columns(model["roc"][attack]), color=style(index)["color"], lw=1.5, label=model["label"])
        axis.plot(*_columns(audit["retain"]["roc"][attack]), **RETAIN_STYLE, label="retain model")
        axis.plot(*_columns(audit["target"]["roc"][attack]), **TARGET_STYLE, label="target")
        axis.plot([0, 1], [0, 1], color="#CCCCCC", lw=0.8, zorder=0)
        axis.set(title=attack.replace("_", " "), xlabel="unseen rows accused", ylabel="forget rows found")
    _outside_legend(figure, panels[0])
    caption = (
        "A curve on the dashed one tells an attacker nothing about unlearning. Above it the forget set still looks "
        "like training data; far below it is conspicuously unlikely, which identifies it as well."
    )
    return as_picture(figure, "ROC curves of membership inference", caption)


def relearning(audit: dict[str, Any]) -> Picture | None:
    """One panel a relearning attack: recovered forget answers against optimiser steps, the retain model as control."""
    names = [name for name in audit["retain"]["attacks"] if name.startswith("relearn")]
    names = [name for name in names if all(name in model["attacks"] for model in (*audit["models"], audit["target"]))]
    if not names:
        return None
    figure, panels = _grid(len(names))
    for axis, name in zip(panels, names, strict=True):
        headline = audit["retain"]["attacks"][name]["headline"]
        for index, model in enumerate(audit["models"]):
            steps, values, low, high = _columns(model["attacks"][name]["curves"][headline])
            axis.plot(steps, values, **style(index), ms=4, lw=1.5, label=model["label"])
            axis.fill_between(steps, low, high, color=style(index)["color"], alpha=0.12, lw=0)
        for control, look, label in (
            (audit["retain"], RETAIN_STYLE, "retain model"),
            (audit["target"], TARGET_STYLE, "target"),
        ):
            axis.plot(*_columns(control["attacks"][name]["curves"][headline])[:2], **look, label=label)
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(title=name.replace("_", " "), xlabel="optimiser steps", ylim=(-0.02, 1.02))
        axis.set_ylabel("ROUGE-L of forget answers" if headline.startswith("rouge") else headline.replace("_", " "))
    _outside_legend(figure, panels[0])
    caption = (
        "Fine-tuning on other rows than those measured. The dashed line is what the same steps teach a model that "
        "never knew the answers; what lies above it was not forgotten but hidden. Bands are 95 % intervals over rows."
    )
    return as_picture(figure, "relearning curves with the retain model as control", caption)


def attack_bars(audit: dict[str, Any]) -> Picture | None:
    """Recovered knowledge by attack: a bar a model, a dash at the retain model, a dot at the target."""
    names = list(audit["retain"]["attacks"])
    if not names:
        return None
    models = audit["models"]
    figure, axis = new_figure(width=10.4, height=max(2.6, 0.42 * len(names) * max(1.0, 0.35 * len(models)) + 1.2))
    height = 0.8 / len(models)
    for index, model in enumerate(models):
        for row, name in enumerate(names):
            if name not in model["attacks"]:
                continue
            one = {key: float(model["attacks"][name][key]) for key in ("value", "low", "high")}
            place = row - 0.4 + (index + 0.5) * height
            error = [[max(0.0, one["value"] - one["low"])], [max(0.0, one["high"] - one["value"])]]
            label = model["label"] if row == 0 else None
            axis.barh(
                place,
                one["value"],
                height * 0.9,
                color=style(index)["color"],
                label=label,
                xerr=error,
                ecolor="#444444",
            )
    for row, name in enumerate(names):
        retain, target = (
            float(audit[role]["attacks"][name]["value"]) if name in audit[role]["attacks"] else math.nan
            for role in ("retain", "target")
        )
        axis.plot(
            [retain, retain], [row - 0.45, row + 0.45], color="black", lw=2, label="retain model" if row == 0 else None
        )
        axis.plot(target, row, "*", ms=9, color="#888888", label="target" if row == 0 else None)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set(xlim=(0, 1.02), xlabel="recovered knowledge")
    axis.invert_yaxis()
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        "What each attack brings back, with 95 % intervals. The black line is what the same attack finds in a model "
        "that never saw the answers: only what lies beyond it was recovered."
    )
    return as_picture(figure, "knowledge recovered by each attack", caption)


def _grid(count: int) -> tuple[Any, list[Any]]:
    """A figure with ``count`` panels, three a row, in the reports' look."""
    rows = math.ceil(count / PANELS_A_ROW)
    figure, axes = new_figure(PANELS_A_ROW, 3.6 * PANELS_A_ROW, 3.2 * rows + 0.5, rows)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def _outside_legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=min(6, len(labels)))


def _columns(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(value) for value in column] for column in zip(*rows, strict=True)]
