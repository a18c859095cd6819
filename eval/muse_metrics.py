"""MUSE's numbers from continuations and per-text attack scores; no model in sight.

Names are open-unlearning's in both modes. ``muse-original`` reports ROUGE-L F1 without stemmer in percent and PrivLeak
from AUCs that are high when the *second* set looks like training data; ``open-unlearning`` reports ROUGE-L F1 with
stemmer from 0 to 1 and AUCs that are high when the forget set looks like training data.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError, DataError
from negpo.eval import metrics as m
from negpo.eval.bootstrap import bootstrap_interval
from negpo.eval.mia import Scores, attack_aucs, attack_details
from negpo.eval.muse_data import TEXTS, MuseData
from negpo.eval.statistics import roc_auc

ROUGE = {
    "verbmem": "forget_verbmem_ROUGE",
    "forget_qa": "forget_knowmem_ROUGE",
    "retain_qa": "retain_knowmem_ROUGE",
}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # Min-K% of the original evaluator
PRIVLEAK_ATTACK = "Min-40%"
PUBLISHED_AUC = {"news": 0.4772, "books": 0.5393}  # retrained Llama-2-7B, muse_bench constants.py
OVER_UNLEARNED = 0.1  # forget texts look less likely than nearly every unseen one
KIND = "negpo-muse-retain-log"

Row = dict[str, Any]


@dataclass(frozen=True)
class RetainAuc:
    """AUC of a model that never saw the forget set, in the orientation of ``mode``, and where it comes from."""

    mode: str
    corpus: str
    auc: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.auc <= 1:
            raise ConfigError(f"the retain model's AUC is {self.auc} ({self.source}); it must lie between 0 and 1")
        if self.mode == "muse-original" and self.auc == 0:
            raise ConfigError("PrivLeak divides by the retain model's AUC, which is 0; its holdout set is no holdout")

    def save(self, path: str | Path) -> Path:
        return atomic_write_json(path, {"kind": KIND, **vars(self)})

    @classmethod
    def load(cls, path: str | Path, *, mode: str, corpus: str) -> "RetainAuc":
        """Read our own file, or open-unlearning's ``MUSE_EVAL.json`` / ``MUSE_SUMMARY.json`` (its ``mia_min_k``)."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"--retain-log {path}: there is no such file") from error
        except ValueError as error:
            raise DataError(f"not readable as JSON ({error})", file=str(path)) from error
        if not isinstance(content, dict) or not ("mia_min_k" in content or content.get("kind") == KIND):
            raise DataError("holds neither a retain log of ours nor open-unlearning's mia_min_k", file=str(path))
        try:
            if content.get("kind") != KIND:
                value = content["mia_min_k"]
                auc = float(value["agg_value"] if isinstance(value, dict) else value)
                content = {"mode": "open-unlearning", "corpus": corpus, "auc": auc}
            log = cls(content["mode"], content["corpus"], float(content["auc"]), str(path))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a retain log lacks or misuses {error}; write it again", file=str(path)) from error
        for what, own, other in (("mode", log.mode, mode), ("corpus", log.corpus, corpus)):
            if own != other:
                raise ConfigError(f"the retain log {path} has {what} {own!r}, this evaluation uses {other!r}")
        return log


@dataclass
class Summary:
    """``metrics`` by name; ``missing``: why others are not there; ``details``: what a bare number hides."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def add_rouge(summary: Summary, rows: dict[str, list[Row]], data: MuseData, *, original: bool, generated: bool) -> None:
    """VerbMem and KnowMem with bootstrap intervals; adds ``rougeL_f1`` to the rows."""
    scale = 100 if original else 1
    for name, metric in ROUGE.items():
        if name not in rows or not generated:
            summary.missing[metric] = data.absent.get(name, "generation was switched off")
            continue
        for row in rows[name]:
            row |= m.rouge_scores(row["ground_truth"], row["generation"], stemmer=not original)
        values = np.array([row["rougeL_f1"] for row in rows[name]]) * scale
        summary.metrics[metric] = float(values.mean())
        summary.details[metric] = {
            "interval": list(bootstrap_interval(values)),
            "interval_method": "percentile bootstrap, 9999 resamples, seed 0, 95 %",
            "n": len(values),
            "empty_generations": sum(not row["generation"].strip() for row in rows[name]),
        }
        if name != "verbmem" and f"{name}_icl" in data.absent:
            summary.details[metric]["no_examples"] = data.absent[f"{name}_icl"]


def add_extraction(summary: Summary, rows: dict[str, list[Row]], data: MuseData, *, original: bool) -> None:
    """Extraction strength of VerbMem's continuations (open-unlearning)."""
    if original or "verbmem" not in rows:
        summary.missing["extraction_strength"] = "not part of muse-original" if original else data.absent["verbmem"]
    elif broken := _not_finite(rows["verbmem"]):
        summary.missing["extraction_strength"] = f"{broken} continuations have a loss that is not finite"
    else:
        values = [float(row["extraction_strength"]) for row in rows["verbmem"]]
        interval = list(bootstrap_interval(values))
        summary.metrics["extraction_strength"] = float(np.mean(values))
        summary.details["extraction_strength"] = {"interval": interval, "n": len(values)}


