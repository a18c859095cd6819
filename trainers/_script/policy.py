"""``negpo train METHOD`` for reinforcement learning: a recipe and flags in, a trained checkpoint out."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from negpo.data.problems import last_box
from negpo.data.protocols import Protocol, find_protocol
from negpo.data.rows import load_rows
from negpo.errors import ConfigError, DataError
from negpo.rewards import correctness_reward, length_reward
from negpo.trainers import METHODS
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._run.model import load_tokenizer
from negpo.trainers._script.unlearn import _init_kwargs, _nearest, _Parser, _peft_config, _with_recipe

logger = logging.getLogger(__name__)


@dataclass
class RLScriptArguments:
    """What a recipe says beside the method's config: model, problems, prompt and verifier."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: Hub id or folder."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer; default: the model's."})
    dtype: str = field(default="auto", metadata={"help": "dtype of the weights: auto, float32, bfloat16, float16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention kernel, e.g. sdpa."})
    dataset: str | None = field(default=None, metadata={"help": "Problems: file, folder or Hub id."})
    dataset_names: list[str] | None = field(default=None, metadata={"help": "Configurations of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_problems: int | None = field(default=None, metadata={"help": "Use only the first so many problems."})
    question_column: str = field(default="problem", metadata={"help": "Column with the question."})
    answer_column: str = field(
        default="answer", metadata={"help": "Column with the gold answer; without it, the last box of solution."}
    )
    skip_without_answer: bool = field(
        default=False, metadata={"help": "Leave rows without a gold answer out (proofs), with a count."}
    )
    protocol: str = field(
        default="chat", metadata={"help": "Prompt and grader of a protocol card: nsr, ngrpo, nft, resrl, chat, lab."}
    )
    grader: str | None = field(default=None, metadata={"help": "Grading mode; default: the default grader."})
    overlong_buffer: int | None = field(
        default=None, metadata={"help": "DAPO's soft punishment over the last so many tokens of the limit."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear layers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: 4-bit NF4 base weights (needs use_peft)."})

    def validate(self) -> None:
        for name in ("model_name_or_path", "dataset"):
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is missing: set it in the recipe or pass --{name}")
        if self.load_in_4bit and not self.use_peft:
            raise ConfigError("load_in_4bit needs use_peft: quantised weights cannot be trained themselves")
        find_protocol(self.protocol)


def parse(method: str, argv: Sequence[str]) -> tuple[RLScriptArguments, PolicyConfig]:
    """Script arguments and the method's config from ``[--config RECIPE] [--key value ...]``; flags win over the recipe.

    An unknown key is a ConfigError that names the file and the nearest valid key.
    """
    module, _, config = METHODS[method]
    config_class = getattr(import_module(module), config)
    kinds: Any = (RLScriptArguments, config_class)
    parser = _Parser(kinds, allow_abbrev=False)
    known = {item.name for kind in kinds for item in fields(kind) if item.init}
    argv = _with_recipe(list(argv), known)
    script, args, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        raise ConfigError(f"unknown flag {unknown[0]}{_nearest(key, known, '--')}; see negpo train {method} --help")
    script.validate()
    return script, args


def run_training(method: str, argv: Sequence[str]) -> None:
    """Train ``method`` and save model, tokenizer, log history and settings to ``output_dir``.

    Raises ConfigError, DataError or TrainingStopped, whose messages are meant for the person who started the run.
    """
    script, args = parse(method, argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if args.output_dir in (None, "trainer_output"):
        args.output_dir = f"{method}-output"
    trainer = build(method, script, args)
    trainer.data_sources = {"problem": (script.dataset, ", ".join(script.dataset_names or []))}
    resume = {"true": True, "false": None}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        trainer.source.close()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(Path(args.output_dir) / "trainer_state.json"))
        settings = {"method": method, "arguments": list(argv), "script": vars(script), "config": args.to_dict()}
        settings["processes"] = args.world_size
        (Path(args.output_dir) / "negpo_train.json").write_text(json.dumps(settings, indent=1, default=str))
        logger.info("saved to %s", args.output_dir)


def build(method: str, script: Any, args: Any) -> Any:
    """The trainer of a parsed recipe. Errors in rows name the file they came from."""
    module, trainer, _ = METHODS[method]
    card = find_protocol(script.protocol)
    tokenizer = load_tokenizer(script.tokenizer_name_or_path or script.model_name_or_path, None)
    if card.prompt is None and not tokenizer.chat_template:
        raise ConfigError(
            f"protocol={card.name} asks through the chat template, but the tokenizer has none; use nsr or lab"
        )
    if card.thinking is not None:
        args.chat_template_kwargs = {"enable_thinking": card.thinking} | (args.chat_template_kwargs or {})
    args.model_init_kwargs = _init_kwargs(script) | (args.model_init_kwargs or {})
    rewards = [correctness_reward(correct=1.0, wrong=0.0, mode=script.grader or "default")]
    if script.overlong_buffer:
        rewards.append(length_reward(max_tokens=args.max_completion_length, soft_tokens=script.overlong_buffer))
    return getattr(import_module(module), trainer)(
        model=script.model_name_or_path,
        reward_funcs=rewards,
        args=args,
        train_dataset=problem_rows(script, card),
        processing_class=tokenizer,
        peft_config=_peft_config(script),
    )


def problem_rows(script: Any, card: Protocol) -> list[dict[str, Any]]:
    """``prompt`` (text, or messages for a chat template) and ``answer`` of every problem.

    Raises:
        DataError: a row without question, or without a gold answer unless ``skip_without_answer``.
    """
    source, names = str(script.dataset), script.dataset_names or [None]
    rows = [row for name in names for row in load_rows(source, name=name, split=script.dataset_split, required=())]
    problems, skipped = [], 0
    for index, row in enumerate(rows[: script.max_problems]):
        question = row.get(script.question_column)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"found fields {sorted(row)}", file=script.dataset, row=index, field=script.question_column)
        gold = str(row.get(script.answer_column) or last_box(row.get("solution") or "") or "")
        gold = gold.rpartition("####")[2].strip()  # GSM8K: the number after the worked answer
        if not gold and script.skip_without_answer:
            skipped += 1
            continue
        if not gold:
            raise DataError(
                "no gold answer, and no boxed one in solution; set answer_column or skip_without_answer",
                file=script.dataset,
                row=index,
                field=script.answer_column,
            )
        problems.append({"prompt": _prompt(card, question), "answer": gold})
    if skipped:
        logger.warning("%d of %d rows have no gold answer and are left out", skipped, len(rows))
    return problems


def _prompt(card: Protocol, question: str) -> str | list[dict[str, str]]:
    if card.prompt is not None:
        return card.prompt.replace("{input}", question)
    return [{"role": "user", "content": question + card.user_suffix}]
