"""The runs of `negpo demo rlvr`: measure the lab model, or train it with one method and measure it again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from negpo.data.io import atomic_write_json, read_jsonl
from negpo.errors import TrainingStopped
from negpo.lab._cache import source_hash
from negpo.lab._jobs import report_progress
from negpo.lab.evaluate import lab_card, sample_tests, test_problems
from negpo.lab.experiment import Plan, Run, build_trainer, by_name, describe, watch_steps
from negpo.lab.problem_lab import PROMPT, ProblemLab, ProblemWorld, build_problem_lab
from negpo.lab.rlvr_watch import Known, Probe, ProbeAnswer, WatchedEngine, probe_answers
from negpo.lab.worlds import WORLDS

BASE = "base"
PROBE_FILE = "probe.json"
EVALUATION_ROWS = 1024  # decoded together when the model is evaluated
PROBE_EVERY = 8  # optimiser steps between looks at the right answers of before
MEANS = {"logp": "logprob", "tokens": "tokens"}  # kept per problem, and the columns of samples.jsonl behind them
ERRORS = {  # of the verifier: share of wrong answers called right, of right answers called wrong
    "fp5": (0.05, 0.0),
    "fp20": (0.2, 0.0),
    "fn5": (0.0, 0.05),
    "fn20": (0.0, 0.2),
}


def _runs(card: str, *more: Run) -> dict[str, Run]:
    return by_name(
        Run("psr", "PSR", "nsr", f"nsr/{card}_psr"),
        Run("nsr", "NSR", "nsr", f"nsr/{card}"),
        Run("w_reinforce", "W-REINFORCE", "nsr", f"nsr/{card}_w_reinforce"),
        Run("grpo", "GRPO", "grpo", f"grpo/{card}"),
        Run("ngrpo", "NGRPO", "ngrpo", f"ngrpo/{card}"),
        Run("nft", "NFT", "nft", f"nft/{card}"),
        Run("resrl", "ResRL", "resrl", f"resrl/{card}"),
        *more,
    )


RUNS = {  # by world
    "arithmetic": _runs("lab"),
    "countdown": _runs("countdown", Run("topr", "TOPR", "topr", "topr/countdown")),
}


def with_errors(name: str, error: str) -> str:
    """Name of the run of a method whose verifier errs."""
    return f"{name}-{error}"


def find_run(world: str, name: str) -> Run:
    """The run of that name; `part` holds the name of its errors."""
    method, _, error = name.partition("-")
    run = RUNS[world][method]
    return replace(run, name=name, title=f"{run.title}, {error}", part=error) if error else run


@dataclass(frozen=True)
class RlvrPlan(Plan):
    """The runs of one seed. `steps`: optimiser steps, None for the recipe's."""

    steps: int | None
    engine: str
    problems: int
    samples: int
    world: str = "arithmetic"
    first: ClassVar[tuple[str, ...]] = (BASE,)

    def prepare(self) -> None:
        self.lab()

    @property
    def problem_world(self) -> ProblemWorld:
        return WORLDS[self.world]

    def lab(self) -> ProblemLab:
        """The lab of this seed, built if need be."""
        return build_problem_lab(self.problem_world, Path(self.out) / "labs", self.seed, self.size)

    def depends(self, name: str) -> dict[str, Any]:
        world = self.problem_world
        lab: dict[str, Any] = {"lab": asdict(world.sizes[self.size]), "source": source_hash(world.hashed)}
        lab |= {"world": self.world, "seed": self.seed, "problems": self.problems, "samples": self.samples}
        if name == BASE:
            return lab
        run = find_run(self.world, name)
        errors = {"errors": ERRORS[run.part]} if run.part else {}
        return lab | {"recipe": run.recipe_text, "steps": self.steps, "engine": self.engine} | errors

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        return measure_base(self, folder) if name == BASE else train(find_run(self.world, name), self, folder)


