"""Read unlearning results from disk, however they were made: by the demo, or by `negpo train` and `negpo eval tofu`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from negpo.data.io import read_jsonl
from negpo.errors import DataError

DEMO_FILE, RUN_FILE, EVAL_FILE = "demo.json", "results.json", "summary.json"
REFERENCES = ("target", "retain")
EXAMPLE_ROWS = {"forget": 4, "retain": 3, "world_facts": 1}


@dataclass
class Point:
    """One evaluation at an optimiser step. `metrics` has the names of `negpo.eval.tofu`.

    `forget_logp` is the mean log-likelihood of the forget answers in nats per token, `log_truth_ratio` the mean log of
    their truth ratios: 0 where right and wrong answers are equally likely, negative while the right ones are likelier.
    """

    step: int
    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    forget_logp: float = math.nan
    log_truth_ratio: float = math.nan

    @property
    def forget_quality(self) -> float:
        return self.metrics.get("forget_quality", math.nan)

    @property
    def utility(self) -> float:
        return self.metrics.get("model_utility", math.nan)


@dataclass
class RunResult:
    """One model over its training: `points` in step order, `log` the trainer's own log, and how to repeat it."""

    name: str
    title: str
    points: list[Point]
    retain: bool | None = None
    log: list[dict] = field(default_factory=list)
    examples: list[dict] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Point:
        return self.points[-1]


@dataclass
class Experiment:
    """All models of one seed: the model before unlearning, the one that never saw the forget set, and the runs."""

    seed: int
    target: RunResult
    retain: RunResult | None
    runs: list[RunResult]

    def trajectory(self, run: RunResult) -> list[Point]:
        """The run's points with the target in front, as step 0, judged by the same retain log as the run."""
        return [self.start, *(point for point in run.points if point.step > 0)]

    @property
    def start(self) -> Point:
        return self.target.last


def load_experiments(folder: str | Path) -> tuple[list[Experiment], dict[str, Any]]:
    """Experiments under `folder` and its `demo.json` (empty when the folder was filled by hand).

    By hand means: `folder/<name>/summary.json` from `negpo eval tofu --out folder/<name>`, one of the names `target`,
    one maybe `retain`; evaluations of several checkpoints of a run stand in `folder/<name>/checkpoint-<step>/`.

    Raises:
        DataError: there is no target, or nothing beside it.
    """
    folder = Path(folder)
    demo = _read(folder / DEMO_FILE) if (folder / DEMO_FILE).exists() else {}
    places = sorted(folder.glob("seed*/")) or [folder]
    experiments = [experiment for place in places if (experiment := _experiment(place)) is not None]
    if not experiments:
        raise DataError(
            f"no results: expected {folder}/target and one folder per model, each with {RUN_FILE} or {EVAL_FILE}",
            file=str(folder),
        )
    return experiments, demo


def _experiment(place: Path) -> Experiment | None:
    found = {run.name: run for run in _runs(place)}
    target, retain = (found.pop(name, None) for name in REFERENCES)
    if target is None or not found:
        return None
    seed = place.name.removeprefix("seed")
    order = {name: index for index, name in enumerate(("ga", "graddiff", "npo", "npo_no_retain", "simnpo", "catnip"))}
    runs = sorted(found.values(), key=lambda run: (order.get(run.name, len(order)), run.name))
    return Experiment(int(seed) if seed.isdigit() else 0, target, retain, runs)


def _runs(place: Path) -> Iterator[RunResult]:
    for path in sorted(place.iterdir()):
        if (path / RUN_FILE).exists():
            content = _read(path / RUN_FILE)
            if "trajectory" in content:  # a model that was only made has nothing to show
                yield _demo_run(content)
        elif files := sorted(path.glob(f"checkpoint-*/{EVAL_FILE}")) or sorted(path.glob(EVAL_FILE)):
            yield _evaluated_run(path.name, files)


def _demo_run(content: dict[str, Any]) -> RunResult:
    points = [
        Point(
            item["step"],
            _floats(item["metrics"]),
            item["details"],
            float(item["forget_logp"]),
            _mean_log(item["forget_truth_ratio"]),
        )
        for item in content["trajectory"]
    ]
    return RunResult(
        content["name"],
        content.get("title", content["name"]),
        points,
        content.get("retain"),
        content.get("training_log", []),
        content["examples"],
        content.get("command", []),
        content.get("config", {}),
        content["seconds"],
        content["manifest"],
    )


def _evaluated_run(name: str, files: list[Path]) -> RunResult:
    points, rows, manifest = [], [], {}
    for file in files:
        summary = _read(file)
        rows = read_jsonl(file.with_name("rows.jsonl"), repair=False)
        manifest = summary["manifest"]
        step = file.parent.name.removeprefix("checkpoint-")
        forget = [row for row in rows if row["set"] == "forget"]
        logp = -fmean(float(row["nll"]) for row in forget)
        ratio = _mean_log([row["truth_ratio"] for row in forget if "truth_ratio" in row])
        number = int(step) if step.isdigit() else 1
        points.append(Point(number, _floats(summary["metrics"]), summary["details"], logp, ratio))
    points.sort(key=lambda point: point.step)
    return RunResult(name, name, points, examples=pick_examples(rows), manifest=manifest)


def pick_examples(rows: list[dict]) -> list[dict[str, str]]:
    """Question, true answer and generation of a few rows spread over the forget, retain and world-fact sets."""
    shown = []
    for name, count in EXAMPLE_ROWS.items():
        members = [row for row in rows if row["set"] == name and "generation" in row]
        for row in members[:: max(1, len(members) // count)][:count]:
            shown.append({key: row[key] for key in ("set", "question", "answer", "generation")})
    return shown


def _mean_log(ratios: Sequence[float | str]) -> float:
    """Mean log of positive numbers; a ratio of 0 or infinity (a collapsed model) counts as e^-60 or e^60."""
    if not ratios:
        return math.nan
    return fmean(min(60.0, max(-60.0, math.log(max(float(ratio), 1e-300)))) for ratio in ratios)


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Metric values; strict JSON writes NaN and infinities as strings."""
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not readable as JSON ({error}); delete it and run again", file=str(path)) from error
