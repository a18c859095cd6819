"""The real TOFU questions as a lab: forget01 geometry at a size that two cores can train.

The published data holds 200 authors. A lab-size model is fine-tuned on the first `authors` of them, whose paraphrases
TOFU publishes as `retain_perturbed`, and on the two authors of forget01. All others stand in for pre-training: they
teach the language of these answers, in both wordings where a paraphrase is published, and are never evaluated.
"""

from __future__ import annotations

from pathlib import Path

from negpo.data.rows import load_lines, load_rows
from negpo.errors import ConfigError, DataError
from negpo.lab.world import World

ROWS_PER_AUTHOR = 20
FORGET_ROWS = 40
PERTURBED_ROWS = 400
PASSES = 2


def tofu_world(folder: str | Path, *, authors: int = 20) -> World:
    """A `World` read from a folder with the published TOFU files (`full.json`, `forget10_perturbed.json`, ...).

    Args:
        authors: how many of the first authors are learned and kept, 1 to 20 (those with published paraphrases).

    Raises:
        ConfigError: `authors` out of range.
        DataError: a file is missing, unreadable, or not the published one.
    """
    if not 1 <= authors <= PERTURBED_ROWS // ROWS_PER_AUTHOR:
        raise ConfigError(f"authors={authors}: TOFU publishes paraphrases for the first 20; choose 1 to 20")
    full = load_rows(folder, name="full")
    perturbed = load_rows(folder, name="forget10_perturbed", required_lists=("perturbed_answer",))
    if len(full) != 4000 or len(perturbed) != PERTURBED_ROWS:
        found = f"{len(full)} and {len(perturbed)}"
        raise DataError(f"full has 4000 rows and forget10_perturbed 400 in TOFU, found {found}", file=str(folder))
    kept = authors * ROWS_PER_AUTHOR
    forget, retain = full[-FORGET_ROWS:], full[:kept]
    sets = {name: load_rows(folder, name=f"{name}_perturbed") for name in ("real_authors", "world_facts")}
    splits = {
        "full": [*retain, *forget],
        "forget01": forget,
        "retain99": retain,
        "forget01_perturbed": perturbed[-FORGET_ROWS:],
        "retain_perturbed": load_rows(folder, name="retain_perturbed")[:kept],
        **{f"{name}_perturbed": rows for name, rows in sets.items()},
    }
    paraphrased = [
        {"question": row["question"], "answer": row["paraphrased_answer"]} for row in perturbed[:-FORGET_ROWS]
    ]
    background = [_plain(row) for row in full[PERTURBED_ROWS:-FORGET_ROWS]] + paraphrased
    return World(
        splits=splits,
        pretraining=background * PASSES,
        background_facts=len(background),
        facts=[_plain(row) for rows in sets.values() for row in rows],
        refusals=load_lines(Path(folder) / "idontknow.jsonl"),
    )


def _plain(row: dict) -> dict:
    return {"question": row["question"], "answer": row["answer"]}
