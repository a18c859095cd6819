"""Settings that would do nothing are refused by name, and values of a wrong type or range.

Those with an effect: test_settings_honoured.py.
"""

import dataclasses
from importlib import import_module

import pytest
from transformers import TrainingArguments

from negpo.errors import ConfigError
from negpo.trainers import METHODS
from negpo.trainers._run.settings import Only, Refused, default_of, rules_of
from negpo.trainers._run.typed import fits, wanted


def config_of(method):
    module, _, name = METHODS[method]
    return getattr(import_module(module), name)


CONFIGS = {method: config_of(method) for method in METHODS}

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
