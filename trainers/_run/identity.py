"""Which settings make a run what it is: a checkpoint of one run is not resumed as another.

Every field that negpo declares for a method belongs to its identity unless it is listed here, so a new one cannot be
forgotten; of what transformers and TRL declare, what enters the gradient, the update or the draw of rollouts.
"""

import inspect
from dataclasses import fields
from typing import Any

from negpo.errors import ConfigError
from negpo.trainers._run.settings import is_ours

NEUTRAL = frozenset(
    (
        # where and how fast, not what
        *("remove_unused_columns", "logging_steps", "hang_timeout", "model_init_kwargs", "changed_on_resume"),
        *("reference", "reference_cache_dir", "check_reference", "sample_cache_dir"),
        *("engine", "engine_options", "adapter_sync", "share_prompt", "overlap_rewards", "drop_zero_rows"),
        *("bf16", "weights_dtype"),  # weights_dtype: the optimiser's states would not load, and say so
        # how long: a finished run may be made longer
        "num_train_epochs",
        # guards and telemetry
        *("log_entropy", "displacement_rows", "min_entropy", "max_entropy_share", "max_repetition", "max_kl"),
        *("watchdog_patience", "chosen_logp_floor", "floor_patience", "max_unknown_rollouts"),
        *("reward_timeout", "max_reward_timeouts", "reward_errors"),
        # rows are compared themselves
        *("skip_bad_golds", "bad_rows", "updates_per_rollout"),
    )
)
THEIRS = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("beta", "epsilon", "epsilon_high", "delta", "entropy_coef", "reward_weights", "use_bias_correction_kl"),
    *("num_iterations", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "chat_template_kwargs"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    *("vllm_importance_sampling_correction", "vllm_importance_sampling_clip_min"),
)


def settings_of(args: Any) -> dict[str, Any]:
    """Name -> value, as JSON holds it, of the settings that a resumed run must share with the first."""
    own = {name for base in type(args).__mro__ if is_ours(base) for name in inspect.get_annotations(base)}
    names = [item.name for item in fields(args) if item.init and (item.name in own or item.name in THEIRS)]
    return {name: _plain(getattr(args, name)) for name in names if name not in NEUTRAL}


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_settings_of(folder: str, saved: dict[str, Any], args: Any) -> None:
    """ConfigError that names every setting whose value differs from the checkpoint's, unless it was said to."""
    current, said = settings_of(args), set(args.changed_on_resume or ())
    if unknown := said - set(current):
        raise ConfigError(
            f"changed_on_resume names {', '.join(sorted(unknown))}, which a resumed run may change anyway or does not "
            f"have; it can name {', '.join(current)}"
        )
    names = [name for name in {**current, **saved} if name not in said and saved.get(name) != current.get(name)]
    if names:
        changes = "; ".join(f"{name}: {saved.get(name)} then, {current.get(name)} now" for name in names)
        raise ConfigError(
            f"cannot resume from {folder}: {changes}. Set them as they were, or list those that are meant to change in "
            "changed_on_resume"
        )
