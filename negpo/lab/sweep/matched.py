"""Matched utility: what a method forgets where it still keeps a given share of the target's utility.

Two definitions. *Checkpoints*: the trajectory of a trial, from the target on, is a line through its measurements; its
best place among those that keep the level counts. *Mixing* (UWC): weights are mixed with the target's until the level
is kept, with the smallest share of the target that does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from negpo.lab.sweep.measure import ROW_METRICS, forgetting

Point = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where on a trajectory: between two measurements, ``share`` of the way. ``rows`` are interpolated."""

    step: float
    utility: float
    score: float
    rows: dict[str, list[float]]


def best_at(trajectory: Sequence[Point], target: Point, level: float, chosen: Sequence[int]) -> Place:
    """The place with the best score on ``chosen`` rows among those with at least ``level`` of the target's utility.

    The target itself (step 0) always qualifies, so there is always one. Between measurements utility and row metrics
    are taken as straight lines; the candidates are the measurements that qualify and the crossings of the level.
    """
    bound = level * target["utility"]
    points = [{"step": 0, **target}, *trajectory]
    places = [_place(point, chosen) for point in points if point["utility"] >= bound]
    for left, right in itertools.pairwise(points):
        if (left["utility"] >= bound) != (right["utility"] >= bound):
            share = (left["utility"] - bound) / (left["utility"] - right["utility"])
            places.append(_place(_between(left, right, share), chosen))
    return max(places, key=lambda place: place.score)


def _place(point: Point, chosen: Sequence[int]) -> Place:
    return Place(point["step"], point["utility"], forgetting(point["rows"], chosen), point["rows"])


def _between(left: Point, right: Point, share: float) -> Point:
    rows = {
        name: ((1 - share) * np.asarray(left["rows"][name]) + share * np.asarray(right["rows"][name])).tolist()
        for name in ROW_METRICS
    }
    values = {name: (1 - share) * left[name] + share * right[name] for name in ("step", "utility")}
    return {**values, "rows": rows}


def boot(rows: Sequence[dict[str, list[float]]], chosen: Sequence[Sequence[int]], draws: Sequence[Any]) -> np.ndarray:
    """Forgetting of a method, mean over seeds, for each draw of (seeds, rows of each seed); (R,)."""
    values = [_columns(found, part) for found, part in zip(rows, chosen, strict=True)]
    return np.array([np.mean([_score(values[s][:, list(r)]) for s, r in draw]) for draw in draws])


def make_draws(sizes: Sequence[int], resamples: int, seed: int) -> list[list[tuple[int, np.ndarray]]]:
    """Seeds with replacement, and within each its report rows with replacement; shared by all methods (paired)."""
    generator = np.random.default_rng(seed)
    seeds = generator.integers(0, len(sizes), size=(resamples, len(sizes)))
    return [[(int(s), generator.integers(0, sizes[s], size=sizes[s])) for s in line] for line in seeds]


def _columns(rows: dict[str, list[float]], chosen: Sequence[int]) -> np.ndarray:
    return np.array([np.asarray(rows[name])[list(chosen)] for name in ROW_METRICS[:4]])


def _score(values: np.ndarray) -> float:
    kept = np.clip(1 - values.mean(1), 0, 1)
    return 0.0 if (kept <= 0).any() else float(len(kept) / (1 / kept).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for testing all of them."""
    order = np.argsort(p_values)
    corrected, running = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = running
    return corrected
