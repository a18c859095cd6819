"""Build a lab of verifiable problems: rows in the MATH schema and a small model that solves some of them by sampling.

The model is trained from nothing in one single-threaded child process, in two stages: right answers teach it the task;
then right and wrong ones, mixed as the world says, make it the sampler that evaluation and reinforcement learning start
from. No question of the test occurs in either stage. Everything is a function of `(seed, size)` and of the world's
source. `python -m negpo.lab.worlds WORLD FOLDER SEED SIZE` is the child process.
"""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from negpo.data.io import atomic_write
from negpo.errors import ConfigError
from negpo.lab._cache import MANIFEST, build_once, settings_key, source_hash
from negpo.lab._jobs import Job, report_progress, run_jobs
from negpo.lab._models import Row, Schedule, make_model, make_tokenizer, train_lm

PROMPT = "Question: {question}\nAnswer:"
VOCABULARY = 330  # upper bound: 256 bytes, 4 special tokens, the few words of the prompt
TOKENIZER_ROWS = 2000
WIDER = 4.0  # initial weights against the usual 0.02: half the loss after 150 steps at this width
MAX_POSITIONS = 4096  # room for prompts of MATH, on which the path of an evaluation is tried
REPORT_EVERY = 20
BENCHMARK = """\
name: {name}
data: test.jsonl
kind: {kind}
fields: {{question: problem, gold: answer, id: unique_id, level: level, subject: type}}
"""


class Problem(Protocol):
    """A question with a gold answer; equal problems are the same question."""

    @property
    def level(self) -> int: ...

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...

    def row(self, identity: str) -> dict[str, str]:
        """One row in the MATH schema."""
        ...


Answer = Callable[[Any, random.Random], str]


@dataclass(frozen=True)
class LabSize:
    """Shape of the model, rows of its two training stages, and problems in the data folder.

    vLLM's CPU attention wants heads of at least 32 dimensions.
    """

    hidden: int = 64
    layers: int = 2  # ResRL reads the layer before the last
    heads: int = 2
    batch: int = 16
    worked_rows: int = 24000
    answer_rows: int = 9600
    train_problems: int = 1000
    test_problems: int = 500


@dataclass(frozen=True)
class ProblemWorld:
    """A kind of problem and how its model is trained.

    Attributes:
        kind: of the gold answers, for the verifier.
        sources: files of this package that a lab is a function of.
        make_problem: draws one problem of a level.
        worked, sampled: answers of the two training stages.
        in_style: whether an answer, right or not, is of the style that `style` names; watched along training.
    """

    name: str
    kind: str
    levels: tuple[int, ...]
    sizes: Mapping[str, LabSize]
    sources: tuple[str, ...]
    make_problem: Callable[[int, random.Random], Any]
    worked: Answer
    sampled: Answer
    style: str
    in_style: Callable[[str, str], bool]

    @property
    def hashed(self) -> tuple[str, ...]:
        return (*self.sources, "problem_lab.py", "_models.py")


@dataclass(frozen=True)
class ProblemLab:
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


def build_problem_lab(world: ProblemWorld, out_dir: str | Path, seed: int = 0, size: str = "default") -> ProblemLab:
    """Build the lab of `seed` under `out_dir`, or return it when it is there already.

    The folder name carries a hash of size and source code, so a change of either builds a new lab beside the old one.

    Raises:
        ConfigError: unknown `size`.
        NegpoError: the training process failed; names its log.
    """
    if size not in world.sizes:
        raise ConfigError(f"{world.name} lab size {size!r} is unknown; choose one of {', '.join(world.sizes)}")
    described = asdict(world.sizes[size])
    settings = {"seed": seed, "size": described, "source": source_hash(world.hashed)}
    root = Path(out_dir) / f"{world.name}-{size}-seed{seed}-{settings_key(settings)}"

    def fill(folder: Path) -> dict[str, Any]:
        write_problems(world, ProblemLab(folder), seed, world.sizes[size])
        arguments = (world.name, str(folder), str(seed), json.dumps(described))
        log = folder / "logs" / "model.log"
        before = _child_seconds()
        run_jobs([Job(f"{world.name} model", "negpo.lab.worlds", arguments, log)], workers=1, title="training")
        return {**settings, "cpu_seconds": round(_child_seconds() - before, 1)}

    build_once(root, fill)
    return ProblemLab(root)


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def make_problems(world: ProblemWorld, count: int, seed: int, levels: Sequence[int] | None = None) -> list[Any]:
    """`count` different problems, levels in turn; the same for the same seed."""
    levels = levels or world.levels
    rng = random.Random(f"{world.name}-{seed}")
    problems: dict[Any, None] = {}
    while len(problems) < count:
        level = levels[len(problems) % len(levels)]
        for _ in range(200):  # some levels have few different questions
            problem = world.make_problem(level, rng)
            if problem not in problems:
                break
        else:
            raise ValueError(f"level {level} does not hold enough different questions for {count} problems")
        problems[problem] = None
    return list(problems)


