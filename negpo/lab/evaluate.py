"""Sample a lab's test problems as `negpo eval custom` would; the folder is a complete reasoning run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negpo.data.problems import Problem
    from negpo.data.protocols import Protocol
    from negpo.lab.arithmetic_build import ArithmeticLabPaths


def lab_card(samples: int) -> Protocol:
    """How lab models are asked, `samples` times a problem."""
    from negpo.data.protocols import find_protocol

    return find_protocol("lab").with_overrides(n=samples)


def test_problems(lab: ArithmeticLabPaths, count: int) -> list[Problem]:
    """The first `count` problems of the test file, whose levels come in turn."""
    from negpo.data.problems import custom_benchmark, read_problems

    bench, source = custom_benchmark(lab.benchmark)
    return read_problems(source, bench)[:count]


def sample_tests(
    lab: ArithmeticLabPaths,
    engine: Any,
    tokenizer: Any,
    folder: Path,
    *,
    samples: int,
    problems: int,
    pool: Any,
    names: tuple[str, str],
    seed: int = 0,
) -> dict[str, Any]:
    """Draw, grade and count; goes on with what an interrupted call left. Returns the run's summary.

    Args:
        names: of the model, for people and for the manifest.
    """
    from negpo.data.problems import custom_benchmark
    from negpo.eval.manifest import versions
    from negpo.eval.reasoning import ReasoningRun
    from negpo.models import hash_tokenizer

    bench, _ = custom_benchmark(lab.benchmark)
    manifest = {"model_name": names[0], "model": names[1], "versions": versions()}
    return ReasoningRun(
        engine,
        tokenizer,
        test_problems(lab, problems),
        bench.name,
        lab_card(samples),
        folder,
        manifest=manifest | {"tokenizer": hash_tokenizer(tokenizer)},
        seed=seed,
        kind=bench.kind,
        pool=pool,
        show_progress=False,
    ).run()
