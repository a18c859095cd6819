"""What `negpo demo unlearn --model` will take, said before it starts: planned memory, seconds from one timed step."""

from __future__ import annotations

import os
import time
from typing import Any

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError
from negpo.lab.experiment import TUNING_SEEDS
from negpo.lab.model_runs import FITS, model_identity

ROW_TOKENS = 96  # a TOFU question with its answer in a chat template
ANSWERS = 7  # per question: its own, a paraphrase, five wrong ones
FORWARD_SHARE = 1 / 3  # of a training step
SETS = 3.4  # forget, retain, real authors and world facts, in units of the retain rows of the evaluation


def check_memory(settings: Any) -> None:
    """Refuse a model whose training does not fit, before it is loaded; ``settings``: `model_demo.ModelDemoSettings`.

    Raises:
        ConfigError: names the planned peak, what is free, and what to lower; or a model that cannot be read.
    """
    from negpo.plan import Settings, load_shape, make_plan

    free = free_bytes()
    planned = make_plan(
        load_shape(settings.model),
        Settings(
            method="npo",
            micro_batch=settings.batch,
            sequence_length=2 * ROW_TOKENS,
            answer_share=0.6,
            dtype="fp32",
            device_type="cpu",
            memory=max(1, free // settings.workers),
        ),
    )
    if not planned.fits:
        peak = planned.memory.peak.total
        raise ConfigError(
            f"{settings.model} needs about {peak / 2**30:.1f} GiB in training, and {settings.workers} runs side by "
            f"side share {free / 2**30:.1f} GiB of free memory; use --workers 1, a smaller --batch or a smaller model"
        )


def free_bytes() -> int:
    """Memory that new processes can have; a laptop's where the system does not tell."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 8 << 30
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def estimate(settings: Any) -> dict[str, float]:
    """Seconds by part on `workers` single threads, from one timed step; kept in the folder for the next call."""
    path = settings.out / "speed.json"
    key = [model_identity(settings.model), settings.batch, settings.dtype]
    known: dict[str, Any] = {}
    if path.is_file():
        import json

        known = json.loads(path.read_text(encoding="utf-8"))
    if known.get("key") != key:
        known = {"key": key, "step_seconds": _step_seconds(settings)}
        atomic_write_json(path, known)
    step = known["step_seconds"]
    plans = len(settings.seeds) + (len(settings.rates) > 1)
    rows = min(settings.limit or 300, 300)
    evaluation = SETS * rows * ANSWERS / settings.batch * step * FORWARD_SHARE
    evaluation += SETS * rows * settings.max_new_tokens / ROW_TOKENS / settings.batch * step * FORWARD_SHARE
    trials = len(settings.methods) * len(settings.rates) if len(settings.rates) > 1 else 0
    runs = len(settings.methods) * len(settings.seeds)
    points = -(-settings.steps // settings.every)
    parts = {
        "fine-tuning": plans * len(FITS) * settings.fit_steps * step,
        "evaluation before": plans * 2 * evaluation,
        f"trials (seed {TUNING_SEEDS[0]})": trials * (2 * settings.steps * step + evaluation),
        "unlearning": runs * (2 * settings.steps * step + points * evaluation),
    }
    return {name: seconds / settings.workers for name, seconds in parts.items() if seconds}


def _step_seconds(settings: Any) -> float:
    """One forward and backward of `batch` rows, on one thread, the second of two."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {settings.model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    ids = torch.randint(model.config.get_text_config().vocab_size, (settings.batch, ROW_TOKENS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                loss = model(ids, labels=ids).loss
            loss.backward()
            seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    return seconds


def show_estimate(console: Any, settings: Any, parts: dict[str, float]) -> None:
    """The plan of the work on the terminal, and whether it fits the budget."""
    from rich.table import Table

    table = Table(title="what this will take (estimated from one step; finished parts are not done again)")
    table.add_column("part")
    table.add_column("minutes", justify="right")
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds / 60:.1f}")
    total = sum(parts.values())
    table.add_row("all", f"{total / 60:.1f}")
    console.print(table)
    if settings.hours and total > settings.hours * 3600:
        console.print(
            f"This is more than --hours {settings.hours:g}: work stops at the limit and what is finished is reported. "
            "Fewer --rates, --methods or --steps, a larger --every or a smaller --limit make it fit."
        )
