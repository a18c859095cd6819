"""What a harness returns and leaves in its folder: numbers by name, and everything needed to read them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write, atomic_write_json, strict


@dataclass
class EvalResult(Mapping[str, float]):
    """Metric values by name, with ``missing`` reasons, ``details``, ``per_item`` rows and the ``manifest``."""

    metrics: dict[str, float]
    missing: dict[str, str]
    details: dict[str, Any]
    per_item: list[dict[str, Any]]
    manifest: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def save(self, folder: str | Path) -> Path:
        """Write ``rows.jsonl``, then ``summary.json``, whose presence says that the result is complete."""
        lines = (json.dumps(strict(row), ensure_ascii=False, allow_nan=False) for row in self.per_item)
        atomic_write(Path(folder) / "rows.jsonl", "\n".join(lines) + "\n")
        summary = {key: getattr(self, key) for key in ("metrics", "missing", "details", "manifest")}
        return atomic_write_json(Path(folder) / "summary.json", summary)
