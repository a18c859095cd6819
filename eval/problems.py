"""Problem sets under the name that evaluations know them by; training reads them too, so they are `negpo.data`'s."""

from negpo.data.problems import (
    BENCHMARKS,
    Benchmark,
    Problem,
    check_golds,
    custom_benchmark,
    last_box,
    load_problems,
    read_problems,
)

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Problem",
    "check_golds",
    "custom_benchmark",
    "last_box",
    "load_problems",
    "read_problems",
]
