"""Child processes of `negpo demo rlvr`: measure the lab model, or train it with one method and measure it again.

`python -m negpo.lab.rlvr_runs PLAN NAME...` does the named runs of one seed one after the other; PLAN is a `Plan` as
JSON, and the name `base` stands for the model before training. Every run ends with its `results.json`, written last and
in one piece: a run that has it is finished, any other is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from negpo.configs import recipe_path
from negpo.data.io import atomic_write_json, read_jsonl
from negpo.errors import TrainingStopped
from negpo.lab._cache import settings_key, source_hash
from negpo.lab._jobs import report_progress
from negpo.lab.arithmetic import PROMPT
from negpo.lab.arithmetic_build import SIZES, SOURCES, ArithmeticLabPaths, build_arithmetic_lab
from negpo.lab.rlvr_watch import Known, Probe, ProbeAnswer, WatchedEngine, operations, probe_answers
from negpo.report.results import RUN_FILE

logger = logging.getLogger(__name__)

BASE = "base"
PROBE_FILE = "probe.json"
EVALUATION_ROWS = 1024  # decoded together when the model is evaluated
PROBE_EVERY = 8  # optimiser steps between looks at the right answers of before
MEANS = {"logp": "logprob", "tokens": "tokens"}  # kept per problem, and the columns of samples.jsonl behind them


@dataclass(frozen=True)
class Run:
    """One line of the demo: which method and which shipped recipe."""

    name: str
    title: str
    method: str
    recipe: str


RUNS = {
    run.name: run
    for run in (
        Run("psr", "PSR", "nsr", "nsr/lab_psr"),
        Run("nsr", "NSR", "nsr", "nsr/lab"),
        Run("w_reinforce", "W-REINFORCE", "nsr", "nsr/lab_w_reinforce"),
        Run("grpo", "GRPO", "grpo", "grpo/lab"),
        Run("ngrpo", "NGRPO", "ngrpo", "ngrpo/lab"),
        Run("nft", "NFT", "nft", "nft/lab"),
        Run("resrl", "ResRL", "resrl", "resrl/lab"),
    )
}


@dataclass(frozen=True)
class Plan:
    """What the runs of one seed have in common. `steps`: optimiser steps, None for the recipe's."""

    out: str
    seed: int
    size: str
    steps: int | None
    engine: str
    problems: int
    samples: int

    @property
    def place(self) -> Path:
        return Path(self.out) / f"seed{self.seed}"

    def key(self, name: str) -> str:
        """Changes with everything a result depends on beside the code of the trainers."""
        recipe = "" if name == BASE else recipe_path(RUNS[name].recipe).read_text(encoding="utf-8")
        here = {"lab": asdict(SIZES[self.size]), "source": source_hash(SOURCES), "recipe": recipe}
        settings = {"seed": self.seed, "problems": self.problems, "samples": self.samples}
        training = {} if name == BASE else {"steps": self.steps, "engine": self.engine}
        return settings_key({**here, **settings, **training})

    def finished(self, name: str) -> bool:
        """Whether the run's result is there and belongs to these settings."""
        path = self.place / name / RUN_FILE
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["key"] == self.key(name)

    def lab(self) -> ArithmeticLabPaths:
        """The lab of this seed, built if need be."""
        return build_arithmetic_lab(Path(self.out) / "labs", self.seed, self.size)


def train_arguments(run: Run, plan: Plan, lab: ArithmeticLabPaths) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat `run` by hand."""
    arguments = ["--config", run.recipe, "--model_name_or_path", str(lab.model)]
    arguments += ["--dataset", str(lab.data / "train.jsonl"), "--output_dir", str(plan.place / run.name / "model")]
    arguments += ["--seed", str(plan.seed), "--engine", plan.engine]
    return arguments + ([] if plan.steps is None else ["--max_steps", str(plan.steps)])


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(model: Any, tokenizer: Any, lab: ArithmeticLabPaths, plan: Plan, folder: Path) -> dict[str, Any]:
    """Sample the test problems; one row per problem: level, n, c, and what entropies are estimated from.

    `logp` and `tokens` are means over the problem's samples: log-prob of a sample in nats and its length. The folder
    holds a complete reasoning run, for `negpo report`.
    """
    from negpo.data.problems import custom_benchmark, read_problems
    from negpo.data.protocols import find_protocol
    from negpo.eval.reasoning import ReasoningRun
    from negpo.models import hash_tokenizer
    from negpo.rewards import default_pool
    from negpo.rollout.transformers_engine import TransformersEngine
    from negpo.versions import versions

    bench, source = custom_benchmark(lab.benchmark)
    problems = read_problems(source, bench)[: plan.problems]
    manifest: dict[str, Any] = {"model_name": folder.parent.name, "model": f"{lab.root.name}/{folder.parent.name}"}
    manifest |= {"versions": versions(), "tokenizer": hash_tokenizer(tokenizer)}
    summary = ReasoningRun(
        TransformersEngine(model, tokenizer, max_rows=EVALUATION_ROWS),
        tokenizer,
        problems,
        bench.name,
        find_protocol("lab").with_overrides(n=plan.samples),
        folder,
        manifest=manifest,
        seed=plan.seed,
        kind=bench.kind,
        pool=default_pool(),  # the one that the rewards use: its workers live as long as this process
        show_progress=False,
    ).run()
    drawn: dict[str, list[dict[str, Any]]] = {problem.id: [] for problem in problems}
    for row in read_jsonl(folder / "samples.jsonl"):
        drawn[row["problem"]].append(row)
    rows = []
    for count in summary["counts"]:
        samples = drawn[count["problem"]]
        means = {key: float(np.mean([row[field] for row in samples])) for key, field in MEANS.items()}
        rows.append({key: count[key] for key in ("problem", "level", "n", "c")} | means)
    return {"problems": rows, "versions": manifest["versions"]}


def measure_base(plan: Plan) -> None:
    """Build the lab, evaluate its model, and keep right answers of it for the probe."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from negpo.data.problems import custom_benchmark, read_problems
    from negpo.data.protocols import find_protocol

    started = time.perf_counter()
    report_progress(0, 2, "building the lab")
    lab = plan.lab()
    built = time.perf_counter()
    report_progress(1, 2, "sampling")
    folder = plan.place / BASE
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    model = AutoModelForCausalLM.from_pretrained(lab.model)
    result = evaluate(model, tokenizer, lab, plan, folder / "evaluation")
    bench, source = custom_benchmark(lab.benchmark)
    verdicts = read_jsonl(folder / "evaluation" / "verdicts.jsonl")
    right = {(row["problem"], row["sample"]) for row in verdicts if row["status"] == "correct"}
    samples = read_jsonl(folder / "evaluation" / "samples.jsonl")
    rows = sorted((row for row in samples if (row["problem"], row["sample"]) in right), key=lambda row: row["sample"])
    problems = read_problems(source, bench)[: plan.problems]
    answers = probe_answers(rows, problems, find_protocol("lab"), tokenizer)
    scores = Probe(answers, tokenizer.pad_token_id).score(model)
    atomic_write_json(folder / PROBE_FILE, {"answers": [asdict(answer) for answer in answers], "logp": scores})
    seconds = {"lab": built - started, "evaluation": time.perf_counter() - built}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    content = {"key": plan.key(BASE), "name": BASE, "title": "before", **result, "parameters": parameters}
    content["right_answers_per_problem"] = len(answers) / max(1, len({answer.problem for answer in answers}))
    atomic_write_json(folder / RUN_FILE, content | {"seconds": seconds})
    report_progress(2, 2, "done")


