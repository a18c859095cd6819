#!/usr/bin/env python
"""Step time and peak memory of NPO and NSR over model size, sequence length, vocabulary and ranks, beside the plan's.

    python scripts/bench_scaling.py --out bench_scaling.md --save-mfu mfu.json   # about 5 minutes on 2 quiet cores
    python scripts/bench_scaling.py --small                                      # a few seconds, for tests

Real trainers take real steps (`negpo.lab.measured_steps`): float32, one thread per process, optimiser included, the
rollout's log-probs too, its decoding not. Memory is what torch's allocator handed out at the peak of a step. The plan
knows only the shape; its times use one number per method, the speed reached at the largest point (marked *). Exponents
are least-squares slopes of log(measured) over log(size); the local ones, between neighbours, show where a line bends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _bench import add_out, machine, reporting

MIB = 2**20
SIZES = ((128, 2), (192, 3), (256, 4), (384, 6))  # hidden, layers
LENGTHS = (64, 128, 256)
VOCABS = (4096, 32768)
RANKS = (1, 2)
SMALL = {"sizes": SIZES[:2], "lengths": (32,), "vocabs": (512,), "ranks": (1,)}


@dataclass(frozen=True)
class Row:
    """A measured point and what the plan says: bytes, seconds of an optimiser step, operations, model parameters."""

    point: dict
    parameters: int
    operations: int
    peak: int
    planned_peak: int
    seconds: float
    moment: str  # at which the plan expects the peak
    fixed: int  # bytes of it that do not depend on the number of tokens


def main() -> None:
    args = parse_args()
    quiet()
    if args.worker:
        work(args.worker)
        return
    grid = SMALL if args.small else {"sizes": SIZES, "lengths": LENGTHS, "vocabs": VOCABS, "ranks": RANKS}
    started = time.perf_counter()
    rows = []
    for points in batches(grid):
        rows += in_processes(points)
        print(f"{len(rows)} points, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    peak_flops = device_flops()
    text = report(rows, grid, peak_flops, time.perf_counter() - started)
    with reporting(args.out):
        print(text, end="")
    if args.save_mfu:
        speeds = [reference(rows, method).speed for method in ("npo", "nsr")]
        values = {"flops": peak_flops, "utilisation": min(1.0, sum(speeds) / len(speeds) / peak_flops)}
        args.save_mfu.write_text(json.dumps(values) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two points per method")
    add_out(parser)
    parser.add_argument("--save-mfu", type=Path, help="file for negpo plan --measured-mfu")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- measuring -------------------------------------------------------------------------------------------------------


def batches(grid: dict) -> Iterable[list[dict]]:
    """Points that share a process group: by method all on one process, then a middle size on every number of ranks."""
    for method in ("npo", "nsr"):
        yield [
            {"method": method, "hidden": hidden, "layers": layers, "sequence_length": length, "vocab": vocab}
            for hidden, layers in grid["sizes"]
            for length in grid["lengths"]
            for vocab in grid["vocabs"]
        ]
    hidden, layers = grid["sizes"][len(grid["sizes"]) // 2]
    shared = {"hidden": hidden, "layers": layers, "sequence_length": grid["lengths"][-1], "vocab": grid["vocabs"][0]}
    for ranks in grid["ranks"][1:]:
        yield [{"method": method, **shared, "ranks": ranks} for method in ("npo", "nsr")]


def in_processes(points: list[dict]) -> list[Row]:
    """Measured in fresh processes, as many as the points ask for."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        task.write_text(json.dumps(points))
        ranks = points[0].get("ranks", 1)
        command = [sys.executable]
        if ranks > 1:
            from negpo.configs import CONFIGS

            command += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "accelerate" / "cpu.yaml")]
            command += ["--num_processes", str(ranks), "--main_process_port", "0"]
        done = subprocess.run([*command, str(Path(__file__).resolve()), "--worker", str(task)], capture_output=True)
        if done.returncode:
            raise SystemExit(f"{points[0]['method']} on {ranks} rank(s) failed:\n{done.stderr.decode()[-3000:]}")
        return [Row(**row) for row in json.loads((Path(folder) / "result.json").read_text())]


def quiet() -> None:
    """One thread per process, nothing asked of any network; inherited by the processes started here."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def work(task: Path) -> None:
    """One rank: measure all points of the task file; the first rank writes the results beside it."""
    import torch

    from negpo.lab.measured_steps import Point, measure
    from negpo.plan.flops import operations
    from negpo.plan.memory import memory_of

    torch.set_num_threads(1)
    rows = []
    for fields in json.loads(task.read_text()):
        point = Point(**fields)
        measured = measure(point)
        shape, settings = point.shape, point.settings()
        planned = memory_of(shape, settings).peak
        fixed = sum(planned.parts[part] for part in ("weights", "optimiser", "buffers", "gradients"))
        row = Row(
            point=asdict(point),
            parameters=shape.parameters,
            operations=operations(shape, settings).training,
            peak=measured.peak,
            planned_peak=planned.total,
            seconds=measured.seconds,
            moment=planned.name,
            fixed=fixed,
        )
        rows.append(asdict(row))
    if os.environ.get("RANK", "0") == "0":
        (task.parent / "result.json").write_text(json.dumps(rows))


def device_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """Operations per second of one thread on a float32 matrix product, the best of as many as fit into ``seconds``."""
    import torch

    torch.set_num_threads(1)
    a, best, end = torch.rand(size, size), math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The largest point of a method on one process, and the operations per second it reached."""

    row: Row
    speed: float


