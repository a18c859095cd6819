r"""A flood of hostile answers: negpo's verifier pool, math-verify called directly, and TRL's ``accuracy_reward``.

Ordinary answers (numbers, fractions, intervals, half of them wrong) are shuffled with hostile ones (towers of powers,
deep nesting, huge factorials, numbers that differ in the last of 61 digits). Every grader gets the same stream in a
process of its own and works through it as one batch; math-verify and TRL run in the main thread with their own time
limits. Reported: total time, the largest delay (the longest any ordinary answer had to wait for its verdict since the
batch began), the longest single item, peak memory of the process and its workers, and verdicts. math-verify and TRL
need about five seconds for many hostile rows, so they get ``--baseline-repeats`` copies (the same 1:1 mix if it
equals ``--repeats``) and stop after ``--limit`` seconds; the table says how far they came.

    python scripts/bench_verifier.py                                                  # a minute
    python scripts/bench_verifier.py --ordinary 2000 --repeats 200 --out bench_verifier.md
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _bench import add_out, machine, reporting, resident

Item = tuple[str, str, bool, bool]  # response, gold, should it be accepted, is it hostile


@dataclass
class Result:
    """What one grader did with its stream; seconds and MiB."""

    grader: str
    items: int
    done: int = 0
    seconds: float = 0.0
    ordinary_delay: float = 0.0
    longest_item: float = 0.0
    memory_mib: float = 0.0
    verdicts: dict[str, int] = field(default_factory=dict)


def main() -> None:
    args = parse_args()
    if args.only:
        logging.disable(logging.WARNING)  # math-verify logs every timeout with the whole response
        result = GRADERS[args.only](stream(args.ordinary, args.repeats, args.seed, args.fixture), args)
        args.result.write_text(json.dumps(asdict(result)))
        return
    sizes = {name: args.repeats if name == "negpo" else min(args.repeats, args.baseline_repeats) for name in GRADERS}
    results = []
    for name, repeats in sizes.items():
        # The baselines see the same proportion of hostile answers.
        ordinary = max(1, round(args.ordinary * repeats / args.repeats))
        results.append(in_own_process(name, ordinary, repeats, args))
    report = table(results, args)
    with reporting(args.out):
        print(report)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ordinary", type=int, default=200, help="ordinary answers")
    parser.add_argument("--repeats", type=int, default=10, help="copies of every hostile row")
    parser.add_argument("--baseline-repeats", type=int, default=1, help="copies for math-verify and TRL")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a baseline is stopped")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixture", type=Path, help="grader_verdicts.json: adds its rows of category 'adversarial'")
    add_out(parser)
    parser.add_argument("--only", choices=list(GRADERS), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- the stream --------------------------------------------------------------------------------------------------------


def hostile_rows(fixture: Path | None) -> list[tuple[str, str, bool]]:
    """(answer, gold, accept) that have hung or fooled graders."""
    root = "\\sqrt{" * 12 + "2" + "}" * 12
    rows = [
        ("10^{10^{10}}", "10^{10^{10}}", True),
        ("10^{10^{10}}", "1", False),
        ("9^{9^{9^{9}}}", "1", False),
        ("(9^{9^{9^{9}}},1)", "(1,1)", False),
        ("2^{100000000}", "0", False),
        ("1000000!", "0", False),
        ("\\binom{1000000}{500000}", "1", False),
        ("(" * 60 + "1" + ")" * 60, "1", True),
        ("(" * 2000 + "1" + ")" * 2000, "1", True),
        ("9" * 400, "8" * 400, False),
        ("1" + "0" * 60, "1" + "0" * 59 + "1", False),
        ("\\sin(\\sin(\\sin(\\sin(x))))", "x", False),
        (root, "1", False),
        ("\\sqrt{" * 60 + "2" + "}" * 60, "1", False),
        ("\\int_0^{1} x^{x^{x}} dx", "1", False),
        ("\\sum_{k=1}^{\\infty} \\frac{\\sin k}{k^3}", "1", False),
    ]
    if fixture:
        loaded = json.loads(fixture.read_text(encoding="utf-8"))["rows"]
        rows += [
            (row["answer_in_box"], row["gold"], row["should_be"])
            for row in loaded
            if row["category"] == "adversarial" and row["should_be"] is not None and row["answer_in_box"]
        ]
    return rows


def stream(ordinary: int, repeats: int, seed: int, fixture: Path | None = None) -> list[Item]:
    rng = random.Random(seed)
    items: list[Item] = [(box(answer), gold, accept, False) for answer, gold, accept in ordinary_rows(ordinary, rng)]
    items += [
        (box(answer), gold, accept, True) for answer, gold, accept in hostile_rows(fixture) for _ in range(repeats)
    ]
    rng.shuffle(items)
    return items


def ordinary_rows(count: int, rng: random.Random) -> list[tuple[str, str, bool]]:
    rows = []
    for _ in range(count):
        a, b, c = rng.randint(2, 99), rng.randint(100, 199), rng.randint(2, 20)
        right, gold, wrong = rng.choice(
            [
                (str(a), str(a), str(a + 1)),
                (f"\\dfrac{{{a * c}}}{{{b * c}}}", f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a + 1}}}{{{b}}}"),
                (f"{a}\\sqrt{{{c * c}}}", str(a * c), f"{a}\\sqrt{{{c * c + 1}}}"),
                (f"({c}x+{a})^2", f"{c * c}x^2+{2 * a * c}x+{a * a}", f"({c}x-{a})^2"),
                (f"x \\le {a}", f"(-\\infty,{a}]", f"x < {a}"),
                (f"{a},{b}", f"{b},{a}", f"{a}"),
                (f"{a}\\text{{ cm}}", f"{a}", f"{a + 1}\\text{{ cm}}"),
                (f"\\sin^2 {c}x + \\cos^2 {c}x", "1", f"\\sin {c}x + \\cos {c}x"),
            ]
        )
        accept = rng.random() < 0.5
        rows.append((right if accept else wrong, gold, accept))
    return rows


def box(answer: str) -> str:
    return f"Adding everything up gives the result. The final answer is $\\boxed{{{answer}}}$."


# -- the graders -------------------------------------------------------------------------------------------------------


def run_negpo(items: list[Item], args: argparse.Namespace) -> Result:
    from negpo.rewards import VerifierPool

    result = Result(f"negpo, {args.workers} workers", len(items))
    finished: dict[int, float] = {}
    with VerifierPool(workers=args.workers) as pool:
        pool.grade("\\boxed{\\int_0^1 x dx}", "1/2")  # workers are running before the clock starts
        started = time.perf_counter()
        own, futures = [], []
        for index, (response, gold, _, _) in enumerate(items):
            begun = time.perf_counter()
            future = pool.grade_future(response, gold)
            future.add_done_callback(lambda _, index=index: finished.setdefault(index, time.perf_counter() - started))
            futures.append(future)
            own.append(time.perf_counter() - begun)
        verdicts = [future.result() for future in futures]
        result.seconds = time.perf_counter() - started
        result.memory_mib = resident("VmHWM") / 2**20 + sum(
            resident("VmHWM", pid) / 2**20 for pid in pool.worker_pids()
        )
    result.done = len(items)
    result.longest_item = max([*own, *(verdict.seconds for verdict in verdicts)])
    result.ordinary_delay = max(finished[index] for index, item in enumerate(items) if not item[3])
    result.verdicts = tally((verdict.status, item[2]) for verdict, item in zip(verdicts, items, strict=True))
    return result


def run_math_verify(items: list[Item], args: argparse.Namespace) -> Result:
    from math_verify import parse, verify

    def grade(response: str, gold: str) -> bool:
        return verify(parse(f"\\boxed{{{gold}}}"), parse(response))

    return run_one_by_one("math-verify, direct", grade, items, args.limit)


def run_trl(items: list[Item], args: argparse.Namespace) -> Result:
    from trl.rewards import accuracy_reward

    def grade(response: str, gold: str) -> bool | None:
        reward = accuracy_reward([[{"role": "assistant", "content": response}]], [f"${gold}$"])[0]
        return None if reward is None else reward > 0

    return run_one_by_one("TRL accuracy_reward", grade, items, args.limit)


GRADERS: dict[str, Callable[[list[Item], argparse.Namespace], Result]] = {
    "negpo": run_negpo,
    "math_verify": run_math_verify,
    "trl": run_trl,
}


def run_one_by_one(name: str, grade: Callable[[str, str], bool | None], items: list[Item], limit: float) -> Result:
    grade("\\boxed{1}", "1")  # imports are over before the clock starts
    result = Result(name, len(items))
    outcomes = []
    started = time.perf_counter()
    for response, gold, accept, hostile in items:
        begun = time.perf_counter()
        if begun - started > limit:
            break
        try:
            verdict = grade(response, gold)
        except Exception:  # a grader that raises has no verdict
            verdict = None
        now = time.perf_counter()
        result.longest_item = max(result.longest_item, now - begun)
        if not hostile:
            result.ordinary_delay = now - started
        outcomes.append(({True: "correct", False: "wrong", None: "unknown"}[verdict], accept))
    result.done, result.seconds, result.memory_mib = (
        len(outcomes),
        time.perf_counter() - started,
        resident("VmHWM") / 2**20,
    )
    result.verdicts = tally(outcomes)
    return result


def tally(outcomes) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for status, accept in outcomes:
        if status == "unknown":
            counts["unknown"] += 1
        else:
            counts[
                "right"
                if (status == "correct") == accept
                else "false positive"
                if status == "correct"
                else "false negative"
            ] += 1
    return dict(counts)


# -- output ------------------------------------------------------------------------------------------------------------


def in_own_process(name: str, ordinary: int, repeats: int, args: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--only", name, "--result", str(path), "--ordinary", str(ordinary)]
        command += [
            "--repeats",
            str(repeats),
            "--seed",
            str(args.seed),
            "--workers",
            str(args.workers),
            "--limit",
            str(args.limit),
        ]
        command += ["--fixture", str(args.fixture)] if args.fixture else []
        subprocess.run(command, check=True)
        return Result(**json.loads(path.read_text()))


def table(results: list[Result], args: argparse.Namespace) -> str:
    lines = [
        f"{args.ordinary} ordinary answers, every hostile row x {args.repeats} (baselines x {args.baseline_repeats}); "
        f"Python {platform.python_version()}, {machine()}",
        "",
        "| grader | items graded | total s | ms per item | largest delay of an ordinary answer, s | longest item, s "
        "| peak memory, MiB | right | false + | false - | unknown |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        v = [r.verdicts.get(key, 0) for key in ("right", "false positive", "false negative", "unknown")]
        lines.append(
            f"| {r.grader} | {r.done} of {r.items} | {r.seconds:.1f} | {1000 * r.seconds / max(1, r.done):.2f} | "
            f"{r.ordinary_delay:.2f} | {r.longest_item:.2f} | {r.memory_mib:.0f} | {v[0]} | {v[1]} | {v[2]} | {v[3]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
