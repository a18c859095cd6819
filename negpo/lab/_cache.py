"""Folders that are built once: filled under another name, renamed when complete, found by their name afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json

MANIFEST = "lab.json"


def source_hash(names: Iterable[str]) -> str:
    """SHA-256 over source files of this package."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def settings_key(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def build_once(root: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Make `root` by `fill(folder)`, which returns the manifest; nothing is done where the manifest exists.

    The folder appears in one rename at the end: a killed build leaves nothing that could be mistaken for a whole one.
    """
    if (root / MANIFEST).exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=root.parent))
    try:
        atomic_write_json(work / MANIFEST, fill(work))
        if not root.exists():  # another process may have built the same meanwhile; both are identical
            work.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
