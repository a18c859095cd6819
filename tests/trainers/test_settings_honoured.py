"""Settings taken over from transformers and TRL that have an effect: each is set, and its effect is looked at.

Most change a run of two steps on a tiny model. Where only the libraries' own code reads a setting (hubs, trackers,
GPUs), the test looks whether that code is still part of the run here.
"""

import inspect
from importlib import import_module
from pathlib import Path
from unittest import mock

import preference_tiny
import pytest
import rl_tiny
import torch
import transformers
import trl
import unlearn_tiny
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_callback import ExportableState

from negpo.trainers import METHODS
from negpo.trainers._run.settings import Refused, inherited_names, rules_of

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


class Counts(TrainerCallback, ExportableState):
    """A callback whose state a checkpoint can hold."""

    def __init__(self, seen=0):
        self.seen = seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen += 1

    def state(self):
        return {"args": {"seen": self.seen}, "attributes": {}}


def reference(trainer):
    return torch.cat([p.detach().double().flatten() for p in trained(trainer).ref_model.parameters()]).tolist()


def evaluations(trainer):
    return [entry["step"] for entry in trained(trainer).state.log_history if "eval_loss" in entry]


def importance(trainer):
    return [rl_tiny.history(trained(trainer), f"negative/{name}") for name in ("importance", "importance_kept")]


def printed(trainer):
    with mock.patch("trl.trainer.grpo_trainer.print_prompt_completions_sample") as shown:
        trained(trainer)
    return shown.call_count


def saved(folder):
    unlearn_tiny.make_model().save_pretrained(folder / "start")
    return str(folder / "start")


def untied(_):
    return unlearn_tiny.make_model(tie_word_embeddings=False)


def with_dropout(_):
    model = unlearn_tiny.make_model()
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(model.model.layers[0].mlp.act_fn, torch.nn.Dropout(0.5))
    return model


ADAM = {"optim": "adamw_torch"}
REFERENCE = {"beta": 0.5, "model": saved}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rl_tiny.PROMPTS[:4]}
ANOTHER_ENGINE = {"engine": "scripted", "preset": "w_reinforce"}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1}
WORKERS = {"dataloader_num_workers": 1}
# setting -> (value, what to look at[, settings of both runs])
COMMON = {
    "output_dir": ("OTHER", lambda t: Path(t.args.output_dir).name),
    "num_train_epochs": (2.0, steps, {"max_steps": -1}),
    "max_steps": (1, steps),
    "learning_rate": (1e-3, weights),
    "lr_scheduler_type": ("linear", weights),
    "lr_scheduler_kwargs": ({"num_cycles": 3}, weights, {"lr_scheduler_type": "cosine"}),
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
    "epsilon": (1e-4, weights, {"num_iterations": 2, "learning_rate": 1e-2}),
    "entropy_coef": (0.5, weights),
    "reward_weights": ([0.1], weights),
    "model_init_kwargs": (
        {"attn_implementation": "eager"},
        lambda t: t.model.config._attn_implementation,
        {"model": saved},
    ),
    "num_train_epochs": (2.0, steps, {"max_steps": -1, "learning_rate": 1e-4}),
}
POLICY |= {"reward_weights": ([0.1], lambda t: t.reward_weights.tolist())}
POLICY |= {
    "beta": (0.5, lambda t: t.ref_model is not None, {"model": saved}),
    "use_bias_correction_kl": (False, weights, REFERENCE | {"num_iterations": 2}),
    "sync_ref_model": (True, lambda t: sorted(type(c).__name__ for c in t.callback_handler.callbacks), REFERENCE),
    "ref_model_mixup_alpha": (0.1, reference, REFERENCE | {"sync_ref_model": True, "ref_model_sync_steps": 1}),
    "ref_model_sync_steps": (1, reference, REFERENCE | {"sync_ref_model": True}),
    "epsilon_high": (1e-5, weights, {"num_iterations": 2, "preset": "psr", "learning_rate": 1e-4}),
    "delta": (1.0001, weights, {"num_iterations": 2}),
    "mask_truncated_completions": (True, lambda t: t.args.truncated),
    "cast_lm_head_to_fp32": (
        True,
        lambda t: t.model.get_output_embeddings().weight.dtype,
        {"weights_dtype": "bfloat16", "optim": "adamw_torch", "model": untied},
    ),
    "disable_dropout": (
        True,
        lambda t: [m.p for m in t.model.modules() if isinstance(m, torch.nn.Dropout)],
        {"model": with_dropout},
    ),
    "chat_template_kwargs": ({"enable_thinking": True}, lambda t: t.chat_template_kwargs),
    "log_completions": (True, printed),
    "num_completions_to_print": (1, lambda t: t.num_completions_to_print, {"log_completions": True}),
    "log_unique_prompts": (True, lambda t: t.log_unique_prompts, {"log_completions": True}),
    "num_generations_eval": (2, lambda t: t.num_generations_eval, EVALUATED),
    "per_device_eval_batch_size": (4, lambda t: t.get_eval_dataloader().total_batch_size, EVALUATED),
    "eval_strategy": ("steps", evaluations, {"eval_dataset": rl_tiny.PROMPTS[:4], "eval_on_start": False}),
    "eval_steps": (2, evaluations, EVALUATED),
    "eval_delay": (2, evaluations, EVALUATED),
    "eval_on_start": (True, evaluations, EVALUATED),
    "vllm_importance_sampling_correction": (False, importance, ANOTHER_ENGINE),
    "vllm_importance_sampling_mode": ("sequence_mask", importance, ANOTHER_ENGINE),
    "vllm_importance_sampling_clip_max": (1.5, importance, ANOTHER_ENGINE),
    "vllm_importance_sampling_clip_min": (1.9, importance, ANOTHER_ENGINE | {"vllm_importance_sampling_clip_max": 3.0}),
}
# seen by tests of their own: (setting -> file in this folder that sets it)
ELSEWHERE = {
    "fp16": "test_bf16_on_cpu.py",
    "fsdp": "test_strategies.py",
    "deepspeed": "test_strategies.py",
    "resume_from_checkpoint": "test_trainers_script.py",
    "use_cpu": "test_bf16_on_cpu.py",
    "report_to": "test_run_config.py",
    "ddp_backend": "test_trainers_distributed.py",
}
# read by the libraries alone: setting -> what reads it
TRAINER, ARGUMENTS = transformers.Trainer, TrainingArguments
LIBRARIES = {
    "optim_args": TRAINER.get_optimizer_cls_and_kwargs,
    "optim_target_modules": transformers.trainer_optimizer,
    "tf32": ARGUMENTS.__post_init__,
    "torch_empty_cache_steps": TRAINER.training_step,
    "auto_find_batch_size": TRAINER.train,
    "log_on_each_node": ARGUMENTS.should_log.fget,
    "log_level": ARGUMENTS.get_process_log_level,
    "log_level_replica": ARGUMENTS.get_process_log_level,
    "run_name": integration_utils.WandbCallback.setup,
    "project": integration_utils.TrackioCallback,
    "trackio_space_id": integration_utils.TrackioCallback,
    "trackio_bucket_id": integration_utils.TrackioCallback,
    "trackio_static_space_id": integration_utils.TrackioCallback,
    "save_on_each_node": ARGUMENTS.should_save.fget,
    "push_to_hub": TRAINER.save_model,
    "hub_token": TRAINER.init_hf_repo,
    "hub_private_repo": TRAINER.init_hf_repo,
    "hub_model_id": TRAINER.init_hf_repo,
    "hub_strategy": TRAINER._push_from_checkpoint,
    "hub_always_push": TRAINER._push_from_checkpoint,
    "hub_revision": TRAINER.push_to_hub,
    "restore_callback_states_from_checkpoint": TRAINER._load_callback_state,
    "full_determinism": TRAINER.__init__,
    "dataloader_pin_memory": TRAINER._get_dataloader,
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        TRAINER._build_accelerator_args,
    ),
    "ddp_timeout": ARGUMENTS.ddp_timeout_delta.fget,
    "fsdp_config": ARGUMENTS._process_fsdp_args,
    "load_best_model_at_end": TRAINER._finalize_training,
    "metric_for_best_model": TRAINER._determine_best_metric,
    "greater_is_better": TRAINER._determine_best_metric,
    "trust_remote_code": trl.GRPOTrainer.__init__,
}
OUTSIDE = {
    "local_rank": "a launcher sets it",
    "vllm_server_base_url": "",
    "vllm_server_host": "",
    "vllm_server_port": "",
}


