"""Build the lab: data folder, tokenizer, a shared pre-trained base, and the *target* and *retain* models.

Two stages, as in TOFU: everybody learns language and common knowledge from the background corpus; then the target is
fine-tuned on all authors and the retain model on the same rows without the forget set. The second stage of both runs
side by side in two single-threaded processes. Everything is a function of `(seed, size)` and of this package's source.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write
from negpo.data.rows import fingerprint_rows
from negpo.errors import ConfigError
from negpo.lab._cache import MANIFEST, build_once, settings_key, source_hash
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.tofu_world import tofu_world
from negpo.lab.world import SIZES, World, make_world

# What a cached lab depends on, beside the sizes below and the rows of a world read from files.
LAB_SOURCES = ("templates.py", "world.yaml", "world.py", "_models.py", "stages.py")


@dataclass(frozen=True)
class ModelSize:
    """Shape of the lab's models and their two training stages. `fact_passes`: of common knowledge in pre-training."""

    vocab: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    pretrain_lr: float = 3e-3
    pretrain_batch: int = 32
    fact_passes: int = 14
    finetune_lr: float = 2e-3
    finetune_batch: int = 16
    finetune_epochs: int = 14
    max_new_tokens: int = 32  # the longest answer of the lab has 20 tokens; a collapsed model would go on for ever


MODEL_SIZES = {
    "default": ModelSize(),
    "tofu": ModelSize(vocab=4096, hidden=160, finetune_epochs=24, max_new_tokens=128),
    "tiny": ModelSize(vocab=400, hidden=32, layers=1, heads=2, fact_passes=1, finetune_epochs=6),
}


@dataclass(frozen=True)
class LabPaths:
    """A built lab. Models are Hugging Face checkpoints with their tokenizer; `data` is a folder in the TOFU schema."""

    root: Path
    forget: str

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def target(self) -> Path:
        return self.root / "target"

    @property
    def retain(self) -> Path:
        return self.root / "retain"

    @property
    def manifest(self) -> dict:
        """Seed, sizes, source hash and seconds per stage."""
        return json.loads((self.root / MANIFEST).read_text())


def build_lab(out_dir: str | Path, seed: int = 0, size: str = "default", tofu: str | Path | None = None) -> LabPaths:
    """Build the lab of `seed` under `out_dir`, or return it when it is there already.

    With `tofu`, a folder of the published files, the world is the real one (`negpo.lab.tofu_world`) and `size` is not
    used; the seed then only initialises the models.

    The folder name carries a hash of sizes and source code, so a change of either builds a new lab beside the old one.

    Raises:
        ConfigError: unknown `size`.
    """
    paths, world, settings = plan_lab(out_dir, seed, size, tofu)

    def fill(folder: Path) -> dict:
        seconds = _build(LabPaths(folder, paths.forget), world, ModelSize(**settings["model"]), seed)
        return {**settings, "size": "tofu" if tofu else size, "forget": paths.forget, "seconds": seconds}

    build_once(paths.root, fill)
    return paths


def plan_lab(
    out_dir: str | Path, seed: int, size: str, tofu: str | Path | None = None
) -> tuple[LabPaths, World, dict[str, Any]]:
    """Where `build_lab` puts the lab, its world, and everything it is a function of; builds nothing."""
    if size not in SIZES:
        raise ConfigError(f"lab size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    if tofu is None:
        world, described, forget = make_world(seed, SIZES[size]), asdict(SIZES[size]), max(SIZES[size].forget_percents)
    else:
        world, size, forget = tofu_world(tofu), "tofu", 1
        described = {"rows": fingerprint_rows([*world.splits["full"], *world.pretraining])}
    settings = {"seed": seed, "world": described, "model": asdict(MODEL_SIZES[size])}
    settings |= {"source": source_hash(LAB_SOURCES)}
    root = Path(out_dir) / f"{size}-seed{seed}-{settings_key(settings)}"
    return LabPaths(root, forget=f"forget{forget:02d}"), world, settings


def _build(paths: LabPaths, world: World, size: ModelSize, seed: int) -> dict[str, float]:
    """Write data, tokenizer, base, target and retain under `paths.root`; returns seconds per stage."""
    from negpo.lab._models import make_tokenizer

    write_data(world, paths.data)
    make_tokenizer(world.tokenizer_corpus(), size.vocab).save_pretrained(paths.tokenizer)
    percent = int(paths.forget.removeprefix("forget"))
    start = time.perf_counter()
    run_jobs([_stage(paths, "base", "pretraining", size, seed)], workers=1, title="pre-training")
    middle = time.perf_counter()
    stages = {"target": "full", "retain": f"retain{100 - percent}"}
    run_jobs([_stage(paths, name, rows, size, seed) for name, rows in stages.items()], workers=2, title="fine-tuning")
    return {"pretrain": middle - start, "finetune": time.perf_counter() - middle}


def _stage(paths: LabPaths, name: str, rows: str, size: ModelSize, seed: int) -> Job:
    """The child process that trains model `name` on the rows called `rows`, see `negpo.lab.stages`."""
    arguments = (str(paths.root), name, rows, str(seed), json.dumps(asdict(size)))
    return Job(name, "negpo.lab.stages", arguments, paths.root / "logs" / f"{name}.log")


def write_data(world: World, folder: Path) -> None:
    """The TOFU folder: JSON lines named `.json`, as published, plus the training material of the two stages."""
    files = {f"{name}.json": rows for name, rows in world.splits.items()}
    files |= {"pretraining.jsonl": world.pretraining, "facts.jsonl": world.facts}
    for name, rows in files.items():
        atomic_write(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    atomic_write(folder / "idontknow.jsonl", "".join(f"{line}\n" for line in world.refusals))
