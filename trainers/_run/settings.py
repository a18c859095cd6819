"""Every setting of a config has an effect, or is refused by name when it is set away from its default.

``INHERITED`` holds what the trainers on stored rows take over from ``transformers.TrainingArguments``, and
``negpo.trainers._policy.settings`` what the others take over from ``trl.GRPOConfig``. A field that a newer version of
those libraries brings along is in neither table, and refused until somebody looks at it. ``docs/settings.md`` is
written from these tables, ``tests/trainers/test_settings.py`` sets each field and looks for its effect or its refusal.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from negpo.errors import ConfigError


@dataclass(frozen=True)
class Refused:
    """A setting that would do nothing here, or the wrong thing. ``reason`` says why and what to set instead."""

    reason: str


@dataclass(frozen=True)
class Only:
    """A setting that has an effect only together with others: ``when`` in words, ``holds`` asks a config."""

    when: str
    holds: Callable[[Any], bool]


class Honoured:
    """A setting with an effect."""


Rule = Refused | Only | Honoured
Rules = Mapping[str, Rule]
LIVE = Honoured()


def check_settings(config: Any) -> None:
    """ConfigError for the first setting that differs from its default and would have no effect."""
    rules = rules_of(type(config))
    for item in fields(config):
        if not item.init or same(value := getattr(config, item.name), default_of(item)):
            continue
        rule = rules[item.name]
        if isinstance(rule, Refused):
            raise ConfigError(f"{item.name}={shown(value)} is not used here: {rule.reason}")
        if isinstance(rule, Only) and not rule.holds(config):
            raise ConfigError(
                f"{item.name}={shown(value)} would have no effect: it needs {rule.when}. Leave it out, or set that too"
            )


def rules_of(config_class: type) -> dict[str, Rule]:
    """The rule of every field. Fields that negpo declares itself are live unless a table says otherwise."""
    tables: dict[str, Rule] = {}
    for base in reversed(config_class.__mro__):
        tables |= base.__dict__.get("inherited", {})
    own = {name for base in config_class.__mro__ if is_ours(base) for name in inspect.get_annotations(base)}
    unknown = Refused("this version of negpo does not know the setting")
    return {
        item.name: tables.get(item.name, LIVE if item.name in own else unknown)
        for item in fields(config_class)
        if item.init
    }


def is_ours(base: type) -> bool:
    return base.__module__.partition(".")[0] not in ("transformers", "trl", "builtins")


def inherited_names(config_class: type) -> list[str]:
    """Fields that come from another library, in its order."""
    foreign = {name for base in config_class.__mro__ if not is_ours(base) for name in inspect.get_annotations(base)}
    return [item.name for item in fields(config_class) if item.init and item.name in foreign]


def default_of(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def same(value: Any, default: Any) -> bool:
    """Equal, where an enum's member is its value, and True is not 1."""
    value, default = (getattr(one, "value", one) for one in (value, default))
    return value is default or (value == default and isinstance(value, bool) == isinstance(default, bool))


def shown(value: Any) -> str:
    return str(getattr(value, "value", value))


# ---- transformers.TrainingArguments, for trainers on stored rows -----------------------------------------------------

_JUDGED = Refused("such runs are judged by negpo eval, not during training")
_HUB = Only("push_to_hub", lambda config: config.push_to_hub)
_WORKERS = Only("dataloader_num_workers of at least 1", lambda config: config.dataloader_num_workers > 0)
_COMPILE = Refused("the log-prob kernels are not traced; leave it out")
_LIGER = Refused("the library brings its own kernels for the head, and Liger's would stand in their place")


def _reports_to(*names: str) -> Callable[[Any], bool]:
    def holds(config: Any) -> bool:
        asked = config.report_to if isinstance(config.report_to, list) else [config.report_to]
        return any(name not in (None, "none") if not names else name in names or name == "all" for name in asked)

    return holds


def _optimizer(*parts: str) -> Callable[[Any], bool]:
    return lambda config: any(part in shown(config.optim) for part in parts)


ADAPTIVE = Only("an Adam optimiser", _optimizer("ada", "lion", "lomo"))