def train_arguments(run: Run, plan: RlvrPlan, lab: ProblemLab) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.model)]
    arguments += ["--dataset", str(lab.data / "train.jsonl"), "--output_dir", str(plan.place / run.name / "model")]
    arguments += ["--seed", str(plan.seed), "--engine", plan.engine]
    if run.part:
        rates = zip(("--false_positives", "--false_negatives"), ERRORS[run.part], strict=True)
        arguments += [part for flag, rate in rates if rate for part in (flag, str(rate))]
    return arguments + ([] if plan.steps is None else ["--max_steps", str(plan.steps)])


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(model: Any, tokenizer: Any, lab: ProblemLab, plan: RlvrPlan, folder: Path) -> dict[str, Any]:
    """Sample the test problems; one row per problem: level, n, c, different right answers, and parts of its entropy.

    `logp` and `tokens` are means over the problem's samples: log-prob of a sample in nats and its length. The folder
    holds a complete reasoning run, for `negpo report`.
    """
    from negpo.eval.manifest import versions
    from negpo.rewards import default_pool
    from negpo.rollout.transformers_engine import TransformersEngine

    name = folder.parent.name
    summary = sample_tests(
        lab,
        TransformersEngine(model, tokenizer, max_rows=EVALUATION_ROWS),
        tokenizer,
        folder,
        samples=plan.samples,
        problems=plan.problems,
        pool=default_pool(),  # the one that the rewards use: its workers live as long as this process
        names=(name, f"{lab.root.name}/{name}"),
        seed=plan.seed,
    )
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(folder / "samples.jsonl"):
        drawn.setdefault(row["problem"], []).append(row)
    right = right_samples(folder)
    rows = []
    for count in summary["counts"]:
        samples = drawn[count["problem"]]
        found: dict[str, Any] = {key: float(np.mean([row[field] for row in samples])) for key, field in MEANS.items()}
        found["distinct"] = len({row["text"] for row in samples if (row["problem"], row["sample"]) in right})
        rows.append({key: count[key] for key in ("problem", "level", "n", "c")} | found)
    return {"problems": rows, "versions": versions()}


def right_samples(folder: Path) -> set[tuple[str, int]]:
    """Problem and number of every right sample of a reasoning run."""
    verdicts = read_jsonl(folder / "verdicts.jsonl")
    return {(row["problem"], row["sample"]) for row in verdicts if row["status"] == "correct"}


def measure_base(plan: RlvrPlan, folder: Path) -> dict[str, Any]:
    """Evaluate the lab's model, and keep right answers of it for the probe."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started, lab = time.perf_counter(), plan.lab()
    report_progress(0, 1, "sampling")
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    model = AutoModelForCausalLM.from_pretrained(lab.model)
    result = evaluate(model, tokenizer, lab, plan, folder / "evaluation")
    right = right_samples(folder / "evaluation")
    samples = read_jsonl(folder / "evaluation" / "samples.jsonl")
    rows = sorted((row for row in samples if (row["problem"], row["sample"]) in right), key=lambda row: row["sample"])
    problems, style = test_problems(lab, plan.problems), plan.problem_world.in_style
    answers = probe_answers(rows, problems, lab_card(plan.samples), tokenizer, style)
    scores = Probe(answers, tokenizer.pad_token_id).score(model)
    atomic_write_json(folder / PROBE_FILE, {"answers": [asdict(answer) for answer in answers], "logp": scores})
    report_progress(1, 1, "done")
    return {
        "name": BASE,
        "title": "before",
        "world": plan.world,
        "style": plan.problem_world.style,
        **result,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "right_answers_per_problem": len(answers) / max(1, len({answer.problem for answer in answers})),
        "seconds": {"evaluation": time.perf_counter() - started},
    }


# ---- training --------------------------------------------------------------------------------------------------------


class ProbeHistory:
    """Scores the probe every few optimiser steps: `on_step` is called after each."""

    def __init__(self, folder: Path, pad_id: int, watched: WatchedEngine, run: Run):
        content = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
        answers = [ProbeAnswer(**{**row, "ids": tuple(row["ids"])}) for row in content["answers"]]
        self.before, self.probe = np.array(content["logp"], dtype=np.float64), Probe(answers, pad_id)
        self.watched, self.run = watched, run
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_step(self, state: Any, model: Any) -> str:
        if state.global_step % PROBE_EVERY == 0:
            self.look(state.global_step, model)
        last = self.watched.rollouts[-1]
        return f"{self.run.title}: {last['right']:.2f} right, entropy {last['entropy']:.2f}"

    def look(self, step: int, model: Any) -> np.ndarray:
        """(N,) change of every answer's log-prob since before training; its summary is kept."""
        started = time.perf_counter()
        change = self.probe.score(model) - self.before
        if len(change) and (not self.curve or self.curve[-1]["step"] != step):
            self.curve.append({"step": step, "mean": change.mean(), "drop": np.maximum(0.0, -change).mean()})
        self.seconds += time.perf_counter() - started
        return change

    def by_problem(self, change: np.ndarray) -> list[dict[str, Any]]:
        """One row per problem that had a right answer: mean change and mean drop (the part below zero) of its answers;
        `complete` and `partial`: mean change of those that carry out every operation and of the others, or None."""
        rows: dict[str, list[tuple[float, bool]]] = {}
        for answer, value in zip(self.probe.answers, change.tolist(), strict=True):
            rows.setdefault(answer.problem, []).append((value, answer.complete))
        return [{"problem": name, **_changes(found)} for name, found in rows.items()]


