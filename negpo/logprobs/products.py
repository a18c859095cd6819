"""Matrix products of a head: operands in bfloat16 where that is fast and wanted, results and sums always in float32.

What is rounded: each operand of each product, once, to 8 bits of mantissa (relative 2^-9). What is not: logits, log Z,
log-probabilities, and the sums of gradients over tiles. A bfloat16 model with bfloat16 states loses nothing in its
logits, because its operands are exact; only the gradient tiles are rounded.

CUDA multiplies bfloat16 and float16 operands into float32 results. CPUs do it through oneDNN, which takes float32
operands into the instructions ``amx_bf16`` or ``avx512_bf16``; they are rounded before, so that the numbers are those
of any other processor. One without these instructions gains nothing, so the plan is off there unless it is forced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ignoring: ContextVar[bool] = ContextVar("ignoring autocast", default=False)
_HALF = (torch.bfloat16, torch.float16)
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Products:
    """``operands``: dtype to which factors are rounded. ``results``: float32, or float64 for float64 states."""

    operands: torch.dtype
    results: torch.dtype
    device_type: str

    @classmethod
    def choose(
        cls, hidden: Tensor, trained_in: torch.dtype | None = None, forced: torch.dtype | None = None
    ) -> Products:
        """``trained_in``: dtype of the autocast region around the caller, None for the dtype of ``hidden``.

        ``forced`` is taken whatever the device; without it half precision is used where the device multiplies it fast.
        """
        results = compute_dtype(hidden)
        if forced is not None:
            return cls(forced, results, hidden.device.type)
        wanted = hidden.dtype if trained_in is None or hidden.dtype == torch.float64 else trained_in
        fast = wanted in _HALF and (hidden.is_cuda or (wanted == torch.bfloat16 and cpu_multiplies_bf16()))
        return cls(wanted if fast else results, results, hidden.device.type)

    @property
    def lowered(self) -> bool:
        return self.operands != self.results

    @property
    def _mixed(self) -> bool:
        """Whether the device has a product of half-precision factors with a float32 result."""
        return self.lowered and self.device_type == "cuda"

    def factor(self, tensor: Tensor) -> Tensor:
        """``tensor`` in the form in which :meth:`mm` and :meth:`addmm_` take it; convert once, use often."""
        if self._mixed:
            return tensor.to(self.operands)
        # oneDNN would round by itself, but torch takes small products elsewhere, where nothing is rounded
        return tensor.to(self.operands).to(self.results)

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """``out = a @ b`` for two factors; ``out`` in the dtype of results."""
        if self._mixed:
            return torch.mm(a, b, out_dtype=self.results, out=out)
        with _rounding_inside(self.lowered):
            return torch.mm(a, b, out=out)

    def addmm_(self, out: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``out += a @ b`` without rounding the product."""
        if self._mixed:
            return torch.addmm(out, a, b, out_dtype=self.results, out=out)
        with _rounding_inside(self.lowered):
            return out.addmm_(a, b)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """float32 for everything but float64, which stays so that ``gradcheck`` can be used."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast region around the caller, None outside of one and in :func:`ignoring_autocast`."""
    if _ignoring.get() or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@contextmanager
def ignoring_autocast() -> Iterator[None]:
    """Heads are multiplied in the precision of their states in here, whatever autocast a wrapper switches on."""
    token = _ignoring.set(True)
    try:
        yield
    finally:
        _ignoring.reset(token)


@cache
def bf16_instructions() -> tuple[str, ...]:
    """Those of ``amx_bf16`` and ``avx512_bf16`` that this x86 processor names (Linux; elsewhere none)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(name for name in BF16_INSTRUCTIONS if name in flags)


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether oneDNN takes float32 factors through bf16 instructions here: asked of the processor, and tried."""
    return bool(bf16_instructions()) and _rounds_when_asked()


def product_seconds(dtype: torch.dtype, *, size: int = 512, repeats: int = 3) -> float:
    """Least seconds of one (size, size) matrix product on the CPU with as many threads as torch uses."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    torch.mm(a, b)  # oneDNN compiles its kernel
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _rounds_when_asked() -> bool:
    """One product that bf16 rounding changes: 1 + 2^-10 becomes 1."""
    a, b = torch.full((64, 64), 1 + 2.0**-10), torch.eye(64)
    with _rounding_inside(True):
        return bool((torch.mm(a, b) == 1.0).all())


@contextmanager
def _rounding_inside(wanted: bool) -> Iterator[None]:
    """oneDNN may round float32 factors to bfloat16 in here. The setting is the process's, so it is kept this short."""
    if not wanted:
        yield
        return
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