INHERITED: dict[str, Rule] = {
    **dict.fromkeys(
        (
            # what is trained on, for how long, with which optimiser
            "output_dir",
            "per_device_train_batch_size",
            "num_train_epochs",
            "max_steps",
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "optim",
            "weight_decay",
            "gradient_accumulation_steps",
            "max_grad_norm",
            "seed",
            "data_seed",
            "full_determinism",
            "train_sampling_strategy",
            "auto_find_batch_size",
            "dataloader_drop_last",
            # precision, memory, processes
            "bf16",
            "fp16",
            "tf32",
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "torch_empty_cache_steps",
            "use_cpu",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "ddp_timeout",
            "fsdp",
            "fsdp_config",
            "deepspeed",
            # logs and checkpoints
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "log_on_each_node",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "report_to",
            "skip_memory_metrics",
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "save_only_model",
            "save_on_each_node",
            "restore_callback_states_from_checkpoint",
            "resume_from_checkpoint",
            "push_to_hub",
        ),
        LIVE,
    ),
    "adam_beta1": ADAPTIVE,
    "adam_beta2": ADAPTIVE,
    "adam_epsilon": ADAPTIVE,
    "optim_args": Only(
        "an optimiser that reads it (GaLore, APOLLO, LOMO, schedule-free, stable AdamW)",
        _optimizer("galore", "apollo", "lomo", "schedule_free", "stable", "ademamix", "grokadamw"),
    ),
    "optim_target_modules": Only("a GaLore or APOLLO optimiser", _optimizer("galore", "apollo")),
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_in_order": _WORKERS,
    "run_name": Only("report_to", _reports_to()),
    "project": Only("report_to=trackio", _reports_to("trackio")),
    "trackio_space_id": Only("report_to=trackio", _reports_to("trackio")),
    "trackio_bucket_id": Only("report_to=trackio", _reports_to("trackio")),
    "trackio_static_space_id": Only("report_to=trackio", _reports_to("trackio")),
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "average_tokens_across_devices": Refused("token means always run over all processes; see token_normalization"),
    "label_smoothing_factor": Refused("the objectives are functions of the log-probs of the given tokens"),
    "label_names": Refused("labels follow from the rows"),
    "length_column_name": Refused("lengths are those of the token ids"),
    "bf16_full_eval": _JUDGED,
    "fp16_full_eval": _JUDGED,
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": Refused("log-probs are computed without a cache of keys and values"),
    "neftune_noise_alpha": Refused(
        "noise in the embedding makes the policy differ from its own reference and old log-probs; only sft takes it"
    ),
    "logging_nan_inf_filter": Refused("a loss that is not finite stops the run"),
    "include_num_input_tokens_seen": Refused("the logs count trained tokens under their own names"),
    "eval_strategy": Refused(
        "it must be 'no': such runs are judged by negpo eval. To stop on utility during training, pass "
        "UtilityFloorCallback"
    ),
    "eval_steps": _JUDGED,
    "eval_delay": _JUDGED,
    "per_device_eval_batch_size": _JUDGED,
    "prediction_loss_only": _JUDGED,
    "eval_on_start": _JUDGED,
    "eval_do_concat_batches": _JUDGED,
    "eval_use_gather_object": _JUDGED,
    "eval_accumulation_steps": _JUDGED,
    "include_for_metrics": _JUDGED,
    "batch_eval_metrics": _JUDGED,
    "load_best_model_at_end": _JUDGED,
    "metric_for_best_model": _JUDGED,
    "greater_is_better": _JUDGED,
    "enable_jit_checkpoint": Refused("SIGTERM already ends a run with a complete checkpoint"),
    "ignore_data_skip": Refused("a resumed run sees exactly the rows that it would have seen"),
    "accelerator_config": Refused("batches are built whole on every process; their layout is part of a checkpoint"),
    "parallelism_config": Refused("tensor, context and sequence parallelism have not been tried with these forwards"),
    "remove_unused_columns": Refused("it must stay False: batches are nested"),
    "debug": Refused("the guards name the rows of a loss that is not finite"),
    "do_train": Refused("negpo train trains"),
    "do_eval": _JUDGED,
    "do_predict": _JUDGED,
    "local_rank": Only(
        "the LOCAL_RANK of a launcher", lambda config: str(config.local_rank) == _environment("LOCAL_RANK")
    ),
}


def _environment(name: str) -> str | None:
    import os

    return os.environ.get(name)
