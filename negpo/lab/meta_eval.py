"""`negpo meta-eval`: are the metrics right? Pools of models that know (P) and do not (N), and what breaks a metric.

Faithfulness: the AUC with which a metric separates the pools. Robustness (arXiv 2506.12618, sec. 4): Q, whether its
value survives rounding the weights to NF4, and R, whether models that do not show the knowledge relearn it no faster
than the retain model does. Only models that look ignorant (below the metric's best threshold) enter Q and R.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.eval.attacks.quantise import quantise_nf4_
from negpo.eval.meta_metrics import faithfulness, harmonic, quantisation_robustness, relearning_robustness
from negpo.eval.statistics import auc_interval
from negpo.eval.tofu import load_tofu
from negpo.lab.sweep.measure import ROW_METRICS, measure
from negpo.lab.sweep.subjects import FineTuneTrainer
from negpo.models import hash_tokenizer, load_causal_lm, load_tokenizer

METRICS = ROW_METRICS[:4]
RESULT_FILE = "meta_eval.json"


@dataclass(frozen=True)
class Pools:
    """Model folders or ids. ``positive`` know the forget set, ``negative`` do not, ``unlearned`` are judged by Q and R;
    ``retain`` is the model that R compares with (default: the first negative)."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    data: str
    forget: str
    unlearned: tuple[str, ...] = ()
    retain: str | None = None
    relearn_epochs: int = 1
    relearn_lr: float = 2e-5

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            pool = getattr(self, name)
            if len(pool) < 2:
                raise ConfigError(f"the {name} pool has {len(pool)} model(s); an AUC needs at least 2, better 20")
            if len(set(pool)) < len(pool):
                raise ConfigError(f"the {name} pool names a model twice")
        if shared := sorted(set(self.positive) & set(self.negative)):
            raise ConfigError(f"{shared[0]} stands in both pools: a model knows the forget set or it does not")


def run_meta_eval(pools: Pools, out: str | Path) -> dict[str, Any]:
    """Measure all models (each result is kept, so a killed call goes on) and write ``meta_eval.json``; returns it.

    Raises ConfigError for models with different tokenizers.
    """
    out = Path(out)
    names = [*pools.positive, *pools.negative, *pools.unlearned]
    _check_tokenizers(names)
    scores = {name: _scores(pools, name, out) for name in dict.fromkeys(names)}
    result: dict[str, Any] = {"models": len(scores), "metrics": {}}
    changed = {name: _changed(pools, name, out) for name in pools.unlearned}
    retain = pools.retain or pools.negative[0]
    base = _changed(pools, retain, out) | {"before": _scores(pools, retain, out)} if pools.unlearned else {}
    for metric in METRICS:
        high, low = ([scores[name][metric] for name in pool] for pool in (pools.positive, pools.negative))
        found = faithfulness(high, low)
        interval = auc_interval(low, high) if min(len(high), len(low)) >= 3 else (float("nan"), float("nan"))
        entry: dict[str, Any] = {"auc": found.auc, "auc_interval": list(interval), "threshold": found.threshold}
        ignorant = [name for name in pools.unlearned if scores[name][metric] < found.threshold]
        entry["judged"] = len(ignorant)
        if ignorant:
            before = [scores[name][metric] for name in ignorant]
            rounded = [changed[name]["nf4"][metric] for name in ignorant]
            relearned = [changed[name]["relearned"][metric] for name in ignorant]
            retained = base["before"][metric], base["relearned"][metric]
            entry["Q"] = float(np.mean(quantisation_robustness(before, rounded)))
            entry["R"] = float(np.mean(relearning_robustness(before, relearned, *retained)))
            entry["robustness"] = harmonic([entry["Q"], entry["R"]])
            entry["overall"] = harmonic([max(entry["auc"], 0.0), entry["robustness"]])
        result["metrics"][metric] = entry
    atomic_write_json(out / RESULT_FILE, result)
    return result


def _check_tokenizers(names: Sequence[str]) -> None:
    first = hash_tokenizer(load_tokenizer(names[0]))
    for name in names[1:]:
        if hash_tokenizer(load_tokenizer(name)) != first:
            raise ConfigError(f"{name} and {names[0]} have different tokenizers; their scores are not comparable")


def _scores(pools: Pools, name: str, out: Path, model: Any = None, state: str = "plain") -> dict[str, float]:
    """Mean of every metric over the forget rows, kept in ``out/scores``."""
    import hashlib
    import json

    identity = f"{name}|{state}|{pools.data}|{pools.forget}|{pools.relearn_epochs}|{pools.relearn_lr}"
    path = out / "scores" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["scores"]
    model = model() if model is not None else load_causal_lm(name)
    rows = measure(model, load_tokenizer(name), load_tofu(pools.data, pools.forget))["rows"]
    found = {metric: float(np.mean(rows[metric])) for metric in METRICS}
    atomic_write_json(path, {"model": name, "state": state, "scores": found})
    return found


def _changed(pools: Pools, name: str, out: Path) -> dict[str, dict[str, float]]:
    """The scores after rounding to NF4 and after relearning the forget set."""

    def rounded() -> Any:
        twin = copy.deepcopy(load_causal_lm(name))
        quantise_nf4_(twin)
        return twin

    return {
        "nf4": _scores(pools, name, out, rounded, "nf4"),
        "relearned": _scores(pools, name, out, lambda: relearned(pools, name, out), "relearned"),
    }


def relearned(pools: Pools, name: str, out: Path) -> Any:
    """The model after ``relearn_epochs`` passes over the forget rows."""
    from negpo.data.rows import load_rows

    args = FineTuneTrainer.config_class(
        output_dir=str(out / "relearning"),
        learning_rate=pools.relearn_lr,
        num_train_epochs=pools.relearn_epochs,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = FineTuneTrainer(
        model=load_causal_lm(name),
        args=args,
        train_dataset=list(load_rows(pools.data, name=pools.forget)),
        processing_class=load_tokenizer(name),
    )
    trainer.train()
    return trainer.model
