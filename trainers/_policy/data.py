"""What a policy trainer is given: prompts that fit, reward functions behind guards."""

import logging
from typing import Any

import torch
from datasets import Dataset

from negpo.errors import ConfigError, DataError
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._policy.rewards import GuardedReward

logger = logging.getLogger(__name__)


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
    for index, prompt in enumerate(rows["prompt"]):
        if not prompt:
            raise DataError(f"is {prompt!r}; need text or messages", file="train_dataset", row=index, field="prompt")
    return rows


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
