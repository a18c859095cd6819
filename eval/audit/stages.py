"""Finished stages on disk: what is there under the same identity, and still sealed, is not computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import negpo
from negpo.data.io import atomic_write_json, strict
from negpo.data.seal import opened, sealed
from negpo.eval.audit.sharding import Ranks

logger = logging.getLogger(__name__)
MEASURING = ("eval", "logprobs", "data", "rollout", "models.py")  # packages and modules that decide the stored values


@cache
def code_sha256() -> str:
    """SHA-256 over the source that measures; part of every identity, so new code never meets old values."""
    return source_sha256(Path(negpo.__file__).parent)


def source_sha256(package: Path) -> str:
    """SHA-256 over names and contents of all Python files of :data:`MEASURING` below ``package``, at any depth."""
    places = [package / name for name in MEASURING]
    files = [path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(package).as_posix()} {content}\n".encode())
    return digest.hexdigest()


@dataclass
class Stages:
    """Stages of one model under ``folder``; ``seconds`` by stage are those of the computation, also when reloaded."""

    folder: Path
    identity: Mapping[str, Any]
    ranks: Ranks
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The JSON value of stage ``name``: read from its file, or computed by all ranks together and kept.

        ``settings`` and the model's identity name the file, so another model, data set or setting never meets it.
        """
        stored = self._stored(name, settings)
        if stored is None:
            started = time.perf_counter()
            value = strict(compute())
            stored = self._keep(name, settings, value, time.perf_counter() - started)
        self.seconds[name] = stored["seconds"]
        return stored["value"]

    def run_each(self, tasks: Mapping[str, Mapping[str, Any]], compute: Callable[[str], Any]) -> dict[str, Any]:
        """Stages that are computed whole by one rank each: the values of ``compute(name)`` by name.

        ``tasks`` gives every stage's settings. As many as there are ranks run side by side, then are kept.
        """
        stored = {name: self._stored(name, settings) for name, settings in tasks.items()}
        left = [name for name, found in stored.items() if found is None]
        for start in range(0, len(left), self.ranks.world):
            names = left[start : start + self.ranks.world]
            for name, (value, seconds) in zip(names, self.ranks.map(_timed(compute), names), strict=True):
                stored[name] = self._keep(name, tasks[name], value, seconds)
        found = {name: one for name, one in stored.items() if one is not None}
        self.seconds |= {name: one["seconds"] for name, one in found.items()}
        return {name: one["value"] for name, one in found.items()}

    def _stored(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What rank 0 finds, on every rank."""
        return self.ranks.from_main(_read(*self._path(name, settings)) if self.ranks.main else None)

    def _keep(self, name: str, settings: Mapping[str, Any], value: Any, seconds: float) -> dict[str, Any]:
        path, identity = self._path(name, settings)
        content = sealed({"identity": identity, "value": value, "seconds": seconds})
        if self.ranks.main:
            atomic_write_json(path, content, indent=None)
        return content

    def _path(self, name: str, settings: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        identity = strict({"code": code_sha256(), "stage": name, **self.identity, **settings})
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{name}-{digest}.json", identity


def _timed(compute: Callable[[str], Any]) -> Callable[[str], tuple[Any, float]]:
    def timed(name: str) -> tuple[Any, float]:
        started = time.perf_counter()
        return strict(compute(name)), time.perf_counter() - started

    return timed


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stage's content; None, and a warning, for a file that is not what was written: it is computed again."""
    try:
        content = opened(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if content is None or content.get("identity") != identity:
        logger.warning("%s was changed after it was written, or is damaged: this stage is computed again", path)
        return None
    return content
