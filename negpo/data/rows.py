"""Rows of a data set from a file, a folder or the Hub, checked before anything is computed from them.

Every complaint names the file, the row (counted from 0, blank lines not counted) and the field.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from negpo.data.io import parse_json_line
from negpo.errors import DataError

FILE_TYPES = (".json", ".jsonl", ".parquet", ".txt")

Row = dict[str, Any]


def load_rows(
    source: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    required: Sequence[str] = ("question", "answer"),
    required_lists: Sequence[str] = (),
) -> list[Row]:
    """Read and check a data set.

    Args:
        source: a ``.json`` (an array, or one object per line as TOFU's files are), ``.jsonl``, ``.parquet`` or ``.txt``
            file; plain texts (a line of ``.txt``, a string in MUSE's arrays) become ``{"text": …}``; a folder that
            holds ``<name>.<type>``, ``<name>/<split>*.<type>`` or a dataset card; or a Hub id.
        name: the configuration, e.g. ``forget10_perturbed``.
        split: the split, for the Hub and for folders of splits.
        required: fields that must hold non-empty text in every row.
        required_lists: fields that must hold a non-empty list of non-empty texts in every row.

    Raises:
        DataError: nothing there, an unreadable line, an empty file, or a row that lacks what is required.
    """
    path = Path(source)
    if path.is_dir():
        file = find_file(path, name, split)
        rows, label = (read_file(file), str(file)) if file else _load_with_datasets(str(path), name, split)
    elif path.is_file() or path.suffix in FILE_TYPES:
        rows, label = read_file(path), str(path)
    else:
        rows, label = _load_with_datasets(str(source), name, split)
    check_rows(rows, label, required=required, required_lists=required_lists)
    return rows


def find_file(folder: Path, name: str | None, split: str = "train") -> Path | None:
    """The file of configuration ``name`` in a local folder: ``<name>.<type>``, else ``<name>/<split>*.<type>``."""
    if name is not None and Path(name).name != name:
        raise DataError(f"the configuration name {name!r} is not a plain name", file=str(folder))
    for suffix in FILE_TYPES:
        if (path := folder / f"{name or split}{suffix}").is_file():
            return path
    parent = folder / name if name else folder / "data"
    for suffix in FILE_TYPES:
        if (path := parent / f"{split}{suffix}").is_file():  # MUSE has forget_qa beside forget_qa_icl
            return path
    for suffix in FILE_TYPES:
        if matches := sorted(parent.glob(f"{split}*{suffix}")):
            if len(matches) > 1:
                raise DataError(f"{len(matches)} files fit split {split!r}; join them or name one", file=str(parent))
            return matches[0]
    return None


def available_names(source: str | Path) -> set[str]:
    """Names of the configurations in a folder (its data files, sub-folders and dataset card) or of a Hub id."""
    path = Path(source)
    names: set[str] = set()
    if path.is_dir():
        names = {entry.stem for entry in path.iterdir() if entry.suffix in FILE_TYPES or entry.is_dir()}
        if not (path / "README.md").is_file():
            return names
    import datasets

    try:
        return names | set(datasets.get_dataset_config_names(str(source)))
    except Exception as error:  # many kinds, as in _load_with_datasets
        if names:
            return names
        raise DataError(f"no such local folder, and datasets could not list it: {error}", file=str(source)) from error


def read_file(path: Path) -> list[Row]:
    """Rows of one local file, by its type; not yet checked for fields."""
    if not path.is_file():
        raise DataError("there is no such file; check the path", file=str(path))
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start}); convert the file to UTF-8", file=str(path)) from error
    if path.suffix == ".txt":
        return [{"text": line.strip()} for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith("["):
        return _read_array(text, path)
    # split on "\n" only: other separators that splitlines() knows may stand inside a JSON string
    return [parse_json_line(line, str(path), i) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]


def load_lines(path: str | Path) -> list[str]:
    """Non-empty lines of a text file whatever its suffix (TOFU's ``idontknow.jsonl`` is plain text)."""
    path = Path(path)
    if not path.is_file():
        raise DataError("there is no such file; check the path", file=str(path))
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError("the file holds no text", file=str(path))
    return lines


def check_rows(
    rows: Sequence[Any], file: str, *, required: Sequence[str] = (), required_lists: Sequence[str] = ()
) -> None:
    """Raise DataError at the first row that is no object or whose required fields are missing, empty or mistyped."""
    if not rows:
        raise DataError("the file holds no rows", file=file)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"expected an object with named fields, found {_shown(row)}", file=file, row=index)
        for field in required:
            _check_text(_value(row, field, file, index), file, index, field)
        for field in required_lists:
            values = _value(row, field, file, index)
            if not isinstance(values, list) or not values:
                raise DataError(f"expected a list of texts, found {_shown(values)}", file=file, row=index, field=field)
            for value in values:
                _check_text(value, file, index, field)


def fingerprint_rows(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows in their order; the order of fields inside a row does not matter."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8"))
        digest.update(b"\n")
    return digest.hexdigest()


def _value(row: Row, field: str, file: str, index: int) -> Any:
    if row.get(field) is None:
        present = ", ".join(map(str, row)) or "none"
        raise DataError(f"the field is missing; fields present: {present}", file=file, row=index, field=field)
    return row[field]


def _check_text(value: Any, file: str, index: int, field: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"expected text, found {_shown(value)}", file=file, row=index, field=field)
    if not value.strip():
        raise DataError("the text is empty; fill it in or remove the row", file=file, row=index, field=field)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _read_array(text: str, path: Path) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"line {error.lineno} is not readable as JSON ({error.msg})", file=str(path)) from error
    return [{"text": row} if isinstance(row, str) else row for row in rows]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable parquet file ({error})", file=str(path)) from error


def _load_with_datasets(source: str, name: str | None, split: str) -> tuple[list[Row], str]:
    """Through ``datasets.load_dataset``: Hub ids, and local folders described by a dataset card."""
    import datasets

    label = f"{source} ({name or 'default'}, {split})"
    if Path(source).is_dir() and not (Path(source) / "README.md").is_file():
        wanted = f"{name or split}.json"
        raise DataError(f"the folder holds no {wanted} (or .jsonl, .parquet, .txt) and no dataset card", file=label)
    try:
        return list(datasets.load_dataset(source, name, split=split)), label
    except Exception as error:  # the libraries below raise many kinds; none of their messages names our setting
        raise DataError(f"no such local file or folder, and datasets could not load it: {error}", file=label) from error