def run_of(method, folder, settings):
    """A trainer of two steps. Functions among the settings make what they stand for; "scripted" is another engine."""
    settings = {key: value(folder) if callable(value) else value for key, value in settings.items()}
    if settings.get("engine") == "scripted":  # its log-probs are not those of the training
        trainer = FAMILIES[method](
            folder, **{k: v for k, v in settings.items() if not k.startswith("vllm_")} | {"engine": scripted()}
        )
        trainer.args.engine = "vllm"
        for name, value in settings.items():
            setattr(trainer.args, name, value) if name.startswith("vllm_") else None
        return trainer
    return FAMILIES[method](folder, **settings)


def scripted():
    return rl_tiny.ScriptedEngine(logps=-7.0)


def table_of(method):
    return POLICY if method == "nsr" else STORED


@pytest.mark.parametrize(("method", "name"), [(m, n) for m in FAMILIES for n in table_of(m)])
def test_a_setting_changes_what_it_is_there_to_change(method, name, tmp_path):
    value, look, *more = table_of(method)[name]
    common = more[0] if more else {}
    seen = []
    for place, settings in (("default", common), ("changed", common | {name: value})):
        folder = tmp_path / place
        if name == "output_dir":
            folder, settings = tmp_path / f"{place}-{len(seen)}", common
        seen.append(look(run_of(method, folder, settings)))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_only_a_library_reads_is_still_read_by_it_and_still_part_of_a_run(name):
    reader = LIBRARIES[name]
    assert f".{name}" in inspect.getsource(reader)
    for method in FAMILIES:
        module, trainer, _ = METHODS[method]
        own = getattr(getattr(import_module(module), trainer), getattr(reader, "__name__", ""), reader)
        if inspect.isfunction(reader) and own is not reader and reader.__qualname__.startswith("Trainer."):
            source = inspect.getsource(own)
            assert f"super().{reader.__name__}" in source or f"Trainer.{reader.__name__}" in source


def test_tests_that_stand_elsewhere_are_there():
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parent / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("method", FAMILIES)
def test_no_setting_is_without_a_test(method):
    rules = rules_of(config_of(method))
    shown = {*table_of(method), *ELSEWHERE, *LIBRARIES, *OUTSIDE}
    live = [name for name in inherited_names(config_of(method)) if not isinstance(rules[name], Refused)]
    assert not [name for name in live if name not in shown]
