"""What the policy trainers take over from ``trl.GRPOConfig``, and what of it they refuse. See ``_run.settings``."""

from negpo.trainers._run.settings import INHERITED, LIVE, Only, Refused, Rule

_EVALUATES = Only("an eval_strategy (and an eval_dataset)", lambda config: _asked(config.eval_strategy) != "no")
_OWN_LOSS = Refused("it belongs to a loss of TRL; each method here brings its own objective")
_ADVANTAGES = Refused("each method defines its advantages; choose the method, or GRPO's variant")
_ENGINE = Refused("it belongs to TRL's use of vLLM; pass the engine's own arguments in engine_options")
_DECODING = Refused("rollouts are drawn by the engines here, not by TRL's generation; see engine and engine_options")
_SERVER = Only("engine=vllm-server", lambda config: config.engine == "vllm-server")
_CORRECTED = Only("an engine other than transformers", lambda config: config.engine != "transformers")
_REFERENCE = Only("beta above 0", lambda config: config.beta > 0)
_SYNCED = Only("sync_ref_model", lambda config: config.sync_ref_model)
_LOGGED = Only("log_completions", lambda config: config.log_completions)
_BEST = Only(
    "load_best_model_at_end or save_strategy=best",
    lambda config: config.load_best_model_at_end or _asked(config.save_strategy) == "best",
)


def _asked(strategy: object) -> str:
    return str(getattr(strategy, "value", strategy))


POLICY: dict[str, Rule] = {
    **INHERITED,
    **dict.fromkeys(
        (
            "model_init_kwargs",
            "trust_remote_code",
            "disable_dropout",
            "num_generations",
            "max_completion_length",
            "shuffle_dataset",
            "generation_batch_size",
            "steps_per_generation",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "chat_template_kwargs",
            "beta",
            "num_iterations",
            "epsilon",
            "epsilon_high",
            "delta",
            "reward_weights",
            "entropy_coef",
            "log_completions",
            "eval_strategy",
        ),
        LIVE,
    ),
    "eval_steps": _EVALUATES,
    "eval_delay": _EVALUATES,
    "eval_on_start": _EVALUATES,
    "per_device_eval_batch_size": _EVALUATES,
    "num_generations_eval": _EVALUATES,
    "load_best_model_at_end": _EVALUATES,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "cast_lm_head_to_fp32": Only("weights_dtype=bfloat16", lambda config: config.weights_dtype == "bfloat16"),
    "sync_ref_model": _REFERENCE,
    "use_bias_correction_kl": _REFERENCE,
    "ref_model_mixup_alpha": _SYNCED,
    "ref_model_sync_steps": _SYNCED,
    "num_completions_to_print": _LOGGED,
    "log_unique_prompts": _LOGGED,
    "log_completions_hub_repo": Refused("completions are logged on the screen and to the trackers only"),
    "log_multimodal": Refused("only text is trained on"),
    "mask_truncated_completions": LIVE,
    "vllm_server_base_url": _SERVER,
    "vllm_server_host": _SERVER,
    "vllm_server_port": _SERVER,
    "vllm_importance_sampling_correction": _CORRECTED,
    "vllm_importance_sampling_mode": _CORRECTED,
    "vllm_importance_sampling_clip_max": _CORRECTED,
    "vllm_importance_sampling_clip_min": _CORRECTED,
    "vllm_importance_sampling_cap": Refused("its name is vllm_importance_sampling_clip_max now"),
    "use_vllm": Refused("set engine=vllm or engine=vllm-server instead"),
    "vllm_mode": Refused("set engine=vllm (in this process) or engine=vllm-server instead"),
    **dict.fromkeys(
        (
            "vllm_model_impl",
            "vllm_enable_sleep_mode",
            "vllm_structured_outputs_regex",
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_gpu_memory_utilization",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
        ),
        _ENGINE,
    ),
    **dict.fromkeys(
        (
            "ds3_gather_for_generation",
            "cache_implementation",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
            "pad_to_multiple_of",
        ),
        _DECODING,
    ),
    "generation_kwargs": Refused("it would change the sampling distribution behind the log-probs"),
    "repetition_penalty": Refused("it would change the sampling distribution behind the log-probs"),
    "loss_type": Refused("it is TRL's; choose normalizer instead"),
    "scale_rewards": _ADVANTAGES,
    "multi_objective_aggregation": Refused("rewards are weighted by reward_weights and summed"),
    "importance_sampling_level": _OWN_LOSS,
    "top_entropy_quantile": _OWN_LOSS,
    "off_policy_mask_threshold": _OWN_LOSS,
    **dict.fromkeys(
        (
            "sapo_temperature_neg",
            "sapo_temperature_pos",
            "vespo_k_pos",
            "vespo_lambda_pos",
            "vespo_k_neg",
            "vespo_lambda_neg",
        ),
        _OWN_LOSS,
    ),
    **dict.fromkeys(
        (
            "use_adaptive_entropy",
            "entropy_coef_min",
            "entropy_coef_max",
            "entropy_coef_delta",
            "entropy_target",
        ),
        Refused("entropy_coef is constant here; min_entropy stops a run that collapses"),
    ),
    "router_aux_loss_coef": Refused("routers are trained through the log-probs alone"),
    "max_tool_calling_iterations": Refused("completions are single answers, without tools"),
    # negpo's own
    "max_resamples": Only("dead_groups=resample", lambda config: config.dead_groups == "resample"),
    "normalizer_length": Only("normalizer=constant", lambda config: config.normalizer == "constant"),
    "adapter_sync": Only("engine=vllm or vllm-server", lambda config: config.engine != "transformers"),
    "data_seed": Refused("the order of prompts follows seed"),
    "train_sampling_strategy": Refused("set shuffle_dataset instead"),
    "dataloader_drop_last": Refused("a rollout batch is always whole"),
    "auto_find_batch_size": Refused("another batch size would split the groups of a rollout"),
}
