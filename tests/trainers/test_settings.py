"""Every inherited setting of every config changes the run, or is refused by name. No third state."""

import dataclasses
from importlib import import_module
from pathlib import Path
from unittest import mock

import preference_tiny
import pytest
import rl_tiny
import torch
import unlearn_tiny
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from negpo.errors import ConfigError
from negpo.trainers import METHODS
from negpo.trainers._run.settings import Only, Refused, default_of, inherited_names, rules_of
from negpo.trainers._run.typed import fits, wanted

FAMILIES = {
    "npo": lambda folder, **s: unlearn_tiny.make_trainer(
        "npo", folder, **{"max_steps": 2, "num_train_epochs": 1.0} | s
    ),
    "dpo": lambda folder, **s: preference_tiny.make_trainer("dpo", folder, **{"max_steps": 2} | s),
    "nsr": lambda folder, **s: rl_tiny.make_policy_trainer("nsr", folder, **{"max_steps": 2} | s),
}


def config_of(method):
    module, _, name = METHODS[method]
    return getattr(import_module(module), name)


CONFIGS = {method: config_of(method) for method in METHODS}
PAIRS = [(method, name) for method in FAMILIES for name in inherited_names(CONFIGS[method])]


# ---- refused ---------------------------------------------------------------------------------------------------------


def other_value(item, hint):
    """A value of the right type that is not the default."""
    default = default_of(item)
    default = getattr(default, "value", default)
    candidates = [True, False, 3, 0.5, "something", ["something"], {"a": 1}, True]
    if isinstance(default, int | float) and not isinstance(default, bool):
        candidates = [3, 0.5, 4]
    found = next(value for value in candidates if fits(value, hint) and value != default)
    return [0.5] if "float" in str(hint) and isinstance(found, list) else found


def refused_fields():
    for method, config in CONFIGS.items():
        rules = rules_of(config)
        for name, rule in rules.items():
            if isinstance(rule, Refused):
                yield method, name


