"""MUSE's scalability and sustainability: what is left of the retain knowledge after each fold of forget data.

Scalability unlearns the target separately on ``scal/forget_1`` to ``forget_4`` (nested, growing); sustainability goes
on from checkpoint to checkpoint over ``sust/forget_1`` to ``forget_4`` (disjoint). Either way there is one checkpoint
per fold; the headline is KnowMem on the retain set against the fold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.eval.muse import MuseResult

HEADLINE = "retain_knowmem_ROUGE"


def fold_rows(results: Mapping[str, MuseResult]) -> list[dict[str, Any]]:
    """One row per checkpoint, in order: ``fold`` (from 1), ``model``, every metric, and the headline's interval."""
    rows = []
    for fold, (model, result) in enumerate(results.items(), start=1):
        interval = result.details.get(HEADLINE, {}).get("interval")
        rows.append({"fold": fold, "model": model, **result.metrics, "interval": interval})
    return rows


def save_folds(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """Write ``folds.json``; returns its path."""
    return atomic_write_json(Path(folder) / "folds.json", list(rows))
