"""Parse, build, run: what ``negpo train METHOD`` and ``scripts/train.py METHOD`` do, whatever the method."""

import json
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from negpo.data.io import atomic_write
from negpo.errors import DataError
from negpo.trainers import METHODS
from negpo.trainers._run.script_arguments import ScriptArguments
from negpo.trainers._script.parse import parse

logger = logging.getLogger(__name__)
COMPLETE = "negpo_train.json"


def run_training(method: str, argv: Sequence[str]) -> None:
    """Train ``method`` and save model, tokenizer, log history and settings to ``output_dir``.

    Raises ConfigError, DataError or TrainingStopped, whose messages are meant for the person who started the run.
    """
    script, args = parse(method, argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if (earlier := script.earlier_run()) is not None:
        script.model_name_or_path = _output_of(*earlier)
    if script.trains:
        _train(method, script, args, argv)


def build(method: str, script: Any, args: Any) -> Any:
    """The trainer of a parsed recipe. Errors in rows name the file they came from."""
    module, trainer, _ = METHODS[method]
    given: Any = args.model_init_kwargs or {}  # a dict: TrainingArguments has parsed JSON text
    args.model_init_kwargs = script.init_kwargs() | given
    try:
        built = script.build(getattr(import_module(module), trainer), args)
    except DataError as error:
        raise _named_after_its_file(error, script) from error
    built.data_sources = {source.kind: (source.path, source.name) for source in script.sources().values()}
    return built


def _output_of(method: str, argv: Sequence[str]) -> str:
    """The output folder of a run, which is done now unless it is complete."""
    script, args = parse(method, argv)
    if (Path(args.output_dir) / COMPLETE).is_file():
        logger.info("%s is complete in %s", method, args.output_dir)
    else:
        _train(method, script, args, argv)
    return args.output_dir


def _train(method: str, script: Any, args: Any, argv: Sequence[str]) -> None:
    trainer = build(method, script, args)
    resume = {"true": True, "false": None}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        trainer.close()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
        settings = {"method": method, "arguments": list(argv), "script": vars(script), "config": args.to_dict()}
        settings |= {"processes": args.world_size} | trainer.remarks()
        # written last and at once: its presence says that the run is complete
        atomic_write(Path(args.output_dir) / COMPLETE, json.dumps(settings, indent=1, default=str))
        logger.info("saved to %s", args.output_dir)


def _named_after_its_file(error: DataError, script: ScriptArguments) -> DataError:
    """The same error with the data source in the place of the trainer's argument name."""
    source = script.sources().get(error.file or "")
    if source is None:
        return error
    return DataError(str(error).split(": ", 1)[1], file=str(source), row=error.row, field=error.field)
