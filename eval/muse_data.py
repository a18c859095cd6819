"""MUSE's evaluation sets (arXiv 2407.06460), from the Hub or a folder of ``<configuration>/<split>.json`` files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from negpo.data.rows import Row, available_names, fingerprint_rows, load_rows
from negpo.errors import ConfigError, DataError

HUB = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
SHOTS = ("forget_qa_icl", "retain_qa_icl")
TEXTS = ("forget", "retain", "holdout")  # of the configuration privleak
# configuration, split, fields that a usable row fills
SETS = {
    "verbmem": ("verbmem", "forget", ("prompt", "gt")),
    "forget_qa": ("knowmem", "forget_qa", ("question", "answer")),
    "retain_qa": ("knowmem", "retain_qa", ("question", "answer")),
    "forget_qa_icl": ("knowmem", "forget_qa_icl", ("question", "answer")),
    "retain_qa_icl": ("knowmem", "retain_qa_icl", ("question", "answer")),
    "forget": ("privleak", "forget", ("text",)),
    "retain": ("privleak", "retain", ("text",)),
    "holdout": ("privleak", "holdout", ("text",)),
}


@dataclass(frozen=True)
class MuseData:
    """Rows by set: ``verbmem``; ``forget_qa``, ``retain_qa`` and their ``_icl`` examples; texts of :data:`TEXTS`.

    ``absent`` says why a set is not there, ``empty`` how many rows of a set held no text and were left out.
    """

    source: str
    corpus: str
    sets: dict[str, list[Row]]
    absent: dict[str, str] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)

    def first(self, limit: int | None) -> "MuseData":
        """The first ``limit`` rows of every set; in-context examples stay whole."""
        sets = {name: rows if name in SHOTS else rows[:limit] for name, rows in self.sets.items()}
        return replace(self, sets=sets)

    def only(self, names: Sequence[str]) -> "MuseData":
        """The sets ``names`` alone."""
        sets = {name: rows for name, rows in self.sets.items() if name in names}
        return replace(self, sets=sets, absent=self.absent | dict.fromkeys(set(self.sets) - set(sets), "not asked for"))

    @property
    def overlap(self) -> int:
        """Texts of the forget set that also stand in the holdout set: they pull every AUC towards one half."""
        unseen = {row["text"].strip() for row in self.sets.get("holdout", [])}
        return sum(row["text"].strip() in unseen for row in self.sets.get("forget", []))

    def describe(self) -> dict[str, Any]:
        """Counts and content hashes, for the manifest."""
        return {
            "source": self.source,
            "corpus": self.corpus,
            "rows": {name: len(rows) for name, rows in self.sets.items()},
            "empty": self.empty,
            "sha256": {name: fingerprint_rows(rows) for name, rows in self.sets.items()},
        }


def load_muse(corpus: str, source: str | Path | None = None) -> MuseData:
    """Load and check every set; ``source`` None is the corpus on the Hub.

    Rows whose text is empty are left out and counted; a missing set is recorded in ``absent``. Raises ConfigError for
    an unknown corpus, DataError when nothing of MUSE is there, a set holds nothing but empty rows, a field is missing
    or mistyped, or the forget texts are the holdout texts.
    """
    if corpus not in HUB:
        raise ConfigError(f"corpus={corpus!r} is not one of {', '.join(HUB)}")
    source = str(source or HUB[corpus])
    names = available_names(source)
    sets: dict[str, list[Row]] = {}
    absent: dict[str, str] = {}
    empty: dict[str, int] = {}
    for key, (name, split, fields) in SETS.items():
        if name not in names or (Path(source).is_dir() and not _has_split(Path(source) / name, split)):
            absent[key] = f"{source} has no {name}/{split}"
            continue
        rows, skipped = _usable(
            load_rows(source, name=name, split=split, required=()), fields, f"{source} ({name}/{split})"
        )
        sets[key] = rows
        if skipped:
            empty[key] = skipped
    if not sets:
        raise DataError(
            f"neither verbmem, knowmem nor privleak is there; found: {', '.join(sorted(names))}", file=source
        )
    data = MuseData(source, corpus, sets, absent, empty)
    if data.overlap and data.overlap == len(sets["forget"]):
        raise DataError("every forget text is a holdout text: there is nothing to tell apart", file=source)
    return data


def _has_split(folder: Path, split: str) -> bool:
    return any(path.stem == split or path.stem.startswith(f"{split}-0") for path in folder.glob(f"{split}*"))


def _usable(rows: list[Row], fields: Sequence[str], label: str) -> tuple[list[Row], int]:
    """Rows whose fields all hold text, and how many hold an empty one."""
    kept = []
    for index, row in enumerate(rows):
        for name in fields:
            if not isinstance(row.get(name), str):
                found = type(row.get(name)).__name__ if name in row else "no such field"
                raise DataError(f"expected text, found {found}", file=label, row=index, field=name)
        if all(row[name].strip() for name in fields):
            kept.append(row)
    if not kept:
        raise DataError(f"all {len(rows)} rows are empty", file=label)
    return kept, len(rows) - len(kept)
