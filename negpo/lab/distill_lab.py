"""The distillation lab: a teacher's right and wrong traces for a student, as in REDI (arXiv 2505.24850).

The student is the arithmetic lab's model. The teacher is the same model trained longer, on answers in two manners:
worked out, or lazy, with every operation after the first written as plus or minus 0. Lazy answers are as long as the
others, and right where the later operations happen to cancel, in half of the longer questions. So right traces hold
lucky lazy ones, and SFT teaches them; only the wrong traces tell that laziness is what fails. On tuning seed 102 the
teacher solves 0.55 of the questions, the student before stage 1 0.38.

The teacher answers training questions several times, the verifier grades every trace, and the builder of
`negpo data redi` makes the two sets: right traces for stage 1, pairs for stage 2. Stage 1, SFT on the right traces, is
done here, because every method of stage 2 starts from its result.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from negpo.configs import recipe_path
from negpo.data.io import atomic_write, atomic_write_json
from negpo.data.redi import REDIFilters, REDIReport, build_sets, from_eval
from negpo.lab._cache import MANIFEST, build_once, settings_key, source_hash
from negpo.lab._jobs import report_progress
from negpo.lab._models import Schedule, train_lm
from negpo.lab.arithmetic import CHANGE, LARGEST, SMALLEST, ArithmeticProblem, worked
from negpo.lab.arithmetic_build import ArithmeticLabPaths, encode
from negpo.lab.experiment import Run, build_trainer
from negpo.lab.prefer_measure import Question, measure_answers
from negpo.lab.problem_lab import PROMPT

SOURCES = ("distill_lab.py", "prefer_measure.py")
STAGE1 = "sft/lab_stage1"
RIGHT_TRACES, PAIRS = "right_traces", "pairs"
LAZY = 0.3  # share of the teacher's training answers
CANCELS = 0.5  # share of longer questions on which a lazy answer is right
STEPS = 5  # of a build, for its progress bar
# The arithmetic model was trained on plain text; this template writes conversations the same way.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '" + PROMPT.replace("\n", "\\n").replace("{question}", "' + message['content'] + '") + "' }}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class DistillSize:
    """Rows and questions. `traces`: answers of the teacher per question; `samples`: answers per measured question;
    `memorise`: teach the teacher the very questions it is asked, the only ones a tiny model can get right.
    """

    teacher_rows: int = 6400
    teacher_lr: float = 1e-3
    batch: int = 16
    questions: int = 500
    traces: int = 8
    test_questions: int = 150
    samples: int = 8
    max_new_tokens: int = 80
    stage1_steps: int | None = None
    levels: tuple[int, ...] = (2, 3, 4)
    memorise: bool = False


SIZES = {
    "default": DistillSize(),
    "tiny": DistillSize(
        teacher_rows=1200,
        teacher_lr=5e-3,
        questions=8,
        traces=16,
        test_questions=5,
        samples=2,
        max_new_tokens=32,
        stage1_steps=2,
        levels=(2,),
        memorise=True,
    ),
}


@dataclass(frozen=True)
class DistillLab:
    """A built lab: `model` is the student after stage 1, where every run starts."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "student"

    def data(self, name: str) -> Path:
        return self.root / f"{name}.jsonl"

    @property
    def questions(self) -> list[Question]:
        rows = json.loads((self.root / "questions.json").read_text(encoding="utf-8"))
        return [Question(**row) for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        """What a report says about the lab: `sets`, the builder's counts, and `references`, the measured answers of
        `teacher`, `start` (the student before stage 1) and `student`."""
        manifest = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))
        return {"name": self.root.name, "sets": manifest["sets"], "references": manifest["references"]}


def make_question(level: int, rng: random.Random) -> ArithmeticProblem:
    """A chain of `level` operations, 2 or more; of longer ones, half end where they were after the first operation."""
    cancels = level >= 3 and rng.random() < CANCELS
    while True:
        operands = (rng.randint(SMALLEST, LARGEST), *(rng.randint(1, CHANGE) for _ in range(level)))
        problem = ArithmeticProblem(level, operands, tuple(rng.choice("+-") for _ in range(level)))
        totals = problem.totals
        if all(SMALLEST <= total <= LARGEST for total in totals) and (totals[0] == totals[-1]) == (
            cancels or level == 1
        ):
            return problem


def make_questions(count: int, seed: int, levels: Sequence[int]) -> list[ArithmeticProblem]:
    """`count` different questions, levels in turn."""
    rng = random.Random(f"distill-{seed}")
    found: dict[ArithmeticProblem, None] = {}
    while len(found) < count:
        found[make_question(levels[len(found) % len(levels)], rng)] = None
    return list(found)


def teacher_answer(problem: ArithmeticProblem, rng: random.Random) -> str:
    """Lazy or worked out, with the same probability at every level."""
    return lazy(problem) if rng.random() < LAZY else worked(problem)


def lazy(problem: ArithmeticProblem) -> str:
    """The first operation worked out, the others with 0 for their number: ` 23-3=20,20+0=20 \\boxed{20}`."""
    operands = (*problem.operands[:2], *[0] * (len(problem.operands) - 2))
    return worked(replace(problem, operands=operands))


