"""The picture of MUSE's folds: what is left of the retain knowledge after each fold of forget data."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write
from negpo.report._base import COLORS, DPI, new_figure


def draw_folds(rows: Sequence[Mapping[str, Any]], headline: str, folder: str | Path) -> Path | None:
    """Write ``folds.png``: metric ``headline`` of every fold with its interval. None where some fold lacks it."""
    if not all(headline in row for row in rows):
        return None
    figure, axis = new_figure()
    folds, values = [row["fold"] for row in rows], [row[headline] for row in rows]
    reach = [[abs(row["interval"][side] - row[headline]) for row in rows] for side in (0, 1)]
    axis.errorbar(folds, values, yerr=reach, marker="o", capsize=3, color=COLORS[2])
    axis.set(xlabel="fold", ylabel="KnowMem on the retain set (ROUGE-L F1)", xticks=folds, ylim=(0, None))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return atomic_write(Path(folder) / "folds.png", buffer.getvalue())
