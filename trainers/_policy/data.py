"""What a policy trainer is given: prompts that fit, reward functions behind guards."""

import logging
from typing import Any

import torch
from datasets import Dataset

from negpo import models
from negpo.errors import ConfigError, DataError
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._policy.rewards import GuardedReward
from negpo.trainers._run.model import base_of, is_peft, starting_model
from negpo.trainers._run.precision import loading_options

logger = logging.getLogger(__name__)
RESERVED = {
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "completion_truncated",
    "truncated_policy",
}  # fmt: skip


def as_dataset(rows: Any) -> Dataset:
    """A ``datasets.Dataset`` from one or from a list of rows; DataError names the row without a usable prompt."""
    if rows is None:
        raise ConfigError("train_dataset is missing: pass rows with a prompt and what the reward functions read")
    if not isinstance(rows, Dataset):
        if not isinstance(rows, list):
            raise ConfigError(
                f"train_dataset is a {type(rows).__name__}; pass a Dataset or a list of rows (a stream cannot be "
                "resumed exactly)"
            )
        rows = Dataset.from_list(rows)
    if "prompt" not in rows.column_names:
        raise DataError(f"found columns {rows.column_names}; need prompt", file="train_dataset", field="prompt")
    for name in sorted({"image", "images", "tools", "chat_template_kwargs"} & set(rows.column_names)):
        if any(value not in (None, [], {}, "") for value in rows[name]):
            instead = "set chat_template_kwargs in the config" if name == "chat_template_kwargs" else "remove it"
            raise DataError(f"the column would not be used; {instead}", file="train_dataset", field=name)
    if taken := sorted(RESERVED & set(rows.column_names)):
        raise DataError(
            "reward functions are given an argument of that name by the trainer; rename the column",
            file="train_dataset",
            field=taken[0],
        )
    for index, prompt in enumerate(rows["prompt"]):
        if not prompt:
            raise DataError(f"is {prompt!r}; need text or messages", file="train_dataset", row=index, field="prompt")
    return rows


def starting_policy(model: Any, args: PolicyConfig, peft_config: Any) -> tuple[Any, Any]:
    """Model and ``peft_config`` as TRL takes them, in the precision of ``args``. TRL loads names itself: it needs them
    for the reference model of a KL term.

    Raises ConfigError for a frozen model, and for a KL term whose reference cannot be loaded.
    """
    if isinstance(model, str) and base_of(model) == model:
        models.check_complete(model)
        args.model_init_kwargs = loading_options(args, adapter=peft_config is not None)
        return model, peft_config
    given = not isinstance(model, str)
    model = starting_model(model, args, peft_config)
    args.model_init_kwargs = None
    if given and args.beta and not is_peft(model) and not model.config._name_or_path:
        raise ConfigError(
            f"beta={args.beta} needs a reference model, which is loaded by name; this model was built in memory. Save "
            "it and pass its folder, train a LoRA adapter (peft_config), or set beta=0"
        )
    return model, None


def fitting_prompts(dataset: Dataset, lengths: list[int], *, limit: int | None, needed: int) -> Dataset:
    """``dataset`` without the prompts longer than ``limit`` tokens.

    Raises:
        ConfigError: fewer than ``needed`` remain, the number of prompts in one rollout batch.
    """
    kept = [row for row, length in enumerate(lengths) if limit is None or length <= limit]
    if dropped := len(lengths) - len(kept):
        logger.warning("%d of %d prompts are longer than %d tokens and left out", dropped, len(lengths), limit)
        dataset = dataset.select(kept)
    if len(kept) < needed:
        raise ConfigError(
            f"one rollout batch needs {needed} prompts, the data has {len(kept)}"
            f"{'' if limit is None else f' of at most {limit} tokens'}. Use more prompts, a smaller batch, fewer "
            "updates_per_rollout, or a larger max_prompt_length"
        )
    return dataset


def with_readable_golds(dataset: Dataset, reward_funcs: Any, args: PolicyConfig, name: str) -> Dataset:
    """``dataset`` after the reward functions that read golds have looked at all of them (``validate``).

    Raises DataError with the rows that cannot be read, unless ``args.skip_bad_golds`` leaves them out, with a count.
    """
    functions = reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    for function in functions:
        if callable(validate := getattr(function, "validate", None)):
            kept = validate(dataset, skip_bad_golds=args.skip_bad_golds, source=name).kept
            dataset = dataset.select(kept) if len(kept) < len(dataset) else dataset
    return dataset


def guarded(functions: list, names: list[str], args: PolicyConfig) -> list:
    """Reward functions behind guards; reward models (modules) are left to TRL."""

    def guard(function: Any, name: str) -> Any:
        if isinstance(function, torch.nn.Module):
            return function
        return GuardedReward(
            function,
            name,
            timeout=args.reward_timeout,
            max_timeouts=args.max_reward_timeouts,
            errors=args.reward_errors,
        )

    return [guard(function, name) for function, name in zip(functions, names, strict=True)]
