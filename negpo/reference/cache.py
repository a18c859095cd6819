"""Token log-probs of the reference on disk: one float32 for each labelled token, memory-mapped, never half-written.

Layout of one cache (a folder named by the key's digest)::

    meta.json    the key, row and token counts, SHA-256 of the values; written last
    counts.npy   (rows,) int64, labelled tokens of each row
    logps.f32    (tokens,) float32, rows one after the other

A cache is built in a temporary folder and renamed, so a folder with the final name is complete. Opening checks the
checksums: a torn or edited file is rebuilt, a folder whose key does not match what it is asked for is refused.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from negpo.errors import DataError

logger = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that decides a reference log-prob. Two keys are equal exactly when the numbers are interchangeable."""

    rows: str
    weights: str
    tokenizer: str
    template: str
    max_length: int
    precision: str

    def digest(self) -> str:
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


class ReferenceCache:
    """Read access by row number: ``cache[i]`` is a float32 array with one log-prob for each labelled token of row i."""

    def __init__(self, folder: Path, key: ReferenceKey):
        self.folder, self.key = folder, key
        meta = _read_meta(folder)
        if meta.get("key") != asdict(key):
            raise DataError(_mismatch(folder, meta.get("key") or {}, asdict(key)), file=str(folder / "meta.json"))
        _check_file(folder / "counts.npy", meta["counts_sha256"])
        _check_file(folder / "logps.f32", meta["logps_sha256"])
        counts = np.load(folder / "counts.npy", allow_pickle=False)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._values = np.memmap(folder / "logps.f32", dtype=np.float32, mode="r", shape=(int(counts.sum()),))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.asarray(self._values[self._starts[row] : self._ends[row]])


class TornCache(Exception):
    """A file of a cache is missing, cut short or changed. Caught here; the cache is built again."""


def holds(directory: str | os.PathLike, key: ReferenceKey) -> bool:
    """Whether ``directory`` has a whole cache for ``key``."""
    try:
        ReferenceCache(Path(directory) / key.digest()[:24], key)
    except TornCache:
        return False
    return True


def build_or_open(
    directory: str | os.PathLike,
    key: ReferenceKey,
    counts: Sequence[int],
    compute: Callable[[], Iterable[tuple[int, np.ndarray]]],
) -> ReferenceCache:
    """The cache for ``key`` under ``directory``, computed when it is absent or damaged.

    ``counts[i]`` is the number of labelled tokens of row i; ``compute()`` yields ``(row, values)`` in any order, every
    row once. A full disk raises OSError before any value is computed and leaves nothing behind.
    """
    folder = Path(directory) / key.digest()[:24]
    if folder.exists():
        try:
            cache = ReferenceCache(folder, key)
            logger.info("reference log-probs: using the cache %s (%d rows)", folder, len(cache))
            return cache
        except TornCache as damage:
            logger.warning("reference log-probs: %s; computing them again", damage)
            shutil.rmtree(folder)
    _tell_about_others(Path(directory), key)
    logger.info("reference log-probs: computing %d tokens of %d rows into %s", sum(counts), len(counts), folder)
    _build(folder, key, np.asarray(counts, dtype=np.int64), compute)
    return ReferenceCache(folder, key)


def _build(folder: Path, key: ReferenceKey, counts: np.ndarray, compute) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        np.save(work / "counts.npy", counts, allow_pickle=False)
        _reserve(work / "logps.f32", 4 * int(counts.sum()))
        values = np.memmap(work / "logps.f32", dtype=np.float32, mode="r+", shape=(int(counts.sum()),))
        _fill(values, counts, compute())
        values.flush()
        meta = {
            "key": asdict(key),
            "rows": len(counts),
            "counts_sha256": _sha256(work / "counts.npy"),
            "logps_sha256": _sha256(work / "logps.f32"),
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            os.rename(work, folder)
        except OSError:
            if not (folder / "meta.json").exists():  # else another process finished the same cache first: use that one
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(values: np.ndarray, counts: np.ndarray, results: Iterable[tuple[int, np.ndarray]]) -> None:
    ends = np.cumsum(counts)
    seen = np.zeros(len(counts), dtype=bool)
    for row, logps in results:
        if len(logps) != counts[row]:
            raise ValueError(f"row {row} has {counts[row]} labelled tokens but {len(logps)} log-probs were computed")
        if not np.isfinite(logps).all():
            raise DataError(
                "the reference model gives this row a non-finite log-prob: its weights are damaged or it overflows in "
                "this dtype (try bfloat16 or float32 instead of float16)",
                row=row,
            )
        values[ends[row] - counts[row] : ends[row]] = logps
        seen[row] = True
    if not seen.all():
        raise ValueError(f"no log-probs were computed for row {int(np.argmin(seen))}")


def _reserve(path: Path, size: int) -> None:
    """Allocate real blocks: writing into a sparse memory map on a full disk kills the process instead of raising."""
    with open(path, "wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.write(bytes(size))
        os.fsync(file.fileno())


def _read_meta(folder: Path) -> dict:
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise TornCache(f"{folder / 'meta.json'} cannot be read ({error})") from error
    if not isinstance(meta, dict) or "logps_sha256" not in meta or "counts_sha256" not in meta:
        raise TornCache(f"{folder / 'meta.json'} is incomplete")
    return meta


def _check_file(path: Path, expected: str) -> None:
    if not path.exists() or _sha256(path) != expected:
        raise TornCache(f"{path} is missing or damaged (checksum differs)")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mismatch(folder: Path, found: dict, wanted: dict) -> str:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    shown = "; ".join(
        f"{name}: {_short(found.get(name))} in the cache, {_short(wanted[name])} here" for name in differing
    )
    return f"this cache was made for something else ({shown}). Delete {folder} or choose another reference_cache_dir"


def _tell_about_others(directory: Path, key: ReferenceKey) -> None:
    """Say why an existing cache of the same rows is not used."""
    for meta_file in sorted(directory.glob("*/meta.json")):
        try:
            found = json.loads(meta_file.read_text())["key"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if found.get("rows") == key.rows:
            logger.warning("reference log-probs: not used, %s", _mismatch(meta_file.parent, found, asdict(key)))


def _short(value: object) -> str:
    return str(value)[:12]