def add_privleak(
    summary: Summary, scores: dict[str, Scores], rows: dict[str, list[Row]], data: MuseData, retain: RetainAuc | None
) -> None:
    """AUCs of open-unlearning's attacks on forget against holdout, and PrivLeak from Min-K%."""
    names = ["privleak", *(f"mia_{name}" for name in ("loss", "min_k", "min_k_plus_plus", "zlib"))]
    if reason := _no_attack(rows, data):
        summary.missing |= dict.fromkeys(names, reason)
        return
    forget, holdout = scores["forget"], scores["holdout"]
    aucs, details = attack_aucs(forget, holdout), attack_details(forget, holdout)
    summary.metrics |= {f"mia_{name}": auc for name, auc in aucs.items()}
    summary.details |= {f"mia_{name}": detail for name, detail in details.items()}
    reference = retain.auc if retain else None
    summary.metrics["privleak"] = m.privleak(aucs["min_k"], reference)
    summary.details["privleak"] = {
        "auc": aucs["min_k"],
        # PrivLeak falls with this AUC; the retain model's is taken as given
        "interval": [m.privleak(bound, reference) for bound in reversed(details["min_k"]["interval"])],
        "retain_auc": 0.5 if retain is None else retain.auc,
        "retain_source": "assumed: no retain model was given" if retain is None else retain.source,
        "over_unlearned": aucs["min_k"] < OVER_UNLEARNED,
        "overlap": data.overlap,
    }


def original_scores(rows: Sequence[Row], texts: Sequence[str]) -> Scores:
    """The original evaluator's ten scores by name, each (N,) and low for likely members, from scored rows.

    ``PPL`` is the mean loss (not its exponential), ``PPL/lower`` its ratio to the loss of the lower-cased text,
    ``PPL/zlib`` its ratio to the compressed size; ``Min-K%`` is NaN for texts with fewer than 1/K tokens.
    """
    loss = np.array([float(row["nll"]) for row in rows])
    lower = np.array([float(row["lower_nll"]) for row in rows])
    table = np.array([[float(value) for value in row["muse_min_k"]] for row in rows])
    scores = {
        "PPL": loss,
        "PPL/lower": loss / lower,
        "PPL/zlib": np.array([m.zlib_score(value, text) for value, text in zip(loss, texts, strict=True)]),
    }
    return scores | {f"Min-{round(share * 100)}%": table[:, column] for column, share in enumerate(SHARES)}


def original_aucs(scores: dict[str, Scores]) -> dict[str, float]:
    """AUC of every ordered pair of sets by ``first_second_score``: high when the second looks like training data."""
    return {
        f"{first}_{second}_{name}": roc_auc(-values, -scores[second][name])
        for first, second in product(scores, repeat=2)
        for name, values in scores[first].items()
    }


def add_original_privleak(
    summary: Summary, scores: dict[str, Scores], rows: dict[str, list[Row]], data: MuseData, retain: RetainAuc | None
) -> None:
    """All AUCs into the details and PrivLeak of Min-40%, against the published retrained AUC unless one is given."""
    if reason := _no_attack(rows, data):
        summary.missing["privleak"] = reason
        return
    summary.details["auc"] = original_aucs(scores)
    details = attack_details(scores["forget"], scores["holdout"])
    for name, detail in details.items():  # same pairs, opposite orientation
        detail["interval"] = [1 - bound for bound in reversed(detail["interval"])]
        summary.details[f"forget_holdout_{name}"] = detail
    auc = summary.details["auc"][f"forget_holdout_{PRIVLEAK_ATTACK}"]
    if math.isnan(auc):
        short = sum(math.isnan(value) for name in ("forget", "holdout") for value in scores[name][PRIVLEAK_ATTACK])
        summary.missing["privleak"] = f"{short} texts are too short: 40 % of their tokens is not one token"
        return
    retain = retain or published_auc(data.corpus)
    summary.metrics["privleak"] = m.muse_privleak(auc, retain.auc)
    summary.details["privleak"] = {
        "auc": auc,
        "interval": [m.muse_privleak(bound, retain.auc) for bound in details[PRIVLEAK_ATTACK]["interval"]],
        "retain_auc": retain.auc,
        "retain_source": retain.source,
        "over_unlearned": 1 - auc < OVER_UNLEARNED,
        "overlap": data.overlap,
    }


def published_auc(corpus: str) -> RetainAuc:
    """The retrained model's AUC that the original evaluator has as a constant."""
    return RetainAuc("muse-original", corpus, PUBLISHED_AUC[corpus], "published constant for the retrained Llama-2-7B")


def _no_attack(rows: dict[str, list[Row]], data: MuseData) -> str | None:
    """Why membership inference is not possible, or None."""
    for name in ("forget", "holdout"):
        if name not in rows:
            return f"{data.absent[name]}: membership inference needs both forget and holdout texts"
    if broken := sum(_not_finite(rows[name]) for name in TEXTS if name in rows):
        return f"{broken} texts have a loss that is not finite"
    return None


def _not_finite(rows: Sequence[Row]) -> int:
    """Rows with a NaN or infinite loss, of the text or of its lower-cased form."""
    losses = [[float(row["nll"]), float(row.get("lower_nll", 0.0))] for row in rows]
    return sum(not all(map(math.isfinite, pair)) for pair in losses)
