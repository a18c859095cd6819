"""Work split over the processes of accelerate or torchrun, with results that do not depend on their number.

Whole batches are given to ranks, never parts of one: the same rows meet in the same batch however many processes there
are, so every number is computed by the same operations. (Threads are another matter: give every process the same
OMP_NUM_THREADS to the same last bit.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(days=1)  # ranks wait for each other's attacks, which train a model


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``; one process needs no set-up."""

    rank: int = 0
    world: int = 1
    local: int = 0  # rank on this machine: the number of its GPU

    @classmethod
    def start(cls) -> Ranks:
        """Join the processes that accelerate or torchrun started, if they did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        return cls(state.process_index, state.num_processes, state.local_process_index)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def map(self, work: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
        """``[work(task) for task in tasks]`` with the tasks dealt out over the ranks; every rank gets all results."""
        mine = [(index, work(tasks[index])) for index in range(self.rank, len(tasks), self.world)]
        if self.world > 1:
            from accelerate.utils import gather_object

            mine = gather_object(mine)
        return [result for _, result in sorted(mine, key=lambda pair: pair[0])]

    def from_main(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
