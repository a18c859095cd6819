"""The runs of `negpo demo rlvr`: measure the lab model, or train it with one method and measure it again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from negpo.data.io import atomic_write_json, read_jsonl
from negpo.errors import TrainingStopped
from negpo.lab._cache import source_hash
from negpo.lab._jobs import report_progress
from negpo.lab.arithmetic import PROMPT
from negpo.lab.arithmetic_build import SIZES, SOURCES, ArithmeticLabPaths, build_arithmetic_lab
from negpo.lab.evaluate import lab_card, sample_tests, test_problems
from negpo.lab.experiment import Plan, Run, build_trainer, by_name, describe, watch_steps
from negpo.lab.rlvr_watch import Known, Probe, ProbeAnswer, WatchedEngine, operations, probe_answers

BASE = "base"
PROBE_FILE = "probe.json"
EVALUATION_ROWS = 1024  # decoded together when the model is evaluated
PROBE_EVERY = 8  # optimiser steps between looks at the right answers of before
MEANS = {"logp": "logprob", "tokens": "tokens"}  # kept per problem, and the columns of samples.jsonl behind them

RUNS = by_name(
    Run("psr", "PSR", "nsr", "nsr/lab_psr"),
    Run("nsr", "NSR", "nsr", "nsr/lab"),
    Run("w_reinforce", "W-REINFORCE", "nsr", "nsr/lab_w_reinforce"),
    Run("grpo", "GRPO", "grpo", "grpo/lab"),
    Run("ngrpo", "NGRPO", "ngrpo", "ngrpo/lab"),
    Run("nft", "NFT", "nft", "nft/lab"),
    Run("resrl", "ResRL", "resrl", "resrl/lab"),
)


@dataclass(frozen=True)
class RlvrPlan(Plan):
    """The runs of one seed. `steps`: optimiser steps, None for the recipe's."""

    steps: int | None
    engine: str
    problems: int
    samples: int
    first: ClassVar[tuple[str, ...]] = (BASE,)

    def prepare(self) -> None:
        self.lab()

    def lab(self) -> ArithmeticLabPaths:
        """The lab of this seed, built if need be."""
        return build_arithmetic_lab(Path(self.out) / "labs", self.seed, self.size)

    def depends(self, name: str) -> dict[str, Any]:
        lab: dict[str, Any] = {"lab": asdict(SIZES[self.size]), "source": source_hash(SOURCES)}
        lab |= {"seed": self.seed, "problems": self.problems, "samples": self.samples}
        if name == BASE:
            return lab
        return lab | {"recipe": RUNS[name].recipe_text, "steps": self.steps, "engine": self.engine}

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        return measure_base(self, folder) if name == BASE else train(RUNS[name], self, folder)


def train_arguments(run: Run, plan: RlvrPlan, lab: ArithmeticLabPaths) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.model)]
    arguments += ["--dataset", str(lab.data / "train.jsonl"), "--output_dir", str(plan.place / run.name / "model")]
    arguments += ["--seed", str(plan.seed), "--engine", plan.engine]
    return arguments + ([] if plan.steps is None else ["--max_steps", str(plan.steps)])


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(model: Any, tokenizer: Any, lab: ArithmeticLabPaths, plan: RlvrPlan, folder: Path) -> dict[str, Any]:
    """Sample the test problems; one row per problem: level, n, c, and what entropies are estimated from.

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
    rows = []
    for count in summary["counts"]:
        samples = drawn[count["problem"]]
        means = {key: float(np.mean([row[field] for row in samples])) for key, field in MEANS.items()}
        rows.append({key: count[key] for key in ("problem", "level", "n", "c")} | means)
    return {"problems": rows, "versions": versions()}


def measure_base(plan: RlvrPlan, folder: Path) -> dict[str, Any]:
    """Evaluate the lab's model, and keep right answers of it for the probe."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started, lab = time.perf_counter(), plan.lab()
    report_progress(0, 1, "sampling")
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    model = AutoModelForCausalLM.from_pretrained(lab.model)
    result = evaluate(model, tokenizer, lab, plan, folder / "evaluation")
    verdicts = read_jsonl(folder / "evaluation" / "verdicts.jsonl")
    right = {(row["problem"], row["sample"]) for row in verdicts if row["status"] == "correct"}
    samples = read_jsonl(folder / "evaluation" / "samples.jsonl")
    rows = sorted((row for row in samples if (row["problem"], row["sample"]) in right), key=lambda row: row["sample"])
    answers = probe_answers(rows, test_problems(lab, plan.problems), lab_card(plan.samples), tokenizer)
    scores = Probe(answers, tokenizer.pad_token_id).score(model)
    atomic_write_json(folder / PROBE_FILE, {"answers": [asdict(answer) for answer in answers], "logp": scores})
    report_progress(1, 1, "done")
    return {
        "name": BASE,
        "title": "before",
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
    watched = WatchedEngine(trainer.source.engine, tokenizer, known_problems(lab))
    trainer.set_up_rollouts(watched)
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


def known_problems(lab: ArithmeticLabPaths) -> dict[str, Known]:
    """Training problems by their prompt."""
    rows = read_jsonl(lab.data / "train.jsonl")
    return {
        PROMPT.format(question=row["problem"]): Known(row["answer"], row["level"], operations(row["problem"]))
        for row in rows
    }


def fingerprint(texts: Sequence[str]) -> str:
    """Hash of texts in their order."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