def split_problems(world: ProblemWorld, seed: int, size: LabSize) -> tuple[list[Any], list[Any]]:
    """Test and train problems, all different."""
    problems = make_problems(world, size.test_problems + size.train_problems, seed)
    return problems[: size.test_problems], problems[size.test_problems :]


def write_problems(world: ProblemWorld, paths: ProblemLab, seed: int, size: LabSize) -> None:
    """`train.jsonl` and `test.jsonl` in the MATH schema, levels in turn, and the YAML that describes the test."""
    test, train = split_problems(world, seed, size)
    for name, problems in (("train", train), ("test", test)):
        rows = [problem.row(f"{name}/{index}") for index, problem in enumerate(problems)]
        atomic_write(paths.data / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    atomic_write(paths.benchmark, BENCHMARK.format(name=world.name, kind=world.kind))


def make_corpus(
    world: ProblemWorld, count: int, seed: int, answer: Answer, excluded: Container[Any] = ()
) -> list[tuple[str, str]]:
    """`count` pairs of prompt and answer, levels in turn, none about an excluded problem."""
    rng = random.Random(f"corpus-{seed}")
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        problem = world.make_problem(world.levels[len(pairs) % len(world.levels)], rng)
        if problem not in excluded:
            pairs.append((PROMPT.format(question=problem.question), answer(problem, rng)))
    return pairs


def encode(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Token ids and labels; only the answer and the end of the sequence are predicted."""
    rows = []
    for prompt, answer in pairs:
        asked = tokenizer(prompt)["input_ids"]
        answered = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        rows.append((asked + answered, [-100] * len(asked) + answered))
    return rows


def train_model(world: ProblemWorld, folder: Path, seed: int, size: LabSize) -> None:
    """Train both stages and save the checkpoint with its tokenizer under `folder`."""
    import torch

    torch.set_num_threads(1)
    test = set(split_problems(world, seed, size)[0])
    worked = make_corpus(world, size.worked_rows, seed, world.worked, test)
    sampled = make_corpus(world, size.answer_rows, seed + 1, world.sampled, test)
    # Qwen2's splitting makes every digit a token of its own, which is what lets a model this small carry.
    texts = [prompt + answer for prompt, answer in sampled[:TOKENIZER_ROWS]]
    tokenizer = make_tokenizer(texts, VOCABULARY, max_length=MAX_POSITIONS)
    shape: dict[str, Any] = {
        "hidden": size.hidden,
        "layers": size.layers,
        "heads": size.heads,
        "intermediate": 3 * size.hidden,
    }
    model = make_model(tokenizer, **shape, seed=seed, max_positions=MAX_POSITIONS)
    with torch.no_grad():
        for matrix in (weight for weight in model.parameters() if weight.ndim > 1):
            matrix.mul_(WIDER)
    stages = (
        (worked, Schedule(4e-3, batch_size=size.batch, warmup=50, final_lr=0.1)),
        (sampled, Schedule(1e-3, batch_size=size.batch, equal_tokens=True)),
    )
    for number, (pairs, schedule) in enumerate(stages, start=1):

        def show(step: int, total: int, loss: float, stage: int = number) -> None:
            if step % REPORT_EVERY == 0 or step == total:
                report_progress(step, total, f"stage {stage} of 2, loss {loss:.3f}")

        rows = encode(tokenizer, pairs)
        train_lm(model, rows, schedule, pad_id=tokenizer.pad_token_id, seed=seed, on_step=show)
    model.save_pretrained(ProblemLab(folder).model)
    tokenizer.save_pretrained(ProblemLab(folder).model)
