"""Peak memory of a piece of PyTorch code on the CPU, to the byte: what `negpo plan` is calibrated against.

Resident memory would also count the allocator's slack, thread pools and whatever libraries load on the way; at lab
size that is more than the model. Counting tensors from Python is not exact either: a tensor that Python has seen is no
longer the only reference to its storage, and autograd then adds gradients into new memory instead of in place (for a
tied embedding one more vocabulary matrix at the peak). So torch's profiler is asked for every allocation of its CPU
allocator, the scratch space inside kernels included.
"""

import gc
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

_WINDOW = "negpo live bytes"


class LiveBytes:
    """Context in which allocations are logged; what was allocated before it does not count and must not be freed in it.

    ``with live.window(): ...`` inside marks the part whose ``peak`` (bytes) is wanted, known once the context is left.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def window(self) -> AbstractContextManager:
        return record_function(_WINDOW)

    def __enter__(self) -> "LiveBytes":
        gc.collect()  # trainers are reference cycles: an earlier one would be freed, and subtracted, somewhere inside
        self._profiler.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._profiler.__exit__(*exception)
        logged: Any = self._profiler.profiler  # torch annotates what it has not started yet
        events = logged.kineto_results.events()
        windows = [(e.start_ns(), e.end_ns()) for e in events if e.name() == _WINDOW]
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        live = zip((time for time, _ in changes), accumulate(size for _, size in changes), strict=True)
        self.peak = max((size for time, size in live if any(a <= time <= b for a, b in windows)), default=0)
