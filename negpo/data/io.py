"""Writing that is never half done, and JSON lines that survive a kill.

A file written here either has its old content or its complete new content: data goes to a temporary file in the same
folder, is flushed to the disk, and then takes the name in one step. JSON is strict: NaN and infinities become the
strings "NaN", "Infinity" and "-Infinity", which ``float()`` reads back.
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from negpo.errors import DataError


def atomic_write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write ``content`` (text is UTF-8) under ``path``. Raises DataError when the disk is full or not writable."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"could not be written ({error.strerror}); nothing was changed. Free some space or choose another folder",
            file=str(path),
        ) from error
    return path


def atomic_write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> Path:
    """Write ``value`` as strict JSON; numpy scalars and arrays, paths and sets of strings are converted."""
    return atomic_write(path, json.dumps(strict(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: str | os.PathLike, *rows: dict[str, Any]) -> None:
    """Append rows as JSON lines in one write, then flush to the disk. A torn last line is removed first."""
    path = Path(path)
    text = "".join(json.dumps(strict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        repair_jsonl(path)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"could not be appended to ({error.strerror}); rows written before are kept. Free some space and run again",
            file=str(path),
        ) from error


def read_jsonl(path: str | os.PathLike, *, repair: bool = True) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file.

    With ``repair`` a last line that a killed process left incomplete is cut from the file. Any other unreadable line
    raises DataError with its line number (counted from 1).
    """
    path = Path(path)
    if repair:
        repair_jsonl(path)
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(parse_json_line(line, str(path), number))
    return rows


def parse_json_line(line: str, file: str, number: int) -> Any:
    """One JSON value; DataError names the file and the line, counted from 1."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        shown = line.strip()[:60]
        raise DataError(
            f"line {number} is not readable as JSON ({error.msg} at column {error.colno}): {shown!r}. Fix or delete it",
            file=file,
        ) from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object of a file. DataError, in one line, for whatever else is there."""
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # bad syntax; more digits or brackets than Python reads
        raise DataError(f"not readable as JSON ({_first_line(error)})", file=str(path)) from error
    return _mapping(value, path)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping of a YAML file, ``{}`` for an empty one. DataError, in one line, for whatever else is there.

    A key that stands twice is refused: YAML would take the last one without a word.
    """
    import yaml

    class OnceLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            if twice := [key for i, key in enumerate(keys) if isinstance(key, str) and key in keys[:i]]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice[0]!r} stands there twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(_text(path), OnceLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise DataError(f"not readable as YAML ({place}{problem})", file=str(path)) from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # impossible dates, unhashable keys
        raise DataError(f"not readable as YAML ({_first_line(error)})", file=str(path)) from error
    return {} if value is None else _mapping(value, path)


def _text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start}); convert the file to UTF-8", file=str(path)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"the file cannot be read ({reason})", file=str(path)) from error


def _mapping(value: Any, path: str | os.PathLike) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"expected keys with values, found {type(value).__name__}", file=str(path))
    if unusual := [key for key in value if not isinstance(key, str)]:
        raise DataError(f"the key {unusual[0]!r} is not text; put it in quotes", file=str(path))
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def repair_jsonl(path: Path) -> None:
    """Make the file end in a complete line: cut a torn last line, or add the newline a complete one lacks."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        try:
            json.loads(content[start:].decode("utf-8"))
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")


def strict(value: Any) -> Any:
    """A copy of ``value`` that is strict JSON: plain containers, and strings for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, CPU tensors
        return strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _umask() -> int:
    """The process's file mode mask; there is no way to read it without setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