# ---- training --------------------------------------------------------------------------------------------------------


class ProbeHistory:
    """Scores the probe every few optimiser steps; `callback` goes into the trainer."""

    def __init__(self, folder: Path, pad_id: int, watched: WatchedEngine, run: Run):
        content = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
        answers = [ProbeAnswer(**{**row, "ids": tuple(row["ids"])}) for row in content["answers"]]
        self.before, self.probe = np.array(content["logp"], dtype=np.float64), Probe(answers, pad_id)
        self.watched, self.run = watched, run
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        history = self

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step % PROBE_EVERY == 0:
                    history.look(state.global_step, model)
                last = history.watched.rollouts[-1]
                text = f"{history.run.title}: {last['right']:.2f} right, entropy {last['entropy']:.2f}"
                report_progress(state.global_step, state.max_steps, text)

        return Look()

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


def train(run: Run, plan: Plan) -> None:
    """Train with the shipped trainer and recipe, evaluate, write `results.json` and the model."""
    from transformers import PrinterCallback

    from negpo.trainers import _script as script_module

    lab, folder = plan.lab(), plan.place / run.name
    shutil.rmtree(folder, ignore_errors=True)  # an unfinished attempt, or one with other settings
    arguments = train_arguments(run, plan, lab)
    script, config = script_module.parse(run.method, arguments)
    config.disable_tqdm, config.report_to, config.save_strategy = True, [], "no"
    trainer = script_module.build(run.method, script, config)
    tokenizer = trainer.processing_class
    watched = WatchedEngine(trainer.source.engine, tokenizer, known_problems(lab))
    trainer.source.engine = watched
    history = ProbeHistory(plan.place / BASE, tokenizer.pad_token_id, watched, run)
    trainer.remove_callback(PrinterCallback)  # every step's log is kept in the result
    trainer.add_callback(history.callback())
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
    content = {
        "key": plan.key(run.name),
        **asdict(run),
        **result,
        "command": ["negpo", "train", run.method, *arguments],
        "config": {name: getattr(config, name) for name in shown_settings(run.method)},
        "stopped": stopped,
        "steps": trainer.state.global_step,
        "prompts": {"count": len(watched.prompts), "sha256": fingerprint(watched.prompts)},
        "rollouts": watched.rollouts,
        "probe": {"curve": history.curve, "problems": history.by_problem(change)},
        "training_log": trainer.state.log_history,
        "seconds": seconds,
    }
    atomic_write_json(folder / RUN_FILE, content)


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


def shown_settings(method: str) -> list[str]:
    """Names of the settings a report lists."""
    own = {
        "nsr": ("preset",),
        "grpo": ("variant", "dead_groups"),
        "ngrpo": ("n_virtual", "dead_groups"),
        "nft": ("weighting", "negative_weight", "dead_groups"),
        "resrl": ("rank", "positive_weight", "min_weight", "delta"),
    }
    common = ("learning_rate", "max_steps", "num_generations", "per_device_train_batch_size", "updates_per_rollout")
    return [*common, "temperature", "max_completion_length", "normalizer", "epsilon", "epsilon_high", *own[method]]


def main(arguments: Sequence[str]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    plan = Plan(**json.loads(arguments[0]))
    for name in arguments[1:]:
        if name == BASE:
            measure_base(plan)
        else:
            train(RUNS[name], plan)


if __name__ == "__main__":
    main(sys.argv[1:])
