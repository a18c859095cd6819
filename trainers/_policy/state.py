"""What a checkpoint needs beside weights and optimiser so that a resumed run is the same run, inside a window too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError


def save_state(folder: Path, rank: int, batches: list[dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write ``negpo_rollout_<rank>.safetensors`` (buffered micro-batches and other records) and ``.json``."""
    tensors = {
        f"{i}/{name}": value.contiguous().cpu() for i, batch in enumerate(batches) for name, value in batch.items()
    }
    tensors["batches"] = torch.tensor(len(batches))
    path, described = _paths(folder, rank)
    save_file(tensors, path)
    atomic_write_json(described, state)


def load_state(folder: Path, rank: int, device: torch.device) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """The counterpart of ``save_state``; ConfigError when the checkpoint has none for this process."""
    path, described = _paths(folder, rank)
    if not (path.is_file() and described.is_file()):
        raise ConfigError(
            f"cannot resume from {folder}: {path.name} is missing. Resume with as many processes as saved it, and "
            "with a method of the same kind"
        )
    tensors = load_file(path)  # not onto the device: gloo ranks call theirs cpu:0, which safetensors does not know
    batches: list[dict[str, Tensor]] = [{} for _ in range(int(tensors.pop("batches")))]
    for key, value in tensors.items():
        place, name = key.split("/", 1)
        batches[int(place)][name] = value.to(device)
    return batches, json.loads(described.read_text(encoding="utf-8"))


def _paths(folder: Path, rank: int) -> tuple[Path, Path]:
    stem = folder / f"negpo_rollout_{rank}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")