def test_every_refused_field_of_every_config_is_named_when_it_is_set(tmp_path):
    import typing

    checked = 0
    for method, name in refused_fields():
        config = CONFIGS[method]
        item = config.__dataclass_fields__[name]
        value = {"eval_strategy": "steps"}.get(name, other_value(item, typing.get_type_hints(config)[name]))
        with pytest.raises(ConfigError, match=rf"\b{name}\b"):
            config(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        checked += 1
    assert checked > 40 * len(CONFIGS)


def test_every_conditional_field_is_refused_without_what_it_needs(tmp_path):
    import typing

    for method, config in CONFIGS.items():
        defaults = config(output_dir=str(tmp_path), use_cpu=True)
        for name, rule in rules_of(config).items():
            if not isinstance(rule, Only) or rule.holds(defaults):
                continue
            item = config.__dataclass_fields__[name]
            value = {"trainable_parameters": ["x"]}.get(name, other_value(item, typing.get_type_hints(config)[name]))
            with pytest.raises(ConfigError, match=rf"\b{name}\b"):
                config(output_dir=str(tmp_path), use_cpu=True, **{name: value})
            assert rule.when, method


def test_a_field_that_nobody_looked_at_is_refused():
    theirs = dataclasses.make_dataclass("Theirs", [("brand_new", int, 0)], bases=(TrainingArguments,))
    theirs.__module__ = "transformers.training_args"
    newer = dataclasses.make_dataclass("Newer", [], bases=(CONFIGS["npo"], theirs))
    assert rules_of(newer)["brand_new"] == Refused("this version of negpo does not know the setting")


@pytest.mark.parametrize(
    ("method", "settings", "named"),
    [
        ("ga", {"reference": "model"}, "reference"),
        ("ga", {"check_reference": False}, "check_reference"),
        ("graddiff", {"reference_cache_dir": "x"}, "reference_cache_dir"),
        ("npo", {"kl_coeff": 2.0}, "kl_coeff"),
        ("npo", {"retain_loss": "kl", "grad_diff_coeff": 2.0}, "grad_diff_coeff"),
        ("ga", {"pairing": "fixed"}, "pairing"),
        ("sft", {"reference": "model"}, "reference"),
        ("dpo", {"floor_patience": 5}, "floor_patience"),
        ("dpo", {"overlong": "drop", "truncation_mode": "keep_end"}, "truncation_mode"),
        ("d2o", {"refresh_steps": 7}, "refresh_steps"),
        ("nsr", {"max_resamples": 9}, "max_resamples"),
        ("nsr", {"normalizer_length": 9.0}, "normalizer_length"),
        ("nsr", {"vllm_server_port": 8001}, "vllm_server_port"),
        ("nsr", {"ref_model_mixup_alpha": 0.1}, "ref_model_mixup_alpha"),
        ("wga", {"weighting": "satimp", "beta": 3.0}, "beta"),
    ],
)
def test_settings_of_a_method_that_would_do_nothing_are_named(method, settings, named, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{named}="):
        CONFIGS[method](output_dir=str(tmp_path), use_cpu=True, **settings)


# ---- types and ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "npo",
            {"trainable_parameters": "mlp.down_proj"},
            r"trainable_parameters is 'mlp.down_proj'.*\[mlp.down_proj\]",
        ),
        ("d2o", {"sampling_prefixes": "Answer:"}, "sampling_prefixes"),
        ("npo", {"learning_rate": True}, "learning_rate is True"),
        ("npo", {"learning_rate": float("nan")}, "learning_rate is nan"),
        ("dpo", {"beta": float("inf")}, "beta is inf"),
        ("npo", {"gradient_accumulation_steps": -1}, "gradient_accumulation_steps is -1"),
        ("npo", {"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ("npo", {"num_train_epochs": 0}, "num_train_epochs is 0"),
        ("npo", {"max_steps": 0}, "max_steps is 0"),
        ("npo", {"seed": -1}, "seed is -1"),
        ("npo", {"seed": 2**40}, "seed is"),
        ("nsr", {"num_iterations": 0}, "num_iterations is 0"),
        ("nsr", {"reward_weights": [float("nan")]}, "reward_weights"),
        ("nsr", {"temperature": 0.0}, "temperature is 0"),
        ("nsr", {"engine_options": "not json"}, "engine_options"),
        ("npo", {"save_strategy": None}, "save_strategy is None, null"),
        ("npo", {"max_length": 2.5}, "max_length is 2.5"),
        ("npo", {"optim": "adamm"}, "adamm"),
        ("npo", {"lr_scheduler_type": "linaer"}, "linaer"),
        ("npo", {"lr_scheduler_kwargs": "{"}, "lr_scheduler_kwargs"),
        ("npo", {"model_init_kwargs": "{"}, "model_init_kwargs"),
    ],
)
def test_values_of_a_wrong_type_or_range_are_named(method, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        CONFIGS[method](output_dir=str(tmp_path), use_cpu=True, **settings)


def test_annotations_are_put_in_words():
    assert wanted(list[str] | None) == "a list or null"
    assert wanted(dict[str, int]) == "a mapping of names to values"
    assert fits(1, float)
    assert not fits(True, float)
    assert not fits(1.0, int)


# ---- honoured --------------------------------------------------------------------------------------------------------


def trained(trainer):
    trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().double().flatten() for p in trained(trainer).model.parameters()]).tolist()


def steps(trainer):
    return trained(trainer).state.global_step


def logged(trainer):
    return [sorted(entry) for entry in trained(trainer).state.log_history]


def files(trainer):
    trained(trainer)
    root = Path(trainer.args.output_dir)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def loader(name):
    return lambda trainer: getattr(trainer.get_train_dataloader(), name)


def ddp(name):
    """What accelerate is told about DistributedDataParallel."""

    def observe(trainer):
        from accelerate.utils import DistributedDataParallelKwargs

        del DistributedDataParallelKwargs
        from transformers.training_args import ParallelMode

        with mock.patch.object(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED):
            trainer.accelerator.ddp_handler = None
            trainer._wrap_model(trainer.model)
            return vars(trainer.accelerator.ddp_handler)[name]

    return observe


class Counts(TrainerCallback, ExportableState):
    """A callback whose state a checkpoint can hold."""

    def __init__(self, seen=0):
        self.seen = seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen += 1

    def state(self):
        return {"args": {"seen": self.seen}, "attributes": {}}


