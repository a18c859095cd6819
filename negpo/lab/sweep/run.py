"""`negpo sweep`: do what is left to do, then judge all methods at matched utility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from negpo.data.io import atomic_write_json
from negpo.eval.meta_metrics import smallest_mixing_ratio
from negpo.eval.metrics import forget_quality
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.sweep import matched, subjects
from negpo.lab.sweep.measure import ROW_METRICS, forgetting, measure
from negpo.lab.sweep.spec import Split, SweepSpec, read_spec
from negpo.lab.sweep.trial import load, trial_folder

RESULT_FILE = "leaderboard.json"
RATIOS = tuple(round(0.05 * i, 2) for i in range(21))
RESAMPLES = 2000


def run_sweep(path: str | Path, out: str | Path, *, workers: int = 1) -> dict[str, Any]:
    """Run all trials that are not finished, in ``workers`` processes of one thread, and write ``leaderboard.json``.

    A killed sweep goes on where it stopped. Returns the content of the file. Raises ConfigError for a spec that is
    refused and NegpoError when a child failed (its log is named).
    """
    spec, out = read_spec(path), Path(out)
    for seed in spec.seeds:
        subject = subjects.subject(spec, out, seed)
        subjects.references(subject, out / f"seed{seed}")
        todo = [name for name in spec.methods if any(_missing(out, spec, seed, name, i) for i in range(spec.trials))]
        arguments = (str(Path(path).resolve()), str(out), str(seed))
        shares = [share for i in range(workers) if (share := todo[i::workers])]
        jobs = [
            Job(", ".join(share), "negpo.lab.sweep.trial", (*arguments, *share), out / "logs" / f"seed{seed}-{i}.log")
            for i, share in enumerate(shares)
        ]
        run_jobs(jobs, workers=workers, title=f"seed {seed}:")
    result = judge(spec, out)
    atomic_write_json(out / RESULT_FILE, result)
    return result


def _missing(out: Path, spec: SweepSpec, seed: int, method: str, number: int) -> bool:
    return load(out, spec, seed, method, number) is None


def judge(spec: SweepSpec, out: Path) -> dict[str, Any]:
    """The leaderboard of the seeds that are complete: choice on validation rows, report on the other rows."""
    everything = [(method, i) for method in spec.methods for i in range(spec.trials)]
    seeds = [s for s in spec.seeds if not any(_missing(out, spec, s, *one) for one in everything)]
    board: dict[str, Any] = {
        "lab": spec.lab, "target": spec.target, "seeds": seeds, "missing_seeds": sorted(set(spec.seeds) - set(seeds)),
        "steps": spec.steps, "trials": spec.trials, "batch": spec.batch, "levels": list(spec.levels), "methods": {},
        "references": {},
    }  # fmt: skip
    if not seeds:
        return board
    found = {seed: _Seed(spec, out, seed) for seed in seeds}
    chosen = {method: {seed: found[seed].choose(method) for seed in seeds} for method in spec.methods}
    splits = [found[seed].split.report for seed in seeds]
    draws = matched.make_draws([len(rows) for rows in splits], RESAMPLES, seed=0)
    samples = {}
    for method, by_seed in chosen.items():
        places = [by_seed[seed]["checkpoints"] for seed in seeds]
        entry: dict[str, Any] = {"seeds": {str(seed): by_seed[seed] for seed in seeds}, "levels": {}}
        for level in spec.levels:
            rows = [place[str(level)]["rows"] for place in places]
            values = [place[str(level)]["report"] for place in places]
            drawn = matched.boot(rows, splits, draws)
            samples[method, level] = drawn
            low, high = np.quantile(drawn, [0.025, 0.975])
            entry["levels"][str(level)] = {
                "value": float(np.mean(values)), "low": float(low), "high": float(high), "values": values,
                "mixing": _mean([by_seed[seed]["mixing"].get(str(level), {}).get("report") for seed in seeds]),
            }  # fmt: skip
        board["methods"][method] = entry
    for name in found[seeds[0]].reference:
        models = [found[seed].reference[name] for seed in seeds]
        values = [forgetting(model["rows"], part) for model, part in zip(models, splits, strict=True)]
        utility = float(np.mean([model["utility"] for model in models]))
        board["references"][name] = {"value": float(np.mean(values)), "utility": utility}
    board["significance"] = {str(level): _matrix(samples, list(spec.methods), level) for level in spec.levels}
    return board


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _matrix(samples: dict[Any, np.ndarray], methods: list[str], level: float) -> dict[str, dict[str, float]]:
    """Holm-corrected two-sided p-values of all pairs, from the shared draws."""
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    raw = []
    for a, b in pairs:
        gap = samples[a, level] - samples[b, level]
        tail = min(((gap <= 0).sum() + 1) / (len(gap) + 1), ((gap >= 0).sum() + 1) / (len(gap) + 1))
        raw.append(min(1.0, 2 * float(tail)))
    matrix: dict[str, dict[str, float]] = {method: {} for method in methods}
    for (a, b), p in zip(pairs, matched.holm(raw), strict=True):
        matrix[a][b] = matrix[b][a] = p
    return matrix


class _Seed:
    """One seed's trials and what is chosen among them."""

    def __init__(self, spec: SweepSpec, out: Path, seed: int):
        self.spec, self.out, self.seed = spec, out, seed
        self.subject = subjects.subject(spec, out, seed)
        self.reference = subjects.references(self.subject, out / f"seed{seed}")
        self.split: Split = spec.split(len(self.reference["target"]["rows"]["truth_ratio"]))

    def choose(self, method: str) -> dict[str, Any]:
        """The best trial by validation rows at each level; the mixing definition on the strictest level's choice."""
        trials = [load(self.out, self.spec, self.seed, method, i) for i in range(self.spec.trials)]
        target, validation = self.reference["target"], self.split.validation
        stopped = [t["trial"] for t in trials if t and t["stopped"]]
        entry: dict[str, Any] = {"checkpoints": {}, "mixing": {}, "stopped": stopped}
        for level in self.spec.levels:
            places = [(matched.best_at(t["trajectory"], target, level, validation), t) for t in trials if t]
            place, trial = max(places, key=lambda found: found[0].score)
            entry["checkpoints"][str(level)] = {
                "trial": trial["trial"], "settings": trial["settings"], "step": place.step,
                "validation": place.score,
                "utility": place.utility / target["utility"], **self.report(place.rows), "rows": place.rows,
            }  # fmt: skip
        strict = str(max(self.spec.levels))
        entry["mixing"] = self.mix(method, entry["checkpoints"][strict]["trial"])
        return entry

    def report(self, rows: dict[str, list[float]]) -> dict[str, Any]:
        """Numbers on the report rows: forgetting, its parts, and the distance from the retain model."""
        part = list(self.split.report)
        found: dict[str, Any] = {"report": forgetting(rows, part)}
        found |= {name: float(np.mean(np.asarray(rows[name])[part])) for name in ROW_METRICS[:4]}
        if "retain" in self.reference:
            retain = np.asarray(self.reference["retain"]["rows"]["truth_ratio"])[part]
            found["forget_quality"] = forget_quality(np.asarray(rows["truth_ratio"])[part], retain)
        return found

    def mix(self, method: str, trial: int) -> dict[str, Any]:
        """By level: smallest share of the target that keeps it, and the forgetting of that mixture (kept on disk)."""
        import json

        folder = trial_folder(self.out, self.seed, method, trial)
        path = folder / "mixing.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        if not (folder / "model").is_dir():
            return {}
        points = mixtures(self.subject, str(folder / "model"), self.reference["target"], max(self.spec.levels))
        target = self.reference["target"]["utility"]
        ratios, utilities = [p["ratio"] for p in points], [p["utility"] for p in points]
        result = {}
        for level in self.spec.levels:
            ratio = smallest_mixing_ratio(ratios, utilities, target, level=level)
            if ratio is not None:
                point = next(p for p in points if p["ratio"] == ratio)
                result[str(level)] = {
                    "ratio": ratio,
                    "utility": point["utility"] / target,
                    **self.report(point["rows"]),
                }
        atomic_write_json(path, result)
        return result


def mixtures(subject: subjects.Subject, after: str, target: dict[str, Any], level: float) -> list[dict[str, Any]]:
    """Measured mixtures for growing shares of the target, up to the first that keeps ``level`` (at most 21)."""
    import torch

    from negpo.objectives import mix_weights

    before, model = subject.model(), subject.model(after)
    final = {name: value.detach().clone() for name, value in model.named_parameters()}
    old = dict(before.named_parameters())
    points = []
    for ratio in RATIOS:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(mix_weights(old[name], final[name], ratio=ratio))
        points.append({"ratio": ratio, **measure(model, subject.tokenizer, subject.tofu)})
        if points[-1]["utility"] >= level * target["utility"]:
            break
    return points
