"""`negpo demo reason`: the arithmetic lab model, n samples per problem, on every engine that can run here.

Each engine works in its own single-threaded child process, one after the other, so that their speeds can be compared
and vLLM's settings reach nobody else. A second call continues what was interrupted and draws nothing twice.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.arithmetic_build import ArithmeticLabPaths, build_arithmetic_lab

if TYPE_CHECKING:
    from negpo.rollout import RolloutEngine

GREEDY_FILE = "greedy.json"
VERIFIER_WORKERS = 1  # the other core; identical answers are graded once


@dataclass(frozen=True)
class ReasonDemoSettings:
    """What `negpo demo reason` was asked to do. `problems`: the first of the test file; levels come in turn."""

    out: Path = Path("runs/reason")
    seed: int = 0
    size: str = "default"
    samples: int = 64
    problems: int = 100
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.problems < 1:
            raise ConfigError(f"samples={self.samples} and problems={self.problems} must be at least 1")


@dataclass(frozen=True)
class EngineResult:
    """What one engine left: the run's summary, tokens per second (grading included), and its greedy answers."""

    name: str
    summary: dict[str, Any]
    tokens_per_second: float
    greedy: list[list[int]]


def usable_engines() -> list[str]:
    """Engines that need no server and whose library is installed."""
    return ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


def run_reason_demo(settings: ReasonDemoSettings) -> Path:
    """Build the lab, evaluate on every usable engine, print the table, write `report.html`; returns its path.

    Raises:
        NegpoError: a child process failed; names its log. Finished samples are kept.
    """
    from negpo.report.reasoning import render_reasoning_report

    if settings.fresh:
        shutil.rmtree(settings.out, ignore_errors=True)
    lab = build_arithmetic_lab(settings.out / "labs", settings.seed, settings.size)
    # settings are part of the name: a run of another lab or another number of samples is never continued
    place = settings.out / f"{lab.root.name}-{settings.problems}x{settings.samples}"
    engines = usable_engines()
    jobs = [_job(engine, lab, place, settings) for engine in engines]
    run_jobs(jobs, workers=1, title="sampling with")
    results = [read_result(place / engine) for engine in engines]
    report = render_reasoning_report([place / engine for engine in engines], settings.out / "report.html")
    atomic_write_json(
        settings.out / "reason.json",
        {
            "lab": lab.root.name,
            "tokens_per_second": {result.name: result.tokens_per_second for result in results},
            "greedy_differences": differing_answers(results),
        },
    )
    _print_results(results, report)
    return report


def _job(engine: str, lab: ArithmeticLabPaths, place: Path, settings: ReasonDemoSettings) -> Job:
    numbers = (str(settings.samples), str(settings.problems))
    arguments = (engine, str(lab.root), str(place / engine), *numbers)
    return Job(engine, "negpo.lab.reason_demo", arguments, place / "logs" / f"{engine}.log")


def read_result(folder: Path) -> EngineResult:
    """What `evaluate` left in the run's folder."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    sessions = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sessions"]
    greedy = json.loads((folder / GREEDY_FILE).read_text(encoding="utf-8"))
    tokens = sum(entry["samples"] * entry["mean"] for entry in summary["tokens"].values())
    seconds = sum(session["seconds"] for session in sessions if session["samples_drawn"])
    return EngineResult(folder.name, summary, tokens / max(seconds, 1e-9), greedy)


def differing_answers(results: list[EngineResult]) -> dict[str, list[int]]:
    """Per engine after the first: positions of the problems whose greedy answer differs from the first engine's."""
    first = results[0].greedy
    return {
        result.name: [i for i, pair in enumerate(zip(first, result.greedy, strict=True)) if pair[0] != pair[1]]
        for result in results[1:]
    }


def evaluate(engine_name: str, lab: ArithmeticLabPaths, folder: Path, samples: int, problem_count: int) -> None:
    """Child process: one reasoning run and the greedy answers to the same problems, both in `folder`."""
    import torch
    from transformers import AutoTokenizer

    from negpo.data.problems import custom_benchmark, read_problems
    from negpo.data.protocols import find_protocol
    from negpo.eval.reasoning import ReasoningRun
    from negpo.models import hash_tokenizer
    from negpo.rewards import VerifierPool
    from negpo.rollout import make_engine
    from negpo.versions import versions

    torch.set_num_threads(1)
    bench, source = custom_benchmark(lab.benchmark)
    problems = read_problems(source, bench)[:problem_count]
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    card = find_protocol("lab").with_overrides(n=samples)
    manifest = {"model_name": "arithmetic lab", "model": lab.root.name, "versions": versions()}
    manifest |= {"tokenizer": hash_tokenizer(tokenizer)}
    engine = make_engine(engine_name, str(lab.model), tokenizer)
    pool = VerifierPool(workers=VERIFIER_WORKERS)
    try:
        run = ReasoningRun(
            engine,
            tokenizer,
            problems,
            bench.name,
            card,
            folder,
            manifest=manifest,
            kind=bench.kind,
            pool=pool,
            show_progress=False,
        )
        run.run()
        prompts = [card.render(tokenizer, problem.question) for problem in problems]
        atomic_write_json(folder / GREEDY_FILE, greedy_answers(engine, prompts, card.max_new_tokens))
    finally:
        pool.close()
        engine.close()


def greedy_answers(engine: RolloutEngine, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the most probable continuation, one per prompt."""
    from negpo.rollout import Sampling

    drawn = engine.generate(prompts, Sampling(greedy=True, max_new_tokens=max_new_tokens, logprobs=False))
    return [row[0].token_ids for row in drawn]


def _print_results(results: list[EngineResult], report: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_curve_table(results))
    for result in results:
        levels = ", ".join(f"{name} {row['value']:.2f}" for name, row in result.summary["by_level"].items())
        console.print(f"{result.name}: solved by level: {levels}; {result.tokens_per_second:,.0f} tokens per second")
    differences = differing_answers(results)
    for name, positions in differences.items():
        verdict = "all agree" if not positions else f"{len(positions)} differ, first at problem {positions[0]}"
        console.print(f"greedy answers of {name} against {results[0].name}: {verdict}")
    if not differences:
        console.print("greedy answers: only one engine is installed (vLLM is not), nothing to compare")
    console.print(f"report: {report}", soft_wrap=True)


def _curve_table(results: list[EngineResult]) -> Any:
    from rich.table import Table

    table = Table("k", *(result.name for result in results), title="pass@k with 95 % interval", title_justify="left")
    for entries in zip(*(result.summary["pass_at_k"] for result in results), strict=True):
        cells = [
            f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})" if "value" in entry else "unknown"
            for entry in entries
        ]
        table.add_row(str(entries[0]["k"]), *cells)
    return table


if __name__ == "__main__":
    name, lab_root, run_folder, sample_count, first_problems = sys.argv[1:]
    evaluate(name, ArithmeticLabPaths(Path(lab_root)), Path(run_folder), int(sample_count), int(first_problems))
