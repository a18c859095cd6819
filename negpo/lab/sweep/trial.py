"""Child process of `negpo sweep`: the trials of one method on one seed.

`python -m negpo.lab.sweep.trial SPEC_FILE OUT SEED METHOD`. Each trial ends with its ``trial.json``, written last and
in one piece: one with the right key is finished, any other is done again. The weights of the trial that is best on the
validation rows so far are kept, for the mixing definition of matched utility.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError, TrainingStopped
from negpo.lab._cache import settings_key
from negpo.lab._jobs import report_progress
from negpo.lab.sweep import matched, subjects
from negpo.lab.sweep.measure import measure
from negpo.lab.sweep.spec import WEIGHT_SPACE, SweepSpec, read_spec

FILE = "trial.json"
LINE = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # how far a weight-space method walks, in units of its `weight`


def trial_folder(out: Path, seed: int, method: str, number: int) -> Path:
    return out / f"seed{seed}" / method / f"trial{number}"


def trial_key(spec: SweepSpec, seed: int, method: str, number: int) -> str:
    """Changes with everything a trial depends on, beside the code."""
    fixed = (spec.lab, spec.target, spec.data, spec.forget, spec.steps, spec.batch, spec.every, spec.stop_below)
    settings = dict(spec.settings) | dict(spec.methods[method][number])
    return settings_key({"seed": seed, "method": method, "settings": settings, "fixed": list(fixed)})


def load(out: Path, spec: SweepSpec, seed: int, method: str, number: int) -> dict[str, Any] | None:
    """A finished trial, or None."""
    path = trial_folder(out, seed, method, number) / FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found["key"] == trial_key(spec, seed, method, number) else None


def run_method(spec: SweepSpec, out: Path, seed: int, method: str) -> None:
    """All trials of one method on one seed that are not finished."""
    subject = subjects.subject(spec, out, seed)
    reference = subjects.references(subject, out / f"seed{seed}")
    split = spec.split(len(reference["target"]["rows"]["truth_ratio"]))
    best: tuple[float, int] | None = None
    for number in range(spec.trials):
        folder = trial_folder(out, seed, method, number)
        result = load(out, spec, seed, method, number)
        if result is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            result = run_trial(spec, subject, reference, folder, seed, method, number)
            atomic_write_json(folder / FILE, result)
        score = matched.best_at(result["trajectory"], reference["target"], max(spec.levels), split.validation).score
        if best is None or score > best[0]:
            if best is not None:
                shutil.rmtree(trial_folder(out, seed, method, best[1]) / "model", ignore_errors=True)
            best = (score, number)
        else:
            shutil.rmtree(folder / "model", ignore_errors=True)
        report_progress(number + 1, spec.trials, f"{method}, trial {best[1]}: {best[0]:.3f}")


def run_trial(
    spec: SweepSpec,
    subject: subjects.Subject,
    reference: dict[str, Any],
    folder: Path,
    seed: int,
    method: str,
    number: int,
) -> dict[str, Any]:
    """Train one setting and measure along the way; the last weights go to ``folder/model``."""
    started = time.perf_counter()
    settings = dict(spec.settings) | dict(spec.methods[method][number])
    walk = settings.pop("weight", None)
    if (walk is not None) != (method in WEIGHT_SPACE):
        raise ConfigError(
            f"methods.{method}, trial {number}: weight belongs to {' and '.join(WEIGHT_SPACE)}, each needs it"
        )
    trainer = subjects.trainer(subject, spec, method, settings, folder, seed)
    watch = Watch(trainer, subject, spec, reference["target"]["utility"], measured=method not in WEIGHT_SPACE)
    failure = None
    try:
        trainer.add_callback(watch.callback())
        trainer.train()
    except TrainingStopped as error:
        failure = str(error)
    if method in WEIGHT_SPACE and failure is None:
        subjects.walk_away(trainer.model, subject, [walk * w for w in LINE], watch)
    if failure is None:
        trainer.model.save_pretrained(folder / "model")
        subject.tokenizer.save_pretrained(folder / "model")
    return {
        "key": trial_key(spec, seed, method, number),
        "seed": seed,
        "method": method,
        "trial": number,
        "settings": {**settings, **({} if walk is None else {"weight": walk})},
        "trajectory": watch.points,
        "stopped": watch.reason or failure,
        "seconds": time.perf_counter() - started,
    }


class Watch:
    """Measures every few steps and gives hopeless trials up: the utility is far below every level, twice in a row."""

    def __init__(self, trainer: Any, subject: subjects.Subject, spec: SweepSpec, utility: float, *, measured: bool):
        self.trainer, self.subject, self.spec, self.utility = trainer, subject, spec, utility
        self.measured, self._low = measured, 0
        self.points: list[dict[str, Any]] = []
        self.reason: str | None = None

    def add(self, step: float, model: Any) -> None:
        point = measure(model, self.subject.tokenizer, self.subject.tofu)
        self.points.append({"step": step, **point})

    def hopeless(self) -> bool:
        share = self.points[-1]["utility"] / self.utility
        self._low = self._low + 1 if share < self.spec.stop_below else 0
        if self._low >= 2:
            self.reason = f"utility {share:.2f} of the target's at step {self.points[-1]['step']}, given up"
        return self.reason is not None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class Measure(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                due = state.global_step % watch.spec.every == 0 or state.global_step == state.max_steps
                if watch.measured and due:
                    watch.add(state.global_step, model)
                    if watch.hopeless():
                        control.should_training_stop = True
                return control

        return Measure()


if __name__ == "__main__":
    import logging
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    spec_file, out_folder, seed_text, *names = sys.argv[1:]
    for name in names:
        run_method(read_spec(spec_file), Path(out_folder), int(seed_text), name)