def reference(rows: Sequence[Row], method: str) -> Reference:
    mine = [row for row in rows if row.point["method"] == method and row.point["ranks"] == 1]
    largest = max(mine, key=lambda row: row.operations)
    return Reference(largest, largest.operations / largest.seconds)


def report(rows: list[Row], grid: dict, peak_flops: float, seconds: float) -> str:
    lines = []
    for method in ("npo", "nsr"):
        lines += [
            f"### {method.upper()}",
            "",
            *measured_table(rows, method, peak_flops),
            "",
            *curves(rows, method, grid),
            "",
        ]
    errors = sorted(abs(row.planned_peak / row.peak - 1) for row in rows)
    lines += [
        f"Peak memory, plan against measurement over {len(rows)} points: median {errors[len(errors) // 2]:.1%} off, at "
        f"most {errors[-1]:.1%}.",
        "",
        f"`{' '.join(['python', 'scripts/bench_scaling.py', *sys.argv[1:]])}`, {seconds:.0f} s on {machine()}; one "
        f"thread does {peak_flops / 1e9:.0f} GFLOP/s in a float32 matrix product.",
    ]
    return "\n".join(lines) + "\n"


def measured_table(rows: list[Row], method: str, peak_flops: float) -> list[str]:
    best = reference(rows, method)
    lines = [
        "| hidden x layers | parameters | T | V | ranks | peak MiB | plan MiB | off | peak at | step s | plan s | off "
        "| MFU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row.point["method"] == method):
        p, planned = row.point, row.operations / best.speed
        cells = [
            f"{p['hidden']} x {p['layers']}{'*' if row is best.row else ''}",
            f"{row.parameters:,}",
            *map(str, (p["sequence_length"], p["vocab"], p["ranks"])),
            *(f"{row.peak / MIB:.1f}", f"{row.planned_peak / MIB:.1f}", f"{row.planned_peak / row.peak - 1:+.1%}"),
            row.moment,
            *(f"{row.seconds:.3f}", f"{planned:.3f}", f"{planned / row.seconds - 1:+.0%}"),
            f"{row.operations / row.seconds / peak_flops:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def curves(rows: list[Row], method: str, grid: dict) -> list[str]:
    """Exponents along each axis, with the other two at their largest value (the vocabulary at its smallest)."""
    alone = [row for row in rows if row.point["method"] == method and row.point["ranks"] == 1]
    last = {"hidden": grid["sizes"][-1][0], "sequence_length": grid["lengths"][-1], "vocab": grid["vocabs"][0]}
    axes: list[tuple[str, str, Callable[[Row], float]]] = [
        ("parameters", "hidden", lambda row: row.parameters),
        ("sequence length", "sequence_length", lambda row: row.point["sequence_length"]),
        ("vocabulary", "vocab", lambda row: row.point["vocab"]),
    ]
    lines = [
        "| axis | step time | between neighbours | peak memory | between neighbours | plan |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for name, field, size in axes:
        fixed = {key: value for key, value in last.items() if key != field}
        line = sorted((r for r in alone if all(r.point[k] == v for k, v in fixed.items())), key=size)
        if len(line) < 2:
            continue
        x = [size(row) for row in line]
        time_, peak = [row.seconds for row in line], [row.peak for row in line]
        cells = [name, exponent(x, time_), local(x, time_), exponent(x, peak), local(x, peak)]
        lines.append(f"| {' | '.join([*cells, exponent(x, [row.planned_peak for row in line])])} |")
        notes.append(f"- {name}: {why(name, line)}")
    return [*lines, "", *notes, *ranks_note(rows, method)]


def why(axis: str, line: list[Row]) -> str:
    """What bends the line, from the plan's own terms."""
    first, last = line[0], line[-1]
    shares = f"{first.fixed / first.planned_peak:.0%} to {last.fixed / last.planned_peak:.0%}"
    per_operation = f"{first.seconds / first.operations * 1e9:.3f} to {last.seconds / last.operations * 1e9:.3f} ns"
    what = {
        "parameters": "activations grow with hidden x layers and weights with hidden² x layers, so memory stays below "
        "the line while activations lead, and embedding and tile do not grow with the layers",
        "sequence length": "weights, gradients and moments do not depend on it, so memory stays below the line until "
        "activations lead; attention's T² share is what could lift the time above it",
        "vocabulary": "only embedding, head and their states grow with it; activations do not, nor does the tile of "
        "logits, which full logits would turn into a slope of one",
    }[axis]
    return (
        f"weights, gradients, moments and buffers are {shares} of the planned peak from the first to the last point; "
        f"an operation takes {per_operation} (constant on the linear line; fixed costs per operator make it fall). "
        f"{what[0].upper()}{what[1:]}."
    )


def ranks_note(rows: list[Row], method: str) -> list[str]:
    notes = []
    for row in (row for row in rows if row.point["method"] == method and row.point["ranks"] > 1):
        same = [r for r in rows if r.point == {**row.point, "ranks": 1}]
        if same:
            notes.append(
                f"- ranks: {row.point['ranks']} gloo ranks take {row.seconds / same[0].seconds:.2f} times the step of "
                f"one for {row.point['ranks']} times the rows, {row.peak / same[0].peak:.2f} times the memory each "
                "(DDP's buckets are a second copy of the gradients)."
            )
    return notes


def exponent(x: Sequence[float], y: Sequence[float]) -> str:
    """Slope of log y over log x by least squares."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)
    return f"{slope:.2f}"


def local(x: Sequence[float], y: Sequence[float]) -> str:
    return ", ".join(exponent(x[i : i + 2], y[i : i + 2]) for i in range(len(x) - 1))


if __name__ == "__main__":
    main()