def build_distill_lab(arithmetic: ArithmeticLabPaths, out_dir: str | Path, seed: int, size: str) -> DistillLab:
    """Build the lab on an arithmetic lab, or return it when it is there already; single-threaded, in this process."""
    settings = {
        "arithmetic": arithmetic.root.name,
        "size": asdict(SIZES[size]),
        "source": source_hash(SOURCES),
        "stage1": recipe_path(STAGE1).read_text(encoding="utf-8"),
    }
    root = Path(out_dir) / f"distill-{size}-seed{seed}-{settings_key(settings)}"

    def fill(folder: Path) -> dict[str, Any]:
        return settings | _fill(DistillLab(folder), arithmetic, seed, SIZES[size])

    build_once(root, fill)
    return DistillLab(root)


def _fill(lab: DistillLab, arithmetic: ArithmeticLabPaths, seed: int, size: DistillSize) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arithmetic.model)
    tokenizer.chat_template = TEMPLATE
    start = AutoModelForCausalLM.from_pretrained(arithmetic.model)
    teacher = AutoModelForCausalLM.from_pretrained(arithmetic.model)
    problems = make_questions(size.test_questions + size.questions, seed, size.levels)
    test, asked = problems[: size.test_questions], problems[size.test_questions :]
    questions = [Question(PROMPT.format(question=item.question), item.answer, f"level {item.level}") for item in test]
    atomic_write_json(lab.root / "questions.json", [asdict(question) for question in questions])

    report_progress(1, STEPS, "teacher")
    train_teacher(teacher, tokenizer, asked if size.memorise else [], set(test), seed, size)
    report_progress(2, STEPS, "traces")
    report = write_sets(lab, teacher, tokenizer, asked, size)
    report_progress(3, STEPS, "student, stage 1")
    _save(start, tokenizer, lab.root / "start")
    student = train_stage1(lab, seed, size)
    report_progress(4, STEPS, "measuring")
    models = {"teacher": teacher, "start": start, "student": student}
    measured = {
        name: measure_answers(model, tokenizer, questions, size.samples, size.max_new_tokens)
        for name, model in models.items()
    }
    return {"sets": dict(report.rows()), "references": measured}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_teacher(
    model: Any,
    tokenizer: Any,
    known: Sequence[ArithmeticProblem],
    hidden: set[ArithmeticProblem],
    seed: int,
    size: DistillSize,
) -> None:
    """Train the arithmetic model on: on `known` problems in turn, or without any on new ones outside `hidden`."""
    rng = random.Random(f"teacher-{seed}")
    pairs: list[tuple[str, str]] = []
    while len(pairs) < size.teacher_rows:
        turn = len(pairs)
        problem = known[turn % len(known)] if known else make_question(size.levels[turn % len(size.levels)], rng)
        if problem not in hidden:
            pairs.append((PROMPT.format(question=problem.question), teacher_answer(problem, rng)))
    schedule = Schedule(size.teacher_lr, batch_size=size.batch, equal_tokens=True)
    train_lm(model, encode(tokenizer, pairs), schedule, pad_id=tokenizer.pad_token_id, seed=seed)


def write_sets(
    lab: DistillLab, teacher: Any, tokenizer: Any, asked: Sequence[ArithmeticProblem], size: DistillSize
) -> REDIReport:
    """Sample and grade the teacher as `negpo eval` does, and write both sets of `negpo data redi`."""
    from negpo.data.problems import Problem
    from negpo.data.protocols import find_protocol
    from negpo.eval.reasoning import ReasoningRun
    from negpo.rewards import VerifierPool
    from negpo.rollout import make_engine

    problems = [Problem(f"trace/{i}", item.question, item.answer, str(item.level)) for i, item in enumerate(asked)]
    card = find_protocol("lab").with_overrides(n=size.traces, max_new_tokens=size.max_new_tokens)
    pool = VerifierPool(workers=1)  # starts no process unless an answer needs one
    try:
        ReasoningRun(
            make_engine("transformers", teacher, tokenizer),
            tokenizer,
            problems,
            "arithmetic",
            card,
            lab.root / "traces",
            kind="integer",
            pool=pool,
            prompts_per_call=256,
            show_progress=False,
        ).run()
    finally:
        pool.close()
    filters, report = REDIFilters(), REDIReport()
    questions = {problem.id: problem.question for problem in problems}
    graded = from_eval(lab.root / "traces", questions, filters, report)
    positives, pairs = build_sets(graded, tokenizer, filters, report)
    for name, found in ((RIGHT_TRACES, positives), (PAIRS, pairs)):
        atomic_write(lab.data(name), "".join(json.dumps(row) + "\n" for row in found))
    return report


def train_stage1(lab: DistillLab, seed: int, size: DistillSize) -> Any:
    """SFT on the right traces with the shipped recipe, from `start` to `student`; returns the model."""
    arguments = ["--config", STAGE1, "--model_name_or_path", str(lab.root / "start"), "--seed", str(seed)]
    arguments += ["--dataset", str(lab.data(RIGHT_TRACES)), "--output_dir", str(lab.model)]
    arguments += ["--max_steps", str(size.stage1_steps)] if size.stage1_steps else []
    trainer = build_trainer(Run("stage1", "SFT on right traces", "sft", STAGE1), arguments)
    trainer.train()
    trainer.save_model()
    return trainer.model
