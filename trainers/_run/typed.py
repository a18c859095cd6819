"""Types and ranges of settings, whoever gave them: a recipe, a flag or a program.

YAML turns ``mlp.down_proj`` into a text where a list belongs (read letter by letter, as patterns, it would train every
tensor), ``yes`` into true and ``.nan`` into a number. Each value is compared with the annotation of its field, numbers
also with the range in which they mean something.
"""

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from negpo.errors import ConfigError

AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARE = "at least 1", "at least 0", "greater than 0", "between 0 and 1"
_HOLDS = {
    AT_LEAST_ONE: lambda value: value >= 1,
    NOT_NEGATIVE: lambda value: value >= 0,
    POSITIVE: lambda value: value > 0,
    SHARE: lambda value: 0 <= value <= 1,
}
RANGES = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "num_iterations",
            "num_generations",
            "num_generations_eval",
            "max_completion_length",
            "max_prompt_length",
            "steps_per_generation",
            "generation_batch_size",
            "ref_model_sync_steps",
            "save_total_limit",
            "dataloader_prefetch_factor",
            "torch_empty_cache_steps",
            "num_completions_to_print",
            "lora_r",
            "lora_alpha",
            "max_rows",
            "max_problems",
            "overlong_buffer",
            "max_new_tokens",
            "updates_per_rollout",
            "max_unknown_rollouts",
            "watchdog_patience",
            "max_reward_timeouts",
            "max_resamples",
            "max_length",
            "label_stride",
            "num_samples",
            "refresh_steps",
            "floor_patience",
        ),
        AT_LEAST_ONE,
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "weight_decay",
            "max_grad_norm",
            "warmup_steps",
            "seed",
            "data_seed",
            "dataloader_num_workers",
            "eval_delay",
            "epsilon_high",
            "beta",
            "top_k",
            "neftune_noise_alpha",
            "hang_timeout",
            "ddp_bucket_cap_mb",
            "displacement_rows",
            "max_kl",
            "vllm_importance_sampling_clip_min",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            "num_train_epochs",
            "logging_steps",
            "save_steps",
            "eval_steps",
            "adam_epsilon",
            "ddp_timeout",
            "temperature",
            "top_p",
            "vllm_importance_sampling_clip_max",
            "reward_timeout",
            "normalizer_length",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(
        (
            "adam_beta1",
            "adam_beta2",
            "top_p",
            "epsilon",
            "min_p",
            "ref_model_mixup_alpha",
            "lora_dropout",
            "max_repetition",
        ),
        SHARE,
    ),
}
UNBOUNDED = ("max_grad_norm",)  # infinity: no clipping
FILES = ("fsdp_config", "deepspeed", "accelerator_config")  # a mapping, or the name of a file that holds one
LARGEST = 2**63 - 1
SEEDS, LARGEST_SEED = ("seed", "data_seed"), 2**32 - 1  # NumPy's


def check_types(settings: Any) -> None:
    """ConfigError for the first field of a dataclass whose value has the wrong type or lies outside its range."""
    hints = typing.get_type_hints(type(settings))
    for item in fields(settings):
        if item.init:
            _check(item.name, getattr(settings, item.name), hints[item.name])
    steps = getattr(settings, "max_steps", -1)
    if steps != -1 and steps < 1:
        raise ConfigError(f"max_steps is {steps}; it must be at least 1, or -1 for num_train_epochs")


def _check(name: str, value: Any, hint: Any) -> None:
    if not fits(value, hint):
        raise ConfigError(f"{name} is {value!r:.80}, {_kind(value)}; it must be {wanted(hint)}{_advice(value, hint)}")
    if isinstance(value, list | tuple):
        for one in value:
            _check_number(name, one)
        return
    if isinstance(value, str) and _takes_mapping(hint) and name not in FILES:
        _check_json(name, value)
    _check_number(name, value)


def _takes_mapping(hint: Any) -> bool:
    return any(option is dict or typing.get_origin(option) is dict for option in typing.get_args(hint))


def _check_json(name: str, value: str) -> None:
    try:
        read = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is {value!r:.80}, which is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{name} is {value!r:.80}; it must be a mapping of names to values")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"{name} is a whole number beyond 64 bits; it must lie within them")
    if math.isnan(value) or (math.isinf(value) and name not in UNBOUNDED):
        raise ConfigError(f"{name} is {value}; it must be a finite number")
    if name in RANGES and not _HOLDS[RANGES[name]](value):
        raise ConfigError(f"{name} is {value}; it must be {RANGES[name]}")
    if name in SEEDS and value > LARGEST_SEED:
        raise ConfigError(f"{name} is {value}; it must be at most {LARGEST_SEED}")


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is what the annotation says. Whole numbers are numbers, booleans are not."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (list, tuple):
        inner = typing.get_args(hint)
        return isinstance(value, list | tuple) and (not inner or all(fits(one, inner[0]) for one in value))
    if origin is dict or hint is dict:
        return isinstance(value, Mapping)
    if not isinstance(hint, type):
        return True
    if issubclass(hint, Enum):
        return isinstance(value, hint | str)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, list):
        return isinstance(value, hint)
    return True  # objects that only a program can give


def wanted(hint: Any) -> str:
    """An annotation in words."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(wanted(option) for option in typing.get_args(hint)))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin in (list, tuple) or hint in (list, tuple):
        return "a list"
    if origin is dict or hint is dict:
        return "a mapping of names to values"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _advice(value: Any, hint: Any) -> str:
    if isinstance(value, str) and "a list" in wanted(hint):
        return f". Write [{value}]"
    return ""
