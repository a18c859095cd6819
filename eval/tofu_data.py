"""TOFU's evaluation sets, from the Hub (locuslab/TOFU) or a folder with ``<configuration>.json`` files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negpo.data.rows import Row, available_names, fingerprint_rows, load_rows
from negpo.errors import ConfigError, DataError

PREFIX = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
FIXED = {"retain": "retain_perturbed", "real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
PARAPHRASED = ("forget", "retain")  # real authors and world facts have no paraphrase: their answer takes its place


@dataclass(frozen=True)
class TofuData:
    """Rows by set: ``forget``, ``retain``, ``real_authors``, ``world_facts``, ``holdout``.

    ``absent`` says why a set, or the perturbed answers of the forget set, are not there.
    """

    source: str
    forget: str
    sets: dict[str, list[Row]]
    absent: dict[str, str] = field(default_factory=dict)

    def first(self, limit: int | None) -> "TofuData":
        """The first ``limit`` rows of every set."""
        sets = {name: rows[:limit] for name, rows in self.sets.items()}
        return TofuData(self.source, self.forget, sets, self.absent)

    def describe(self) -> dict[str, Any]:
        """Counts and content hashes, for the manifest."""
        return {
            "source": self.source,
            "forget": self.forget,
            "rows": {name: len(rows) for name, rows in self.sets.items()},
            "sha256": {name: fingerprint_rows(rows) for name, rows in self.sets.items()},
        }


def load_tofu(source: str | Path, forget: str = "forget10") -> TofuData:
    """Load and check everything the metrics need.

    ``forgetXX_perturbed`` is used when it exists, else ``forgetXX`` (then truth ratio and forget quality are not
    available). Missing retain, real-author, world-fact or ``holdoutXX`` sets are recorded in ``absent``. Raises
    ConfigError for a name that is no forget split, DataError when the forget set is missing or any row is unusable.
    """
    if not forget.startswith("forget"):
        raise ConfigError(f"forget={forget!r} is no forget split; TOFU has forget01, forget05 and forget10")
    names = available_names(source)
    sets: dict[str, list[Row]] = {}
    absent: dict[str, str] = {}
    if f"{forget}_perturbed" in names:
        sets["forget"] = _load(source, f"{forget}_perturbed", paraphrased=True)
    elif forget in names:
        sets["forget"] = load_rows(source, name=forget)
        absent["perturbed"] = f"{source} has {forget} but no {forget}_perturbed, so no perturbed answers"
    else:
        found = ", ".join(sorted(names)) or "nothing"
        raise DataError(f"neither {forget}_perturbed nor {forget} is there; found: {found}", file=str(source))
    for key, name in FIXED.items():
        if name in names:
            sets[key] = _load(source, name, paraphrased=key in PARAPHRASED)
        else:
            absent[key] = f"{source} has no {name}"
    holdout = forget.replace("forget", "holdout", 1)
    if holdout in names:
        sets["holdout"] = load_rows(source, name=holdout)
    else:
        absent["holdout"] = f"{source} has no {holdout}: membership inference needs rows that no model was trained on"
    return TofuData(str(source), forget, sets, absent)


def _load(source: str | Path, name: str, *, paraphrased: bool) -> list[Row]:
    required = ("question", "answer", "paraphrased_answer") if paraphrased else ("question", "answer")
    rows = load_rows(source, name=name, required=required, required_lists=("perturbed_answer",))
    counts = {len(row["perturbed_answer"]) for row in rows}
    if len(counts) > 1:
        odd = next(i for i, row in enumerate(rows) if len(row["perturbed_answer"]) != len(rows[0]["perturbed_answer"]))
        raise DataError(
            f"{len(rows[odd]['perturbed_answer'])} perturbed answers, the rows before have "
            f"{len(rows[0]['perturbed_answer'])}; give every row the same number",
            file=f"{source} ({name})",
            row=odd,
            field="perturbed_answer",
        )
    return rows
