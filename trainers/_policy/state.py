"""What a checkpoint needs beside weights and optimiser so that a resumed run is the same run, inside a window too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.displacement import DisplacementProbe
from negpo.trainers._policy.guard import StepGuard
from negpo.trainers._policy.rollouts import PromptStream, RolloutSource


class LastingState:
    """Owner of what lives longer than a step: place in the seeds and prompts, guards, probe, buffered micro-batches."""

    def __init__(self, source: RolloutSource, prompts: PromptStream, guard: StepGuard, probe: DisplacementProbe):
        self.source, self.prompts, self.guard, self.probe = source, prompts, guard, probe

    def save(self, folder: Path, rank: int, micro_step: int, buffered: list[Record]) -> None:
        probe = [] if self.probe.record is None else [self.probe.record]
        state = {
            "micro_step": micro_step,
            "buffered": len(buffered),
            "rollouts": self.source.rollouts,
            "prompts": self.prompts.position,
        } | self.guard.state()
        save_state(folder, rank, [*buffered, *probe], state)

    def load(self, folder: Path, rank: int, device: torch.device) -> tuple[int, list[Record] | None]:
        """``(micro_step, buffered micro-batches)``; the rest goes back to where it belongs."""
        batches, state = load_state(folder, rank, device)
        n = state["buffered"]
        self.probe.record = next(iter(batches[n:]), None)
        self.source.rollouts, self.prompts.position = state["rollouts"], state["prompts"]
        self.guard.load(state)
        return state["micro_step"], batches[:n] or None


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
