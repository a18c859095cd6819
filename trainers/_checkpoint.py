"""Checkpoints that are either complete or absent.

The Trainer writes a checkpoint file by file. A run killed in between leaves a folder that looks usable, so a finished
checkpoint is sealed: the last file written lists every other file with its size. Folders without a matching seal are
not resumed from.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError

logger = logging.getLogger(__name__)
SEAL = "negpo_checkpoint.json"


def seal(folder: Path, provenance: dict[str, Any]) -> None:
    """Mark ``folder`` complete. ``provenance`` (data and reference hashes) is compared on resume."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(SEAL, None)
    atomic_write_json(folder / SEAL, {"files": files, "provenance": provenance})


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is complete."""
    try:
        files = json.loads((folder / SEAL).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} is missing or unreadable: saving was interrupted"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or not {size} bytes long"
    return None


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SEAL).read_text())["provenance"]


def last_complete(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint-N under ``output_dir``; damaged ones are passed over with a warning."""
    numbered = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*") if (match := _number(path))]
    for _, path in sorted(numbered, reverse=True):
        if (problem := damage(path)) is None:
            return path
        logger.warning("not resuming from %s: %s", path, problem)
    return None


def resolve(resume: str | Path | bool | None, output_dir: str | Path) -> str | None:
    """The folder to resume from; None to start at the beginning.

    ``True`` is the newest complete one, which must exist; "auto" the same, or the beginning where there is none (for
    jobs that a scheduler starts again). A named one must be complete.
    """
    if not resume:
        return None
    if resume is True or resume == "auto":
        found = last_complete(output_dir)
        if found is None and resume == "auto":
            return None
        if found is None:
            raise ConfigError(f"nothing to resume: there is no complete checkpoint-N in {output_dir}")
        return str(found)
    if problem := damage(Path(resume)):
        found = last_complete(Path(resume).parent)
        instead = f"resume from {found}" if found else "there is no other; start again"
        raise ConfigError(f"cannot resume from {resume}: {problem}. Instead: {instead}")
    return str(resume)


def check_provenance(folder: str, current: dict[str, Any]) -> None:
    """ConfigError when the checkpoint belongs to other data or to another starting model."""
    saved = provenance(Path(folder))
    differing = [name for name in current if saved.get(name) != current[name]]
    if differing:
        raise ConfigError(
            f"cannot resume from {folder}: {' and '.join(differing)} differ from those of the run that saved it. Pass "
            "the same rows, settings and *starting* model (not the checkpoint) as in the first run"
        )


def _number(path: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)