def _changes(found: Sequence[tuple[float, bool]]) -> dict[str, float | None]:
    values = [value for value, _ in found]
    parts = {
        name: [value for value, complete in found if complete == wanted]
        for name, wanted in (("complete", True), ("partial", False))
    }
    means = {name: float(np.mean(part)) if part else None for name, part in parts.items()}
    return {"mean": float(np.mean(values)), "drop": float(np.mean([max(0.0, -value) for value in values])), **means}


def train(run: Run, plan: RlvrPlan, folder: Path) -> dict[str, Any]:
    """Train with the shipped trainer and recipe, and evaluate; writes the model and returns the result."""
    lab = plan.lab()
    arguments = train_arguments(run, plan, lab)
    trainer = build_trainer(run, arguments)
    tokenizer = trainer.processing_class
    watched = WatchedEngine(trainer.source.engine, tokenizer, known_problems(lab), plan.problem_world)
    trainer.source.engine = watched
    history = ProbeHistory(plan.place / BASE, tokenizer.pad_token_id, watched, run)
    watch_steps(trainer, history.on_step)
    started, stopped = time.perf_counter(), ""
    try:
        trainer.train()
    except TrainingStopped as reason:  # a result too: the weights are those of the last good step
        stopped = str(reason)
    finally:
        trainer.source.close()
    training = time.perf_counter() - started - history.seconds
    change = history.look(trainer.state.global_step, trainer.model)
    trainer.save_model()
    started = time.perf_counter()
    result = evaluate(trainer.model, tokenizer, lab, plan, folder / "evaluation")
    seconds = {"training": training, "probe": history.seconds, "evaluation": time.perf_counter() - started}
    return {
        **describe(run, arguments, trainer),
        **result,
        "stopped": stopped,
        "steps": trainer.state.global_step,
        "prompts": {"count": len(watched.prompts), "sha256": fingerprint(watched.prompts)},
        "rollouts": watched.rollouts,
        "probe": {"curve": history.curve, "problems": history.by_problem(change)},
        "seconds": seconds,
    }


def known_problems(lab: ProblemLab) -> dict[str, Known]:
    """Training problems by their prompt."""
    rows = read_jsonl(lab.data / "train.jsonl")
    return {PROMPT.format(question=row["problem"]): Known(row["answer"], row["level"], row["problem"]) for row in rows}


def fingerprint(texts: Sequence[str]) -> str:
    """Hash of texts in their order."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
