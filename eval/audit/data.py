"""The rows of an audit: TOFU's sets, or plain question-answer files; overlaps are refused."""

from __future__ import annotations

from pathlib import Path

from negpo.data.rows import FILE_TYPES, Row, check_rows, load_rows
from negpo.errors import DataError
from negpo.eval.tofu_data import TofuData, load_tofu

PERTURBED = ("paraphrased_answer", "perturbed_answer")
SHOWN_ROWS = 5


def load_audit_data(
    forget: str | Path,
    *,
    split: str = "forget10",
    retain: str | Path | None = None,
    holdout: str | Path | None = None,
    limit: int | None = None,
) -> TofuData:
    """Load and check the sets of an audit.

    Args:
        forget: a folder or Hub id in TOFU's schema, of which ``split`` is the forget set, or a file with rows of
            ``question`` and ``answer``. Rows that all bring ``paraphrased_answer`` and ``perturbed_answer`` get a truth
            ratio too.
        retain, holdout: files or Hub ids with such rows; they take the place of the folder's own.
        limit: first rows of every set only.

    Raises:
        DataError: unreadable rows, empty texts, or rows of the forget set that also stand in another set.
    """
    if Path(forget).is_file() or Path(forget).suffix in FILE_TYPES:
        data = _from_file(Path(forget))
    else:
        data = load_tofu(forget, split)
    for name, source in (("retain", retain), ("holdout", holdout)):
        if source is not None:
            data.sets[name] = _plain_rows(source, data.absent)
            data.absent.pop(name, None)
    data = data.first(limit)
    for name in ("retain", "holdout"):
        refuse_overlap(data, name)
    return data


def refuse_overlap(data: TofuData, name: str) -> None:
    """Raise DataError when rows of the set ``name`` are rows of the forget set: its numbers would mean nothing."""
    forget = {_content(row): index for index, row in enumerate(data.sets["forget"])}
    others = [(index, _content(row)) for index, row in enumerate(data.sets.get(name, ()))]
    pairs = [(index, forget[content]) for index, content in others if content in forget]
    if pairs:
        shown = ", ".join(f"{name} row {index} = forget row {other}" for index, other in pairs[:SHOWN_ROWS])
        more = f" and {len(pairs) - SHOWN_ROWS} more" if len(pairs) > SHOWN_ROWS else ""
        raise DataError(
            f"{len(pairs)} rows of the {name} set are also in the forget set: {shown}{more} (counted from 0). "
            "Remove them from one of the two",
            file=data.source,
        )


def _from_file(path: Path) -> TofuData:
    reasons = {
        "retain": "--forget is a plain file and no --retain-data was given",
        "holdout": "--forget is a plain file and no --holdout was given: membership inference needs rows that no model "
        "was trained on",
        "real_authors": "--forget is a plain file, not a folder in TOFU's schema",
        "world_facts": "--forget is a plain file, not a folder in TOFU's schema",
    }
    return TofuData(str(path), path.stem, {"forget": _plain_rows(path, reasons)}, reasons)


def _plain_rows(source: str | Path, absent: dict[str, str]) -> list[Row]:
    """Checked rows; perturbed answers are kept only where every row has them, else ``absent`` says so."""
    rows = load_rows(source)
    if all(name in row for row in rows for name in PERTURBED):
        check_rows(rows, str(source), required=PERTURBED[:1], required_lists=PERTURBED[1:])
        if len({len(row["perturbed_answer"]) for row in rows}) == 1:
            return rows
    absent["perturbed"] = (
        f"{source} has rows without paraphrased_answer or without perturbed_answer lists of one length: no truth ratio"
    )
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _content(row: Row) -> tuple[str, str]:
    """Question and answer up to case and blanks."""
    question, answer = (" ".join(row[field].casefold().split()) for field in ("question", "answer"))
    return question, answer
