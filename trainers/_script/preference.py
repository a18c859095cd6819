"""``negpo train METHOD`` on preference data, and REDI's two stages in one command."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from negpo.data.rows import load_rows
from negpo.errors import ConfigError, DataError
from negpo.trainers import METHODS
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._run.model import load_tokenizer
from negpo.trainers._script.unlearn import _init_kwargs, _nearest, _Parser, _peft_config, _with_recipe

logger = logging.getLogger(__name__)
STAGES = ("1", "2", "both")


@dataclass
class PreferenceScriptArguments:
    """What a recipe says beside the method's config: model, data, adapter, stages."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: Hub id or folder."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer; default: the model's."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another reference than the starting model (d2o: of the rejected answers)."}
    )
    sample_ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "d2o: reference that draws and anchors the samples."}
    )
    dtype: str = field(default="auto", metadata={"help": "dtype of the weights: auto, float32, bfloat16, float16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention kernel, e.g. sdpa."})
    dataset: str | None = field(default=None, metadata={"help": "Preference rows: file, folder or Hub id."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_rows: int | None = field(default=None, metadata={"help": "Use only the first so many rows."})
    stages: str = field(
        default="2", metadata={"help": "redi: 2 (this recipe), 1 (stage1_config) or both, one after the other."}
    )
    stage1_config: str | None = field(default=None, metadata={"help": "redi: recipe of stage 1, a run of `sft`."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear layers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: 4-bit NF4 base weights (needs use_peft)."})

    def validate(self, method: str) -> None:
        for name in ("model_name_or_path", "dataset"):
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is missing: set it in the recipe or pass --{name}")
        if self.load_in_4bit and not self.use_peft:
            raise ConfigError("load_in_4bit needs use_peft: quantised weights cannot be trained themselves")
        if self.stages not in STAGES:
            raise ConfigError(f"stages is {self.stages!r}; choose one of {', '.join(STAGES)}")
        if self.stages != "2" and method != "redi":
            raise ConfigError(f"stages={self.stages} belongs to redi; {method} has one stage")
        if self.stages != "2" and self.stage1_config is None:
            raise ConfigError("stages=1 and stages=both need stage1_config, the recipe of stage 1")
        if self.sample_ref_model_name_or_path and method != "d2o":
            raise ConfigError(f"sample_ref_model_name_or_path belongs to d2o; {method} draws no samples")


def parse(method: str, argv: Sequence[str]) -> tuple[PreferenceScriptArguments, PreferenceConfig]:
    """Script arguments and the method's config from ``[--config RECIPE] [--key value ...]``; flags win over the recipe.

    An unknown key is a ConfigError that names the file and the nearest valid key.
    """
    module, _, config = METHODS[method]
    config_class = getattr(import_module(module), config)
    kinds: Any = (PreferenceScriptArguments, config_class)
    parser = _Parser(kinds, allow_abbrev=False)
    known = {item.name for kind in kinds for item in fields(kind) if item.init}
    argv = _with_recipe(list(argv), known)
    script, args, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        raise ConfigError(f"unknown flag {unknown[0]}{_nearest(key, known, '--')}; see negpo train {method} --help")
    script.stages = str(script.stages)
    script.validate(method)
    if args.output_dir in (None, "trainer_output"):
        args.output_dir = f"{method}-output"
    return script, args


def run_training(method: str, argv: Sequence[str]) -> None:
    """Train ``method`` and save model, tokenizer, log history, settings and the data report to ``output_dir``.

    With ``stages=both`` the positives of stage 1 are learned first (skipped where its output is already complete) and
    stage 2 starts from its output. Raises ConfigError, DataError or TrainingStopped, whose messages are meant for the
    person who started the run.
    """
    script, args = parse(method, argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if script.stages != "2":
        assert script.stage1_config is not None  # validate() has refused that
        recipe = ["--config", script.stage1_config]
        first, first_args = parse("sft", recipe)
        script.model_name_or_path = first_args.output_dir
        if (_output(first_args) / "negpo_train.json").is_file():
            logger.info("stage 1 is complete in %s", first_args.output_dir)
        else:
            _train("sft", first, first_args, recipe)
    if script.stages != "1":
        _train(method, script, args, argv)


def _output(args: PreferenceConfig) -> Path:
    assert args.output_dir is not None  # parse() fills it
    return Path(args.output_dir)


def _train(method: str, script: PreferenceScriptArguments, args: PreferenceConfig, argv: Sequence[str]) -> None:
    trainer = build(method, script, args)
    trainer.data_sources = {"preference": (script.dataset, script.dataset_name)}
    resume = {"true": True, "false": None}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(_output(args) / "trainer_state.json"))
        settings = {"method": method, "arguments": list(argv), "script": vars(script), "config": args.to_dict()}
        settings["processes"] = args.world_size
        settings["data"] = trainer.report.lines()
        # written last: its presence says that the run is complete
        (_output(args) / "negpo_train.json").write_text(json.dumps(settings, indent=1, default=str))
        logger.info("saved to %s", args.output_dir)


def build(method: str, script: PreferenceScriptArguments, args: PreferenceConfig) -> Any:
    """The trainer of a parsed recipe. Errors in rows name the file they came from."""
    module, trainer, _ = METHODS[method]
    assert script.dataset is not None  # validate() has refused that
    assert script.model_name_or_path is not None
    rows = load_rows(script.dataset, name=script.dataset_name, split=script.dataset_split, required=())
    given: Any = args.model_init_kwargs or {}  # a dict: TrainingArguments has parsed JSON text
    args.model_init_kwargs = _init_kwargs(script) | given
    further = {"ref_model": script.ref_model_name_or_path} if script.ref_model_name_or_path else {}
    if script.sample_ref_model_name_or_path:
        further["sample_ref_model"] = script.sample_ref_model_name_or_path
    try:
        return getattr(import_module(module), trainer)(
            model=script.model_name_or_path,
            args=args,
            train_dataset=rows[: script.max_rows],
            processing_class=load_tokenizer(script.tokenizer_name_or_path or script.model_name_or_path, None),
            peft_config=_peft_config(script),
            **further,
        )
    except DataError as error:
        if error.file != "train_dataset":
            raise
        source = ":".join(filter(None, (script.dataset, script.dataset_name)))
        raise DataError(str(error).split(": ", 1)[1], file=source, row=error.row, field=error.field) from error
