"""``negpo train METHOD`` and ``scripts/train.py METHOD``: a recipe and flags in, an unlearned checkpoint out."""

import difflib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trl import TrlParser

from negpo.configs import recipe_path
from negpo.data.io import atomic_write
from negpo.data.qa import QATemplate
from negpo.data.rows import load_rows
from negpo.errors import ConfigError, DataError
from negpo.trainers import METHODS
from negpo.trainers._run.callbacks import OverUnlearningCallback
from negpo.trainers._run.model import load_tokenizer
from negpo.trainers._unlearn.config import UnlearnConfig

logger = logging.getLogger(__name__)
IDK_FIELDS = ("idk", "answer", "text")


@dataclass
class UnlearnScriptArguments:
    """What a recipe says beside the method's config: model, data and adapter."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to unlearn from: Hub id or folder."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer; default: the model's."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another reference than the starting model."}
    )
    template_model: str | None = field(
        default=None, metadata={"help": "Model whose published question-answer template is used; default: the model."}
    )
    dtype: str = field(default="auto", metadata={"help": "dtype of the weights: auto, float32, bfloat16, float16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention kernel, e.g. sdpa."})
    forget_dataset: str | None = field(default=None, metadata={"help": "Rows to forget: file, folder or Hub id."})
    forget_name: str | None = field(default=None, metadata={"help": "Configuration of the forget data, e.g. forget10."})
    retain_dataset: str | None = field(default=None, metadata={"help": "Rows to keep: file, folder or Hub id."})
    retain_name: str | None = field(default=None, metadata={"help": "Configuration of the retain data, e.g. retain90."})
    dataset_split: str = field(default="train", metadata={"help": "Split of both."})
    idk_file: str | None = field(default=None, metadata={"help": "idkdpo: texts like TOFU's idontknow.jsonl."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear layers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: 4-bit NF4 base weights (needs use_peft)."})
    stop_when_over_unlearned: bool = field(
        default=False, metadata={"help": "Stop once forget tokens are less likely than a uniform guess."}
    )

    def validate(self) -> None:
        for name in ("model_name_or_path", "forget_dataset"):
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is missing: set it in the recipe or pass --{name}")
        if self.load_in_4bit and not self.use_peft:
            raise ConfigError("load_in_4bit needs use_peft: quantised weights cannot be trained themselves")


class ModelArguments(Protocol):
    """What the script arguments of all kinds of training say about weights and adapter."""

    dtype: str
    attn_implementation: str | None
    use_peft: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: list[str] | None
    load_in_4bit: bool


class _Parser(TrlParser):
    """TrlParser that reports a bad value as ConfigError instead of printing 300 lines of usage."""

    def error(self, message: str):
        raise ConfigError(message)


def parse(method: str, argv: Sequence[str]) -> tuple[UnlearnScriptArguments, UnlearnConfig]:
    """Script arguments and the method's config from ``[--config RECIPE] [--key value ...]``; flags win over the recipe.

    RECIPE is a file or a shipped name such as ``npo/tofu_forget10``. An unknown key is a ConfigError that names the
    file and the nearest valid key.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{_nearest(method, METHODS)}. Methods: {', '.join(METHODS)}")
    module, _, config = METHODS[method]
    config_class = getattr(import_module(module), config)
    kinds: Any = (UnlearnScriptArguments, config_class)
    parser = _Parser(kinds, allow_abbrev=False)
    known = {item.name for kind in kinds for item in fields(kind) if item.init}
    argv = _with_recipe(list(argv), known)
    script, args, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        raise ConfigError(f"unknown flag {unknown[0]}{_nearest(key, known, '--')}; see negpo train {method} --help")
    script.validate()
    return script, args


def _with_recipe(argv: list[str], known: set[str]) -> list[str]:
    """``argv`` with the recipe's name replaced by its path, after its keys were checked."""
    import yaml

    if "--config" not in argv:
        return argv
    place = argv.index("--config") + 1
    if place == len(argv):
        raise ConfigError("--config needs a file or the name of a shipped recipe")
    path = recipe_path(argv[place])
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} is not a list of 'key: value' lines")
    for key in recipe:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}{_nearest(str(key), known)}")
    return [*argv[:place], str(path), *argv[place + 1 :]]


