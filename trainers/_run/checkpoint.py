"""Checkpoints that are either complete or absent.

The Trainer writes a checkpoint file by file. A run killed in between leaves a folder that looks usable, so a finished
checkpoint is sealed: the last file written lists every other file with its size and a checksum. Folders without a
matching seal are not resumed from, and an older checkpoint is deleted only after a newer one is sealed.
"""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError, TrainingStopped

logger = logging.getLogger(__name__)
SEAL = "negpo_checkpoint.json"
BLOCK, SAMPLES = 2**20, 256


def seal(folder: Path, provenance: dict[str, Any]) -> None:
    """Mark ``folder`` complete. ``provenance`` (data and reference hashes) is compared on resume."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths.pop(SEAL, None)
    files = {name: path.stat().st_size for name, path in paths.items()}
    checksums = {name: checksum(path) for name, path in paths.items()}
    atomic_write_json(folder / SEAL, {"files": files, "checksums": checksums, "provenance": provenance})


def checksum(path: Path) -> int:
    """CRC-32 of a file; of a large one SAMPLES evenly spaced blocks of BLOCK bytes, its end included.

    Reading all of a 70B model's optimiser states would take longer than some training steps. What goes wrong with files
    in practice, missing or zeroed stretches and ends, is larger than the gaps.
    """
    size, value = path.stat().st_size, 0
    last = max(0, size - BLOCK)
    count = -(-size // BLOCK)
    places = range(0, size, BLOCK) if count <= SAMPLES else [last * i // (SAMPLES - 1) for i in range(SAMPLES)]
    with open(path, "rb") as file:
        for place in places:
            file.seek(place)
            value = zlib.crc32(file.read(BLOCK), value)
    return value


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is complete."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        files, checksums = dict(sealed["files"]), dict(sealed["checksums"])
        if not (files and isinstance(sealed["provenance"], dict)):
            raise ValueError("nothing is sealed")
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} is missing or unreadable: saving was interrupted"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or not {size} bytes long"
    for name, value in checksums.items():
        if checksum(folder / name) != value:
            return f"{name} was changed after it was written (checksum differs)"
    return None


@contextmanager
def writing(trainer: Any, folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Around everything that writes ``folder``: sealed at the end, removed when it could not be written.

    Only then are older checkpoints deleted (``save_total_limit``): the Trainer would do so before the new one is whole.

    Raises TrainingStopped with the reason (a full disk) and the checkpoint that is still there.
    """
    args, limit = trainer.args, trainer.args.save_total_limit
    args.save_total_limit = None
    try:
        yield
    except Exception as error:
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, TrainingStopped):  # already in words
            raise
        raise TrainingStopped(not_saved(folder, error, args.output_dir), told=True) from error
    finally:
        args.save_total_limit = limit
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        seal(folder, identity)


class Rotation(TrainerCallback):
    """Deletes old checkpoints (``save_total_limit``) once the newest is proved: a step was taken from it.

    Finite weights can still give a loss that is not; until one that does not, the checkpoint before stays.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.settle(f"checkpoint-{state.global_step}")

    def settle(self, unproved: str = "") -> None:
        """Delete what is too much, not counting the folder named ``unproved``."""
        args, state = self.trainer.args, self.trainer.state
        if args.should_save:
            rotate(
                Path(args.output_dir),
                args.save_total_limit,
                keep={unproved, Path(state.best_model_checkpoint or "").name},
            )


def rotate(output_dir: Path, limit: int | None, *, keep: set[str]) -> None:
    """Delete the oldest checkpoints beyond ``limit``; those named in ``keep`` stay."""
    if not limit or limit <= 0:
        return
    oldest_first = sorted(_numbered(output_dir))
    if len(oldest_first) <= limit:
        return
    newest = oldest_first[-1][1].name
    spare = [path for _, path in oldest_first if path.name not in keep | {newest}]
    for path in spare[: len(oldest_first) - limit]:
        shutil.rmtree(path, ignore_errors=True)


def not_saved(folder: Path, error: Exception, output_dir: str) -> str:
    """What to tell when ``folder`` could not be written."""
    last = last_complete(output_dir)
    kept = f"The last complete checkpoint is {last}" if last else "There is no complete checkpoint"
    return f"{folder} could not be written: {error}. Nothing half-written is left; free disk space and resume. {kept}"


def layout(args: Any, *, exact: bool) -> dict[str, Any]:
    """Provenance of how a step is spread. A step must hold as many rows as before, or the place in the data is lost;
    ``exact`` (state that every rank keeps for itself): on as many processes as before."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {"rows per step": rows} | ({"number of processes": args.world_size} if exact else {})


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SEAL).read_text())["provenance"]


def last_complete(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint-N under ``output_dir``; damaged ones are passed over with a warning."""
    for _, path in sorted(_numbered(Path(output_dir)), reverse=True):
        if (problem := damage(path)) is None:
            return path
        logger.warning("not resuming from %s: %s", path, problem)
    return None


def resolve(resume: str | Path | bool | None, output_dir: str | Path) -> str | None:
    """The folder to resume from; None to start at the beginning.

    ``True`` is the newest complete one, which must exist; "auto" the same, or the beginning where there is none (for
    jobs that a scheduler starts again). A named one must be complete.
    """
    if not resume:
        return None
    if resume is True or resume == "auto":
        found = last_complete(output_dir)
        if found is None and resume == "auto":
            return None
        if found is None:
            raise ConfigError(f"nothing to resume: there is no complete checkpoint-N in {output_dir}")
        return str(found)
    if problem := damage(Path(resume)):
        found = last_complete(Path(resume).parent)
        instead = f"resume from {found}" if found else "there is no other; start again"
        raise ConfigError(f"cannot resume from {resume}: {problem}. Instead: {instead}")
    return str(resume)


def check_complete_state(folder: str) -> None:
    """ConfigError for a checkpoint without an optimiser: a resumed run would silently begin a new one."""
    files = json.loads((Path(folder) / SEAL).read_text())["files"]
    if not any(part.startswith(("optimizer", "global_step")) for name in files for part in Path(name).parts):
        raise ConfigError(
            f"cannot resume from {folder}: it holds weights without the state of the optimiser (save_only_model=true). "
            "Start a new run from it (model_name_or_path), or resume from a whole checkpoint"
        )


def check_provenance(folder: str, current: dict[str, Any]) -> None:
    """ConfigError when the checkpoint belongs to other data or to another starting model."""
    saved = provenance(Path(folder))
    differing = [name for name in current if saved.get(name) != current[name]]
    if not differing:
        return
    of_layout = [name for name in ("rows per step", "number of processes") if name in differing]
    if differing == of_layout:
        changes = ", ".join(f"{name}: {saved.get(name)} then, {current[name]} now" for name in of_layout)
        raise ConfigError(
            f"cannot resume from {folder}: {changes}. Start as many processes as before, or start a new run from the "
            "saved weights (without sharding the product of processes, batch size and accumulation steps may be kept)"
        )
    raise ConfigError(
        f"cannot resume from {folder}: {' and '.join(differing)} differ from those of the run that saved it. Pass "
        "the same rows, settings and *starting* model (not the checkpoint) as in the first run"
    )


def _numbered(output_dir: Path) -> list[tuple[int, Path]]:
    return [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _number(path))]


def _number(path: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)
