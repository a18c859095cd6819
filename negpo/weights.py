"""Arithmetic on checkpoint folders: task vectors, extrapolation, mixing. The formulas are in negpo.objectives."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from negpo.errors import ConfigError
from negpo.models import hash_tokenizer, load_tokenizer, local_checkpoint
from negpo.objectives import extrapolate_weight, mix_weights

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = "adapter_config.json"


def extrapolate_checkpoints(
    start: str | Path, away_from: str | Path, out: str | Path, *, weight: float, origin: str | Path | None = None
) -> Path:
    """Writes ``start - weight (away_from - origin)`` to ``out``; ``origin`` None is ``start`` (Neon's line).

    With ``origin`` the model before and ``away_from`` its fine-tune on forget rows this is the negated task vector.
    Raises ConfigError for checkpoints that are adapters, hold other tensors or have another tokenizer.
    """
    folders = [start, away_from] if origin is None else [start, away_from, origin]

    def line(tensors: Sequence[Tensor]) -> Tensor:
        return extrapolate_weight(*tensors, weight=weight)

    recipe = {"start": str(start), "away_from": str(away_from), "origin": str(origin or start), "weight": weight}
    return _combine(folders, out, line, recipe)


def mix_checkpoints(before: str | Path, after: str | Path, out: str | Path, *, ratio: float) -> Path:
    """Writes ``ratio before + (1 - ratio) after`` to ``out``. Raises as ``extrapolate_checkpoints`` does."""
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio is {ratio}; it is the share of the model before unlearning, in [0, 1]")
    recipe = {"before": str(before), "after": str(after), "ratio": ratio}
    return _combine([after, before], out, lambda pair: mix_weights(pair[1], pair[0], ratio=ratio), recipe)


def _combine(
    folders: Sequence[str | Path],
    out: str | Path,
    make: Callable[[Sequence[Tensor]], Tensor],
    recipe: dict[str, object],
) -> Path:
    """File by file and tensor by tensor, in the layout of the first checkpoint; the folder appears when it is whole."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    places = [_checked(name) for name in folders]
    _check_tokenizers(folders)
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another folder")
    homes = [_homes(place) for place in places]
    for name, home in zip(folders[1:], homes[1:], strict=True):
        if different := sorted(set(home) ^ set(homes[0])):
            raise ConfigError(f"{name} and {folders[0]} do not hold the same tensors, first {different[0]}")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".combining-", dir=out.parent))
    try:
        for file in sorted(set(homes[0].values())):
            with safe_open(places[0] / file, framework="pt") as first:
                tensors = {}
                for key in first.keys():  # noqa: SIM118 (safe_open is no mapping)
                    others = [_read(place, home[key], key) for place, home in zip(places[1:], homes[1:], strict=True)]
                    found = [first.get_tensor(key), *others]
                    if len({tuple(tensor.shape) for tensor in found}) > 1:
                        raise ConfigError(f"{key} has shapes {[tuple(t.shape) for t in found]} in the checkpoints")
                    tensors[key] = make(found).contiguous()
                save_file(tensors, work / file, metadata=first.metadata() or {"format": "pt"})
        for path in places[0].iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name != "negpo_train.json":
                shutil.copy2(path, work / path.name)
        (work / "negpo_arithmetic.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _checked(name: str | Path) -> Path:
    place = local_checkpoint(name)
    if (place / ADAPTER).is_file():
        raise ConfigError(
            f"{name} is an adapter: its factors A and B do not add up, their product does. Merge it into its base "
            "first (peft: merge_and_unload)"
        )
    if not any((place / weights).is_file() for weights in WEIGHTS):
        raise ConfigError(f"{name} holds no model.safetensors")
    return place


def _homes(place: Path) -> dict[str, str]:
    """Which file of a checkpoint holds which tensor."""
    from safetensors import safe_open

    index = place / WEIGHTS[1]
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(place / WEIGHTS[0], framework="pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS[0])


def _read(place: Path, file: str, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(place / file, framework="pt") as opened:
        return torch.as_tensor(opened.get_tensor(key))


def _check_tokenizers(folders: Sequence[str | Path]) -> None:
    hashes = [hash_tokenizer(load_tokenizer(name)) for name in folders]
    for name, found in zip(folders[1:], hashes[1:], strict=True):
        if found != hashes[0]:
            raise ConfigError(
                f"{name} and {folders[0]} have different tokenizers: the same row of their embeddings is another token"
            )