def _nearest(key: str, known: Any, dashes: str = "") -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f" (did you mean {dashes}{close[0]}?)" if close else ""


def run_training(method: str, argv: Sequence[str]) -> None:
    """Train ``method`` and save model, tokenizer, log history and settings to ``output_dir``.

    Raises ConfigError, DataError or TrainingStopped, whose messages are meant for the person who started the run.
    """
    script, args = parse(method, argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if args.output_dir in (None, "trainer_output"):
        args.output_dir = f"{method}-output"
    trainer = build(method, script, args)
    trainer.data_sources = {
        "forget": (script.forget_dataset, script.forget_name),
        "retain": (script.retain_dataset, script.retain_name),
    }
    resume = {"true": True, "false": None}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
        settings = {"method": method, "arguments": list(argv), "script": vars(script), "config": args.to_dict()}
        settings["processes"] = args.world_size
        atomic_write(Path(args.output_dir) / "negpo_train.json", json.dumps(settings, indent=1, default=str))
        logger.info("saved to %s", args.output_dir)


def build(method: str, script: UnlearnScriptArguments, args: UnlearnConfig) -> Any:
    """The trainer of a parsed recipe. Errors in rows name the file they came from."""
    module, trainer, _ = METHODS[method]
    assert script.forget_dataset is not None  # validate() has refused that
    assert script.model_name_or_path is not None
    forget = load_rows(script.forget_dataset, name=script.forget_name, split=script.dataset_split, required=())
    retain = None
    if script.retain_dataset is not None:
        retain = load_rows(script.retain_dataset, name=script.retain_name, split=script.dataset_split, required=())
    source = script.tokenizer_name_or_path or script.model_name_or_path
    tokenizer = load_tokenizer(source, None)
    further = {"idk_answers": _idk_answers(script.idk_file)} if method == "idkdpo" else {}
    given: Any = args.model_init_kwargs or {}  # a dict: TrainingArguments has parsed JSON text
    args.model_init_kwargs = _init_kwargs(script) | given
    try:
        return getattr(import_module(module), trainer)(
            model=script.model_name_or_path,
            args=args,
            train_dataset=forget,
            retain_dataset=retain,
            processing_class=tokenizer,
            ref_model=script.ref_model_name_or_path,
            peft_config=_peft_config(script),
            callbacks=[OverUnlearningCallback()] if script.stop_when_over_unlearned else None,
            template=QATemplate.for_model(script.template_model or script.model_name_or_path, tokenizer),
            **further,
        )
    except DataError as error:
        raise _with_file(error, script) from error


def _idk_answers(source: str | None) -> list[str]:
    if source is None:
        raise ConfigError("idk_file is missing: idkdpo needs texts such as TOFU's idontknow.jsonl")
    rows = load_rows(source, required=())
    answers = []
    for index, row in enumerate(rows):
        key = next((name for name in IDK_FIELDS if name in row), None)
        if key is None:
            raise DataError(f"found fields {sorted(row)}; need one of {IDK_FIELDS}", file=source, row=index)
        answers.append(row[key])
    return answers


def _init_kwargs(script: ModelArguments) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"dtype": script.dtype}
    if script.attn_implementation:
        kwargs["attn_implementation"] = script.attn_implementation
    if script.load_in_4bit:
        import torch
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return kwargs


def _peft_config(script: ModelArguments) -> Any:
    if not script.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=script.lora_r,
        lora_alpha=script.lora_alpha,
        lora_dropout=script.lora_dropout,
        target_modules=script.lora_target_modules or "all-linear",
    )


def _with_file(error: DataError, script: UnlearnScriptArguments) -> DataError:
    """The same error with the data source in the place of the trainer's argument name."""
    sources = {
        "train_dataset": (script.forget_dataset, script.forget_name),
        "retain_dataset": (script.retain_dataset, script.retain_name),
        "idk_answers": (script.idk_file, None),
    }
    if error.file not in sources:
        return error
    source = ":".join(filter(None, sources[error.file]))
    message = str(error).split(": ", 1)[1]
    return DataError(message, file=source, row=error.row, field=error.field)
