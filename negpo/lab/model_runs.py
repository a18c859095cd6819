"""The runs of `negpo demo unlearn --model`: fine-tune a given model on questions and answers, then unlearn from it.

Target and retain model are made by `negpo train sft` in the evaluation's template, everything else by the methods'
published TOFU recipes with another learning rate, number of steps and batch. Learning rates are chosen on the *tuning*
plan, whose forget authors are the ones before the reported ones (or, without TOFU, those of another invented world).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from negpo.data.rows import fingerprint_rows, load_lines, load_rows
from negpo.errors import ConfigError, DataError
from negpo.lab.build import write_data
from negpo.lab.experiment import Plan, Run, build_trainer, by_name, describe, watch_steps
from negpo.lab.runs import RETAIN, RETAIN_LOG, point
from negpo.lab.world import SIZES, World, make_world
from negpo.report.results import pick_examples

FITS = {"fit_target": "full", "fit_retain": "retain"}  # models that are fine-tuned, and the rows they see
REFERENCES = {"target": "fit_target", "retain": "fit_retain"}  # evaluations of them
AUTHOR_ROWS, TOFU_AUTHORS, PARAPHRASED_AUTHORS = 20, 200, 20
HOLDOUT_FROM = 100  # authors that no model here is trained on

METHODS = by_name(
    Run("ga", "GA", "ga", "ga/tofu_forget01"),
    Run("graddiff", "GradDiff (GA + retain)", "graddiff", "graddiff/tofu_forget01", data=RETAIN),
    Run("npo", "NPO + retain", "npo", "npo/tofu_forget01", data=RETAIN),
    Run("npo_no_retain", "NPO, no retain data", "npo", "npo/tofu_forget01"),
    Run("simnpo", "SimNPO + retain", "simnpo", "simnpo/tofu_forget01", data=RETAIN),
    Run("catnip", "CATNIP, no retain data", "catnip", "catnip/tofu_forget01"),
    Run("wga", "WGA + retain", "wga", "wga/tofu_forget01", data=RETAIN),
    Run("idkdpo", "IdkDPO + retain", "idkdpo", "idkdpo/tofu_forget01", data=RETAIN),
    Run("rmu", "RMU", "rmu", "rmu/tofu_forget01", data=RETAIN),
)


def model_world(
    tofu: str | None, forget: str, authors: int, seed: int, *, tuning: bool, size: str = "default"
) -> World:
    """Rows of one plan in TOFU's schema: with `tofu` the real questions, else invented authors of `seed`.

    Args:
        forget: `forget01` or `forget05`: the last 1 or 5 % of TOFU's 200 authors; tuning takes as many before them.
        authors: how many of the first authors are learned and kept.

    Raises:
        ConfigError: a forget set without rows before it to tune on, or too many authors.
        DataError: a file is missing or is not the published one.
    """
    if tofu is None:
        return make_world(seed, SIZES[size])
    percent = forget_percent(forget)
    count = TOFU_AUTHORS * percent // 100
    if 2 * count > PARAPHRASED_AUTHORS:
        raise ConfigError(
            f"forget is {forget}: learning rates are chosen on the {count} authors before it, and TOFU publishes "
            f"wrong answers for the last {PARAPHRASED_AUTHORS} only; choose forget01 or forget05"
        )
    if not 1 <= authors <= HOLDOUT_FROM - count:
        raise ConfigError(f"authors is {authors}; choose 1 to {HOLDOUT_FROM - count}")
    full = load_rows(tofu, name="full")
    perturbed = load_rows(tofu, name="forget10_perturbed", required_lists=("perturbed_answer",))
    expected = (TOFU_AUTHORS * AUTHOR_ROWS, PARAPHRASED_AUTHORS * AUTHOR_ROWS)
    if (len(full), len(perturbed)) != expected:
        raise DataError(
            f"full and forget10_perturbed have {expected} rows in TOFU, found {len(full)} and {len(perturbed)}",
            file=str(tofu),
        )
    rows, end = count * AUTHOR_ROWS, -count * AUTHOR_ROWS if tuning else None
    start = -2 * rows if tuning else -rows
    retain, unseen = full[: authors * AUTHOR_ROWS], full[HOLDOUT_FROM * AUTHOR_ROWS :][:rows]
    name = f"{percent:02d}"
    splits = {
        "full": [*retain, *full[start:end]],
        f"forget{name}": full[start:end],
        f"retain{100 - percent}": retain,
        f"forget{name}_perturbed": perturbed[start:end],
        f"holdout{name}": unseen,
        "retain_perturbed": load_rows(tofu, name="retain_perturbed")[: min(authors, 20) * AUTHOR_ROWS],
        "real_authors_perturbed": load_rows(tofu, name="real_authors_perturbed"),
        "world_facts_perturbed": load_rows(tofu, name="world_facts_perturbed"),
    }
    return World(splits, [], 0, [], load_lines(Path(tofu) / "idontknow.jsonl"))


def forget_percent(forget: str) -> int:
    """5 of `forget05`."""
    digits = forget.removeprefix("forget")
    if not digits.isdigit() or not 1 <= int(digits) <= 99:
        raise ConfigError(f"forget is {forget!r}; give a split such as forget01 or forget05")
    return int(digits)


@dataclass(frozen=True)
class ModelPlan(Plan):
    """All runs of one seed. `rates` are method=learning rate pairs as JSON-able lists; a trial's rate is in its name.

    `deadline` (seconds since 1970, 0: none) ends the work between two runs; it is no part of any result.
    """

    model: str
    tofu: str | None
    forget: str
    authors: int
    fit_rate: float
    fit_steps: int
    steps: int
    every: int
    batch: int
    limit: int | None
    max_new_tokens: int
    dtype: str
    tuning: bool
    rates: tuple[tuple[str, float], ...] = ()
    deadline: float = 0.0

    def __post_init__(self) -> None:  # JSON has no tuples
        object.__setattr__(self, "rates", tuple((name, float(rate)) for name, rate in self.rates))

    @property
    def data(self) -> Path:
        return self.place / "data"

    def prepare(self) -> None:
        """Write the data folder; the same rows again change nothing."""
        write_data(_world(self), self.data)

    def depends(self, name: str) -> dict[str, Any]:
        """A fine-tuned model depends on its rows and settings, an evaluation also on the model, and so on down."""
        splits = {split: fingerprint_rows(rows) for split, rows in sorted(_world(self).splits.items())}
        fit = {"model": model_identity(self.model), "rows": splits, "seed": self.seed, "dtype": self.dtype}
        fit |= {"rate": self.fit_rate, "steps": self.fit_steps, "batch": self.batch}
        if name in FITS:
            return fit | {"name": name}
        evaluation = fit | {"limit": self.limit, "max_new_tokens": self.max_new_tokens}
        if name in REFERENCES:
            return evaluation | {"name": name}
        run, rate = self.run_of(name)
        return evaluation | {"recipe": run.recipe_text, "rate": rate, "unlearn": [self.steps, self.every]}

    def run_of(self, name: str) -> tuple[Run, float]:
        """The method and learning rate of `npo` (of `rates`) or of the trial `npo@2e-05`."""
        method, _, rate = name.partition("@")
        return METHODS[method], float(rate) if rate else dict(self.rates)[method]

    def do(self, name: str) -> None:
        if self.deadline and time.time() > self.deadline:
            return
        super().do(name)

    def perform(self, name: str, folder: Path) -> dict[str, Any]:
        if name in FITS:
            return fit_model(self, name, folder)
        if name in REFERENCES:
            return measure_reference(self, name)
        return unlearn(self, name, folder)


@lru_cache(maxsize=8)
def _world(plan: ModelPlan) -> World:
    return model_world(plan.tofu, plan.forget, plan.authors, plan.seed, tuning=plan.tuning, size=plan.size)


@lru_cache(maxsize=4)
def model_identity(model: str) -> str:
    """Hash of a folder's weight files; a Hub id stands for itself."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    digest = hashlib.sha256(model.encode() if not files else b"")
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def common_arguments(plan: ModelPlan, model: str, out: Path) -> list[str]:
    """Flags that every training here has."""
    flags = {
        "model_name_or_path": model,
        "output_dir": out,
        "seed": plan.seed,
        "per_device_train_batch_size": plan.batch,
        "gradient_accumulation_steps": 1,
        "bf16": str(plan.dtype == "bfloat16").lower(),
        "dtype": "float32",
        "logging_steps": 1,
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def fit_model(plan: ModelPlan, name: str, folder: Path) -> dict[str, Any]:
    """Fine-tune the given model, as `negpo train sft` does."""
    run = Run(name, name, "sft", "sft/tofu_small")
    split = "full" if name == "fit_target" else f"retain{100 - forget_percent(split_name(plan))}"
    arguments = ["--config", run.recipe, *common_arguments(plan, plan.model, folder / "model")]
    arguments += ["--dataset", str(plan.data), "--dataset_name", split]
    arguments += ["--learning_rate", repr(plan.fit_rate), "--max_steps", str(plan.fit_steps)]
    trainer = build_trainer(run, arguments)
    watch_steps(trainer, lambda state, model: name)
    started = time.perf_counter()
    trainer.train()
    trainer.save_model()
    return {**describe(run, arguments, trainer), "seconds": {"training": time.perf_counter() - started}}


def split_name(plan: ModelPlan) -> str:
    """The forget split of the plan's data: TOFU's, or the largest of the invented world."""
    return plan.forget if plan.tofu else f"forget{max(SIZES[plan.size].forget_percents):02d}"


def measure(plan: ModelPlan, model: Any, tokenizer: Any, retain_log: Any = None) -> Any:
    """The whole TOFU harness on the first `limit` rows of every set, in the precision of the plan."""
    import torch

    from negpo.eval.tofu import TofuSettings, evaluate_tofu, load_tofu

    settings = TofuSettings(max_new_tokens=plan.max_new_tokens)
    data = load_tofu(plan.data, split_name(plan)).first(plan.limit)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plan.dtype == "bfloat16"):
        return evaluate_tofu(model, tokenizer, data, settings, retain_log=retain_log, name="demo")


