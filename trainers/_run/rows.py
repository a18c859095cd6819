"""Encoded rows, the order they are visited in, and draws that a resumed run repeats.

Everything random here is a pure function of (seed, epoch, index).
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch

from negpo.data.qa import IGNORE

Encoded = dict[str, list[int]]


def draw(seed: int, epoch: int, index: int, n: int, stream: str) -> int:
    """A uniform integer in [0, n) that depends on the arguments only, on every platform and library version."""
    digest = hashlib.blake2b(f"{stream}/{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n


def label_count(item: Encoded) -> int:
    """Labels that are scored: all but a label at position 0, which no token predicts."""
    return sum(label != IGNORE for label in item["labels"][1:])


class EpochSampler(torch.utils.data.Sampler):
    """Yields ``(epoch, index)``; the order is a pure function of (seed, epoch). ``EpochBegins`` sets the epoch."""

    def __init__(self, n: int, seed: int, *, shuffle: bool):
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: Sequence[int] = range(self.n)
        if self.shuffle:
            generator = torch.Generator().manual_seed(draw(self.seed, self.epoch, 0, 2**62, "order"))
            order = torch.randperm(self.n, generator=generator).tolist()
        epoch = self.epoch
        return iter([(epoch, index) for index in order])
