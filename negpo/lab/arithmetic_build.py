"""Build the arithmetic lab: problems in the MATH schema and a small model that solves about half of them by sampling.

The model is trained from nothing in one single-threaded child process, in two stages: complete answers teach it to
calculate; then hasty, unfinished and complete ones, as `negpo.lab.arithmetic` draws them, make it the sampler that
evaluation and reinforcement learning start from. No question of the test occurs in either stage. Everything is a
function of `(seed, size)` and of this package's source.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write
from negpo.errors import ConfigError
from negpo.lab._cache import MANIFEST, build_once, settings_key, source_hash
from negpo.lab._jobs import Job, report_progress, run_jobs
from negpo.lab._models import Row, Schedule, make_model, make_tokenizer, train_lm
from negpo.lab.arithmetic import (
    LEVELS,
    PROMPT,
    ArithmeticProblem,
    make_answer,
    make_problem,
    make_problems,
    worked,
)

SOURCES = ("arithmetic.py", "arithmetic_build.py", "_models.py")
VOCABULARY = 330  # upper bound: 256 bytes, 4 special tokens, the few words of the prompt
TOKENIZER_ROWS = 2000
WIDER = 4.0  # initial weights against the usual 0.02: half the loss after 150 steps at this width
MAX_POSITIONS = 4096  # room for prompts of MATH, on which the path of an evaluation is tried
REPORT_EVERY = 20
BENCHMARK = """\
name: arithmetic
data: test.jsonl
kind: integer
fields: {question: problem, gold: answer, id: unique_id, level: level, subject: type}
"""


@dataclass(frozen=True)
class ArithmeticSize:
    """Shape of the model, rows of its two training stages, and problems in the data folder.

    vLLM's CPU attention wants heads of at least 32 dimensions.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    batch: int = 16
    worked_rows: int = 24000
    answer_rows: int = 9600
    train_problems: int = 1000
    test_problems: int = 500


SIZES = {
    "default": ArithmeticSize(),
    "tiny": ArithmeticSize(
        hidden=32,
        layers=2,  # ResRL reads the layer before the last
        heads=1,
        worked_rows=160,
        answer_rows=640,
        train_problems=40,
        test_problems=20,
    ),
}


@dataclass(frozen=True)
class ArithmeticLabPaths:
    """A built lab: a Hugging Face checkpoint with its tokenizer, problems, and a YAML for `negpo eval custom`."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def benchmark(self) -> Path:
        return self.data / "benchmark.yaml"

    @property
    def manifest(self) -> dict[str, Any]:
        """Seed, size, source hash, seconds of processor time."""
        return json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))


def build_arithmetic_lab(out_dir: str | Path, seed: int = 0, size: str = "default") -> ArithmeticLabPaths:
    """Build the arithmetic lab of `seed` under `out_dir`, or return it when it is there already.

    The folder name carries a hash of size and source code, so a change of either builds a new lab beside the old one.

    Raises:
        ConfigError: unknown `size`.
        NegpoError: the training process failed; names its log.
    """
    if size not in SIZES:
        raise ConfigError(f"arithmetic lab size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    settings = {"seed": seed, "size": asdict(SIZES[size]), "source": source_hash(SOURCES)}
    root = Path(out_dir) / f"arithmetic-{size}-seed{seed}-{settings_key(settings)}"

    def fill(folder: Path) -> dict[str, Any]:
        paths = ArithmeticLabPaths(folder)
        write_problems(paths, seed, SIZES[size])
        arguments = (str(folder), str(seed), json.dumps(asdict(SIZES[size])))
        job = Job("arithmetic model", "negpo.lab.arithmetic_build", arguments, folder / "logs" / "model.log")
        before = _child_seconds()
        run_jobs([job], workers=1, title="training")
        return {**settings, "cpu_seconds": round(_child_seconds() - before, 1)}

    build_once(root, fill)
    return ArithmeticLabPaths(root)


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_problems(paths: ArithmeticLabPaths, seed: int, size: ArithmeticSize) -> None:
    """`train.jsonl` and `test.jsonl` in the MATH schema, levels in turn, and the YAML that describes the test."""
    test, train = split_problems(seed, size)
    for name, problems in (("train", train), ("test", test)):
        rows = [problem.row(f"{name}/{index}") for index, problem in enumerate(problems)]
        atomic_write(paths.data / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    atomic_write(paths.benchmark, BENCHMARK)


def split_problems(seed: int, size: ArithmeticSize) -> tuple[list[ArithmeticProblem], list[ArithmeticProblem]]:
    """Test and train problems, all different."""
    problems = make_problems(size.test_problems + size.train_problems, seed)
    return problems[: size.test_problems], problems[size.test_problems :]


Answer = Callable[[ArithmeticProblem, random.Random], str]


def make_corpus(
    count: int,
    seed: int,
    answer: Answer,
    excluded: Container[ArithmeticProblem] = (),
) -> list[tuple[str, str]]:
    """`count` pairs of prompt and answer, levels in turn, none about an excluded problem."""
    rng = random.Random(f"corpus-{seed}")
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        problem = make_problem(LEVELS[len(pairs) % len(LEVELS)], rng)
        if problem not in excluded:
            pairs.append((PROMPT.format(question=problem.question), answer(problem, rng)))
    return pairs


def encode(tokenizer: Any, pairs: list[tuple[str, str]]) -> list[Row]:
    """Token ids and labels; only the answer and the end of the sequence are predicted."""
    rows = []
    for prompt, answer in pairs:
        asked = tokenizer(prompt)["input_ids"]
        answered = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        rows.append((asked + answered, [-100] * len(asked) + answered))
    return rows


def train_model(folder: Path, seed: int, size: ArithmeticSize) -> None:
    """Train all stages and save the checkpoint with its tokenizer under `folder`."""
    import torch

    torch.set_num_threads(1)
    test = set(split_problems(seed, size)[0])
    solutions = make_corpus(size.worked_rows, seed, lambda problem, _: worked(problem), test)
    answers = make_corpus(size.answer_rows, seed + 1, make_answer, test)
    # Qwen2's splitting makes every digit a token of its own, which is what lets a model this small carry.
    tokenizer = make_tokenizer(
        [prompt + answer for prompt, answer in answers[:TOKENIZER_ROWS]], VOCABULARY, max_length=MAX_POSITIONS
    )
    model = make_model(
        tokenizer,
        hidden=size.hidden,
        layers=size.layers,
        heads=size.heads,
        intermediate=3 * size.hidden,
        seed=seed,
        max_positions=MAX_POSITIONS,
    )
    with torch.no_grad():
        for matrix in (weight for weight in model.parameters() if weight.ndim > 1):
            matrix.mul_(WIDER)
    stages = (
        (solutions, Schedule(4e-3, batch_size=size.batch, warmup=50, final_lr=0.1)),
        (answers, Schedule(1e-3, batch_size=size.batch, equal_tokens=True)),
    )
    for number, (pairs, schedule) in enumerate(stages, start=1):

        def show(step: int, total: int, loss: float, stage: int = number) -> None:
            if step % REPORT_EVERY == 0 or step == total:
                report_progress(step, total, f"stage {stage} of 2, loss {loss:.3f}")

        rows = encode(tokenizer, pairs)
        train_lm(model, rows, schedule, pad_id=tokenizer.pad_token_id, seed=seed, on_step=show)
    target = ArithmeticLabPaths(folder).model
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    lab, seed_text, size_text = sys.argv[1:]
    train_model(Path(lab), int(seed_text), ArithmeticSize(**json.loads(size_text)))
