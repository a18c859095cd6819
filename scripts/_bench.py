"""What the benchmark scripts share: the machine in words, resident memory, and ``--out`` for the tables."""

import argparse
import io
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path


def machine() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def resident(field: str, pid: int | str = "self") -> int:
    """Bytes in ``VmRSS`` (now) or ``VmHWM`` (peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}; memory is measured on Linux only")


def reset_peak() -> None:
    """``VmHWM`` starts again from the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="also write the tables here (Markdown)")


@contextmanager
def reporting(out: Path | None) -> Iterator[None]:
    """What is printed inside also goes to the file ``out``, written at the end."""
    if out is None:
        yield
        return
    kept = io.StringIO()

    class Both(io.TextIOBase):
        def write(self, text: str) -> int:
            kept.write(text)
            return screen.write(text)

        def flush(self) -> None:
            screen.flush()

    screen = sys.stdout
    with redirect_stdout(Both()):
        yield
    out.write_text(kept.getvalue(), encoding="utf-8")