ADAM = {"optim": "adamw_torch"}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1}
WORKERS = {"dataloader_num_workers": 1}
# setting -> (value, what to look at[, settings of both runs])
COMMON = {
    "output_dir": ("OTHER", lambda t: Path(t.args.output_dir).name),
    "num_train_epochs": (2.0, steps, {"max_steps": -1}),
    "max_steps": (1, steps),
    "learning_rate": (1e-3, weights),
    "lr_scheduler_type": ("linear", weights),
    "lr_scheduler_kwargs": ({"min_lr": 1e-3}, weights, {"lr_scheduler_type": "cosine_with_min_lr"}),
    "warmup_steps": (2, weights, {"lr_scheduler_type": "constant_with_warmup"}),
    "optim": ("adamw_torch", weights),
    "weight_decay": (0.5, weights),
    "max_grad_norm": (1e-3, weights),
    "adam_beta1": (0.1, weights, ADAM),
    "adam_beta2": (0.1, weights, ADAM),
    "adam_epsilon": (1e-1, weights, ADAM),
    "bf16": (True, lambda t: t.accelerator.mixed_precision),
    "gradient_checkpointing": (True, lambda t: trained(t).model.is_gradient_checkpointing),
    "gradient_checkpointing_kwargs": (
        {"use_reentrant": True},
        lambda t: [
            m._gradient_checkpointing_func.keywords
            for m in trained(t).model.modules()
            if hasattr(m, "_gradient_checkpointing_func")
        ],
        {"gradient_checkpointing": True},
    ),
    "dataloader_num_workers": (1, loader("num_workers")),
    "dataloader_persistent_workers": (True, loader("persistent_workers"), WORKERS),
    "dataloader_prefetch_factor": (3, loader("prefetch_factor"), WORKERS),
    "dataloader_multiprocessing_context": (
        "spawn",
        lambda t: str(t.get_train_dataloader().multiprocessing_context),
        WORKERS,
    ),
    "dataloader_in_order": (False, loader("in_order"), WORKERS),
    "logging_strategy": ("no", logged),
    "logging_steps": (2, logged),
    "logging_first_step": (True, logged, {"logging_steps": 2}),
    "disable_tqdm": (False, lambda t: sorted(type(c).__name__ for c in t.callback_handler.callbacks)),
    "skip_memory_metrics": (False, lambda t: sorted(t.train().metrics)),
    "save_strategy": ("steps", files, {"save_steps": 1}),
    "save_steps": (2, files, CHECKPOINTS),
    "save_total_limit": (1, files, CHECKPOINTS),
    "save_only_model": (True, files, CHECKPOINTS),
    "ddp_find_unused_parameters": (True, ddp("find_unused_parameters")),
    "ddp_bucket_cap_mb": (7, ddp("bucket_cap_mb")),
    "ddp_broadcast_buffers": (True, ddp("broadcast_buffers"), {"ddp_broadcast_buffers": False}),
    "ddp_static_graph": (True, ddp("static_graph")),
}
STORED = COMMON | {
    "per_device_train_batch_size": (1, weights),
    "gradient_accumulation_steps": (1, weights),
    "seed": (1, weights),
    "data_seed": (1, weights),
    "train_sampling_strategy": ("sequential", weights),
    "dataloader_drop_last": (True, lambda t: len(t.get_train_dataloader()), {"per_device_train_batch_size": 4}),
}
POLICY = COMMON | {
    "max_grad_norm": (1e-3, weights),
    "per_device_train_batch_size": (8, weights),
    "gradient_accumulation_steps": (2, weights),
    "seed": (1, weights, {"shuffle_dataset": True}),
    "shuffle_dataset": (True, weights),
    "num_generations": (2, weights),
    "max_completion_length": (3, lambda t: t.source._sampling(4).max_new_tokens),
    "temperature": (0.5, weights),
    "top_p": (0.5, lambda t: t.source._sampling(4).top_p),
    "top_k": (3, lambda t: t.source._sampling(4).top_k),
    "min_p": (0.1, lambda t: t.source._sampling(4).min_p),
    "generation_batch_size": (8, lambda t: t.args.updates_per_rollout, {"max_steps": 1}),
    "steps_per_generation": (2, lambda t: t.args.updates_per_rollout, {"max_steps": 1}),
    "num_iterations": (2, weights),
    "epsilon": (1e-4, weights, {"num_iterations": 2}),
    "entropy_coef": (0.5, weights),
    "reward_weights": ([0.1], weights),
    "model_init_kwargs": ({"attn_implementation": "eager"}, None),
}
POLICY |= {"reward_weights": ([0.1], lambda t: t.reward_weights.tolist())}
# seen by other tests, or only where this machine cannot look: (file with the test, what to find in it)
ELSEWHERE = {
    "fp16": "test_bf16_on_cpu.py",
    "fsdp": "test_strategies.py",
    "deepspeed": "test_strategies.py",
    "resume_from_checkpoint": "test_trainers_script.py",
}