def load_retain_log(plan: ModelPlan) -> Any:
    from negpo.eval.retain_log import RetainLog

    return RetainLog.load(plan.place / RETAIN_LOG, forget=split_name(plan), mode="open-unlearning")


def measure_reference(plan: ModelPlan, name: str) -> dict[str, Any]:
    """Evaluate the retain model, whose log everything else is compared with, or the target."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started, folder = time.perf_counter(), plan.place / REFERENCES[name] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    result = measure(plan, model, tokenizer, None if name == "retain" else load_retain_log(plan))
    if name == "retain":
        result.retain_log().save(plan.place / RETAIN_LOG)
    content = {"name": name, "trajectory": [point(0, result)], "manifest": result.manifest}
    content |= {"examples": pick_examples(result.per_item)}
    return content | {"seconds": {"evaluation": time.perf_counter() - started}}


def unlearn_arguments(plan: ModelPlan, run: Run, rate: float, out: Path) -> list[str]:
    """What follows `negpo train METHOD` on the command line to repeat the run by hand."""
    arguments = ["--config", run.recipe, *common_arguments(plan, str(plan.place / "fit_target" / "model"), out)]
    arguments += ["--forget_dataset", str(plan.data), "--forget_name", split_name(plan)]
    arguments += ["--learning_rate", repr(rate), "--max_steps", str(plan.steps), "--warmup_steps", "0"]
    if run.data == RETAIN:
        retain = f"retain{100 - forget_percent(split_name(plan))}"
        arguments += ["--retain_dataset", str(plan.data), "--retain_name", retain]
    else:
        arguments += ["--retain_loss", "none", "--retain_dataset", "none"]
    if run.method == "idkdpo":
        arguments += ["--idk_file", str(plan.data / "idontknow.jsonl")]
    return arguments


def unlearn(plan: ModelPlan, name: str, folder: Path) -> dict[str, Any]:
    """Train one method at one learning rate, measuring along the way; a trial keeps no model."""
    run, rate = plan.run_of(name)
    arguments = unlearn_arguments(plan, run, rate, folder / "model")
    trainer = build_trainer(run, arguments)
    retain_log, spent = load_retain_log(plan), 0.0
    points: list[dict[str, Any]] = []
    last: list[Any] = []

    def look(state: Any, model: Any) -> str:
        nonlocal spent
        if state.global_step % plan.every == 0 or state.global_step == state.max_steps:
            started = time.perf_counter()
            last[:] = [measure(plan, model, trainer.processing_class, retain_log)]
            points.append(point(state.global_step, last[0]))
            spent += time.perf_counter() - started
        return name

    watch_steps(trainer, look)
    started = time.perf_counter()
    trainer.train()
    seconds = {"training": time.perf_counter() - started - spent, "evaluation": spent}
    if "@" not in name:
        trainer.save_model()
    return {
        **describe(run, arguments, trainer),
        "name": name,
        "learning_rate": rate,
        "retain": run.data == RETAIN,
        "trajectory": points,
        "examples": pick_examples(last[0].per_item),
        "manifest": last[0].manifest,
        "seconds": seconds,
    }
