"""`negpo demo reason`: the arithmetic lab model, n samples per problem, on every engine that can run here.

Each engine works in its own single-threaded child process, one after the other, so that their speeds can be compared
and vLLM's settings reach nobody else. A second call continues what was interrupted and draws nothing twice.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab.arithmetic_build import ArithmeticLabPaths, build_arithmetic_lab
from negpo.lab.evaluate import lab_card, sample_tests, test_problems
from negpo.lab.experiment import Plan, run_plans
from negpo.report._base import Cell, Table, print_tables

if TYPE_CHECKING:
    from negpo.rollout import RolloutEngine

SUMMARY_FILE, GREEDY_FILE = "reason.json", "greedy.json"
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
class ReasonPlan(Plan):
    """One reasoning run per engine, in a folder named by lab and settings: a run of others is never continued."""

    lab: str
    samples: int
    problems: int
    continues: ClassVar[bool] = True

    @property
    def place(self) -> Path:
        return Path(self.out) / f"{Path(self.lab).name}-{self.problems}x{self.samples}"

    def depends(self, name: str) -> dict[str, Any]:
        return {"lab": Path(self.lab).name, "samples": self.samples, "problems": self.problems}

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        return evaluate(name, ArithmeticLabPaths(Path(self.lab)), folder, self.samples, self.problems)


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
    numbers = (settings.samples, settings.problems)
    plan = ReasonPlan(str(settings.out), settings.seed, settings.size, str(lab.root), *numbers)
    seconds = run_plans([plan], usable_engines(), workers=1, summary=settings.out / SUMMARY_FILE)
    results = [read_result(plan.place / engine) for engine in usable_engines()]
    report = render_reasoning_report([plan.place / one.name for one in results], settings.out / "report.html")
    content = {"lab": lab.root.name, "seconds": seconds, "greedy_differences": differing_answers(results)}
    content["tokens_per_second"] = {result.name: result.tokens_per_second for result in results}
    atomic_write_json(settings.out / SUMMARY_FILE, content)
    _print_results(results, report)
    return report


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


def evaluate(
    engine_name: str, lab: ArithmeticLabPaths, folder: Path, samples: int, problem_count: int
) -> dict[str, Any]:
    """Child process: one reasoning run and the greedy answers to the same problems, both in `folder`."""
    from transformers import AutoTokenizer

    from negpo.rewards import VerifierPool
    from negpo.rollout import make_engine

    tokenizer, card = AutoTokenizer.from_pretrained(lab.model), lab_card(samples)
    engine, pool = make_engine(engine_name, str(lab.model), tokenizer), VerifierPool(workers=VERIFIER_WORKERS)
    sizes: dict[str, Any] = {"samples": samples, "problems": problem_count}
    try:
        sample_tests(lab, engine, tokenizer, folder, pool=pool, names=("arithmetic lab", lab.root.name), **sizes)
        prompts = [card.render(tokenizer, problem.question) for problem in test_problems(lab, problem_count)]
        atomic_write_json(folder / GREEDY_FILE, greedy_answers(engine, prompts, card.max_new_tokens))
    finally:
        pool.close()
        engine.close()
    return {"name": engine_name, **sizes}


def greedy_answers(engine: RolloutEngine, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the most probable continuation, one per prompt."""
    from negpo.rollout import Sampling

    drawn = engine.generate(prompts, Sampling(greedy=True, max_new_tokens=max_new_tokens, logprobs=False))
    return [row[0].token_ids for row in drawn]


def _print_results(results: list[EngineResult], report: Path) -> None:
    print_tables({"pass@k with 95 % interval": _curve_table(results)})
    for result in results:
        levels = ", ".join(f"{name} {row['value']:.2f}" for name, row in result.summary["by_level"].items())
        print(f"{result.name}: solved by level: {levels}; {result.tokens_per_second:,.0f} tokens per second")
    differences = differing_answers(results)
    for name, positions in differences.items():
        verdict = "all agree" if not positions else f"{len(positions)} differ, first at problem {positions[0]}"
        print(f"greedy answers of {name} against {results[0].name}: {verdict}")
    if not differences:
        print("greedy answers: only one engine is installed (vLLM is not), nothing to compare")
    print(f"report: {report}")


def _curve_table(results: list[EngineResult]) -> Table:
    rows = []
    for entries in zip(*(result.summary["pass_at_k"] for result in results), strict=True):
        cells = [
            f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})" if "value" in entry else "unknown"
            for entry in entries
        ]
        rows.append([Cell(text) for text in (str(entries[0]["k"]), *cells)])
    return Table(["k", *(result.name for result in results)], rows)
