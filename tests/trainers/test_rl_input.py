"""Bad input of reinforcement-learning trainers: a clear error, or counted and skipped; the pieces that see to it."""

import time

import pytest
import torch
from rl_tiny import PROMPTS, ScriptedEngine, change, history, make_policy_trainer, plus_reward, weights
from unlearn_tiny import make_model, make_tokenizer

from negpo.errors import ConfigError, DataError, TrainingStopped
from negpo.methods import TABLE, of_family
from negpo.objectives import importance_weights
from negpo.trainers import METHODS, PolicyTrainer
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.grpo import broken_contract
from negpo.trainers._policy.rollouts import PromptStream

RL_METHODS = of_family("policy")


def run(folder, reward, **settings):
    trainer = make_policy_trainer("grpo", folder, reward=reward, **settings)
    trainer.train()
    return trainer


# ---- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompts, completions, **_: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda prompts, completions, **_: [1.0], "returned 1 rewards for 4 completions"),
        (lambda prompts, completions, **_: None, "returned NoneType"),
        (lambda prompts, completions, **_: ["good"] * len(completions), "row 0: .*returned 'good'"),
        (lambda prompts, completions, **_: torch.ones(len(completions), 1), r"returned a tensor \(4, 1\)"),
    ],
    ids=["raises", "wrong length", "returns nothing", "text", "matrix"],
)
def test_an_unusable_reward_function_is_named(tmp_path, reward, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, reward)


def test_a_reward_that_raises_can_be_made_unknown(tmp_path):
    trainer = run(tmp_path, lambda prompts, completions, **_: 1 / 0, reward_errors="unknown")
    assert history(trainer, "rows/unknown") == [1.0]


def test_tensors_coroutines_none_nan_and_infinity_are_rewards(tmp_path):
    async def values(prompts, completions, **_):
        return torch.tensor([1.0, 0.0, float("nan"), float("inf")])

    trainer = run(tmp_path, values)
    assert history(trainer, "rows/unknown") == [0.5]
    assert history(trainer, "rows/trained") == [2]


def test_a_hanging_reward_is_unknown_and_then_stops_the_run(tmp_path):
    def hangs(prompts, completions, **_):
        time.sleep(5)

    settings = {"reward_timeout": 0.2, "max_reward_timeouts": 2, "max_steps": 5}
    trainer = make_policy_trainer("grpo", tmp_path, reward=hangs, **settings)
    before = weights(trainer)
    with pytest.raises(TrainingStopped, match=r"exceeded 0\.2 s 2 times in a row"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_a_partly_unknown_sum_of_rewards_is_unknown_unless_asked_otherwise(tmp_path):
    def form(prompts, completions, **_):
        return [0.1] * len(completions)

    def correctness(prompts, completions, **_):
        return [1.0, 0.0, None, None]

    both = [correctness, form]
    assert history(run(tmp_path, both), "rows/unknown") == [0.5]
    assert history(run(tmp_path, both, partial_rewards="sum"), "rows/unknown") == [0.0]


def test_a_batch_of_equal_rewards_moves_nothing_and_is_counted(tmp_path):
    trainer = make_policy_trainer("grpo", tmp_path, reward=lambda prompts, completions, **_: [1.0] * len(completions))
    before = weights(trainer)
    trainer.train()
    assert torch.equal(weights(trainer), before)
    assert history(trainer, "groups/all_right") == [1.0]
    assert history(trainer, "rows/trained") == [0]


def test_logs_of_reward_functions_reach_the_history(tmp_path):
    def reward(prompts, completions, log_metric, log_extra, **_):
        log_metric("verifier/checked", 7.0)
        log_extra("first_letter", [text[:1] for text in completions])
        return [float("+" in text) for text in completions]

    assert history(run(tmp_path, reward), "verifier/checked") == [7.0]


# ---- rollouts and data -----------------------------------------------------------------------------------------------


def test_an_empty_completion_is_counted_and_skipped(tmp_path):
    trainer = make_policy_trainer("nsr", tmp_path, engine=ScriptedEngine([("a+", "bb", "", "c")]))
    trainer.train()
    assert history(trainer, "rows/empty") == [0.25]
    assert history(trainer, "rows/trained") == [2]


def test_prompts_beyond_the_limit_are_left_out(tmp_path, caplog):
    trainer = make_policy_trainer("grpo", tmp_path, max_prompt_length=5)
    assert [row["prompt"] for row in trainer.train_dataset] == ["one", "three", "4?", "six", "7", "8!"]
    assert "2 of 8 prompts are longer than 5 tokens" in caplog.text


def test_too_few_prompts_for_one_rollout_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs 2 prompts, the data has 1 of at most 1 tokens"):
        make_policy_trainer("grpo", tmp_path, max_prompt_length=1, updates_per_rollout=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"question": "a"}], "found columns .*'question'.*need prompt"),
        ([{"prompt": "a"}, {"prompt": ""}], "row 1, field 'prompt': is ''"),
        ({"prompt": "a"}, "train_dataset is a"),
    ],
)
def test_rows_without_a_usable_prompt_are_named(tmp_path, data, message):
    from negpo.trainers._policy.data import as_dataset

    with pytest.raises((DataError, ConfigError), match=message):
        as_dataset(data)


def test_truncated_answers_can_be_left_out_of_the_loss(tmp_path):
    trainer = make_policy_trainer(
        "nsr", tmp_path, engine=None, max_completion_length=3, mask_truncated_completions=True,
        reward=lambda prompts, completions, **_: [0.0] * len(completions),
    )  # fmt: skip
    trainer.train()
    cut = history(trainer, "completions/clipped_ratio")[0]
    assert cut > 0
    assert history(trainer, "rows/trained")[0] == pytest.approx(4 * (1 - cut))


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1: a group of one"),
        ({"batch": (6, 1)}, "= 6 rows .*would split groups of num_generations=4"),
        ({"batch": (4, 2), "steps_per_generation": 3}, "steps_per_generation=3 is not a multiple"),
        ({"use_vllm": True}, "set engine=vllm"),
        ({"deterministic_rollouts": True, "engine": "vllm-server"}, "start it with VLLM_BATCH_INVARIANT=1"),
        ({"engine": "vlm"}, "engine is 'vlm'; choose one of transformers, vllm, vllm-server"),
        ({"loss_type": "grpo"}, "choose normalizer instead"),
        ({"normalizer": "mean"}, "normalizer is 'mean'"),
        ({"repetition_penalty": 1.2}, "change the sampling distribution"),
        ({"dead_groups": "ignore"}, "dead_groups is 'ignore'"),
        ({"reward_timeout": 0.0}, "reward_timeout is 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, message):
    from negpo.trainers.grpo import GroupPolicyConfig

    batch = settings.pop("batch", (4, 1))
    sizes = {"per_device_train_batch_size": batch[0], "gradient_accumulation_steps": batch[1], "num_generations": 4}
    with pytest.raises(ConfigError, match=message):
        GroupPolicyConfig(output_dir=str(tmp_path), use_cpu=True, **sizes | settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("nsr", {"preset": "nrs"}, "preset is 'nrs'"),
        ("nsr", {"negative_weight": 0.0}, "one of them must be positive"),
        ("nft", {"normalizer": "sequence_mean"}, "not defined for NFT"),
        ("topr", {"normalizer": "token_mean"}, "not defined for TOPR"),
        ("raft", {"variant": "raft+"}, "variant is 'raft\\+'"),
        ("resrl", {"low_quantile": 0.9}, "need 0 <= low < high <= 1"),
        ("grpo", {"variant": "gspo"}, "variant is 'gspo'"),
    ],
)
def test_methods_check_their_own_settings(tmp_path, method, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_policy_trainer(method, tmp_path, **settings)


def test_truncating_samplers_and_importance_correction_exclude_each_other(tmp_path):
    from negpo.trainers.nsr import NSRConfig

    sizes = {"per_device_train_batch_size": 8, "use_cpu": True, "output_dir": str(tmp_path), "top_p": 0.9}
    with pytest.raises(ConfigError, match="biases the importance correction"):
        NSRConfig(engine="vllm", **sizes)
    NSRConfig(engine="vllm", vllm_importance_sampling_correction=False, **sizes)
    NSRConfig(**sizes)


@pytest.mark.parametrize("method", RL_METHODS)
def test_every_method_is_listed_and_trains_with_its_defaults(tmp_path, method):
    assert method in METHODS
    updates = TABLE[method].cost.updates
    moved = change(method, tmp_path, updates_per_rollout=updates, max_steps=2, data=PROMPTS * 2, learning_rate=0.01)
    assert moved.abs().max() > 0


def test_defaults_take_four_steps_per_rollout_and_truncate_importance_weights(tmp_path):
    from negpo.trainers.nft import NFTConfig
    from negpo.trainers.nsr import NSRConfig

    args = NSRConfig(
        output_dir=str(tmp_path), use_cpu=True, gradient_accumulation_steps=2, per_device_train_batch_size=8
    )
    assert (args.steps_per_generation, args.vllm_importance_sampling_mode, args.bf16) == (8, "token_truncate", False)
    assert NFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8).steps_per_generation == 16


# ---- importance correction -------------------------------------------------------------------------------------------


def correction(mode, gap, **bounds):
    from negpo.trainers.nsr import NSRConfig

    args = NSRConfig(
        output_dir="unused",
        use_cpu=True,
        engine="vllm",
        per_device_train_batch_size=8,
        vllm_importance_sampling_mode=mode,
        **bounds,
    )
    return importance_weights(
        gap,
        torch.zeros_like(gap),
        torch.ones_like(gap, dtype=torch.bool),
        mode=args.vllm_importance_sampling_mode,
        clip_min=args.vllm_importance_sampling_clip_min,
        clip_max=args.vllm_importance_sampling_clip_max,
    )


def test_importance_weights_truncate_or_mask_tokens_or_answers():
    gap = torch.tensor([[0.0, 0.5, 1.0]])  # sum 1.5: e^1.5 = 4.48
    ratio = gap.exp()
    assert torch.allclose(correction("token_truncate", gap), ratio.clamp(max=2.0))
    assert torch.allclose(correction("token_mask", gap), ratio * torch.tensor([[1.0, 1.0, 0.0]]))
    assert torch.allclose(correction("sequence_truncate", gap), torch.full((1, 3), 2.0))
    assert torch.allclose(correction("sequence_mask", gap), torch.zeros(1, 3))


def test_another_engine_is_corrected_for_and_logged_by_sign(tmp_path):
    """The scripted engine claims log-probs of -9: weights are far from 1 and truncated at 2."""
    engine = ScriptedEngine(logps=-9.0)
    trainer = make_policy_trainer(PolicyTrainer, tmp_path, engine=engine, advantages=lambda r, g: r - 0.5, batch=(4, 4))
    trainer.args.engine = "vllm"
    trainer.train()
    assert 1.0 < history(trainer, "negative/importance")[0] <= 2.0
    assert history(trainer, "negative/importance_kept") == [1.0]
    assert history(trainer, "mismatch/mean")[0] > 1.0


def test_methods_without_importance_weights_refuse_the_correction(tmp_path):
    from negpo.trainers.nft import NFTConfig, NFTTrainer

    options = {"output_dir": str(tmp_path), "use_cpu": True, "engine": "vllm", "per_device_train_batch_size": 8}
    with pytest.raises(ConfigError, match="no importance correction for engine=vllm"):
        NFTTrainer(make_model(), plus_reward, NFTConfig(vllm_importance_sampling_correction=True, **options), PROMPTS)


def test_evaluation_reports_rewards_and_leaves_the_training_samples_as_they_were(tmp_path):
    settings = {"engine": None, "max_steps": 2, "learning_rate": 0.05}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": PROMPTS[:4]}
    plain = make_policy_trainer("nsr", tmp_path, **settings)
    evaluated = make_policy_trainer("nsr", tmp_path, **settings, **evaluation)
    plain.train()
    evaluated.train()
    assert len(history(evaluated, "eval_reward")) == 2
    assert torch.equal(weights(plain), weights(evaluated))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_the_installed_trl_is_the_one_the_adapter_was_written_for():
    assert broken_contract() == []


def test_a_changed_private_method_is_named(monkeypatch):
    from trl import GRPOTrainer

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs, extra: None)
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    broken = broken_contract()
    assert any("_compute_loss" in line and "extra" in line for line in broken)
    assert any("_calculate_rewards" in line and "is now None" in line for line in broken)
    with pytest.raises(ConfigError, match="does not fit this version of negpo"):
        make_policy_trainer("nsr", "unused", model=make_model())


def test_prompts_and_completions_become_one_right_padded_block():
    output = {
        "prompt_ids": torch.tensor([[9, 9, 5], [6, 7, 8]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 3], [4, 9, 9]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    record = rows_.align_rows(output, {"logps": torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -9.0, -9.0]])})
    assert record["input_ids"].tolist() == [[5, 1, 2, 3], [6, 7, 8, 4]]
    assert record["labels"].tolist() == [[-100, 1, 2, 3], [-100, -100, -100, 4]]
    assert record["logps"].tolist() == [[-1.0, -2.0, -3.0], [0.0, 0.0, -4.0]]


def test_micro_batches_are_sorted_by_length_trimmed_and_keep_groups_in_one_step():
    lengths = torch.tensor([5, 9, 3, 4, 8, 2, 7, 6])
    labels = torch.full((8, 9), 1)
    record = {"input_ids": labels, "labels": labels, "lengths": lengths, "group": torch.arange(8) // 2}
    record |= {"live": torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()}
    first, second = rows_.plan_updates(record, updates=2, size=2)
    assert [part.tolist() for part in first] == [[5, 0], [4, 1]]  # groups 0 and 2
    assert [part.tolist() for part in second] == [[3], [7, 6]]  # groups 1 and 3, row 2 has no gradient
    assert rows_.take(record, second[0])["labels"].shape == (1, 4)


def test_replacement_prompts_cover_the_data_before_they_repeat():
    stream = PromptStream(5, seed=3)
    first = stream.draw(3) + stream.draw(2)
    assert sorted(first) == list(range(5))
    again = PromptStream(5, seed=3)
    again.position = 2
    assert again.draw(3) == first[2:]


def test_repetition_is_the_share_of_repeated_stretches():
    assert rows_.repetition(list(range(40))) == 0.0
    assert rows_.repetition([1, 2] * 30) > 0.9
    assert rows_.repetition([1] * 10) is None
    assert rows_.loops([[1] * 50, list(range(50)), [1]]) == (1, 2)


def test_lora_adapters_train_with_rollouts_from_the_same_modules(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = make_policy_trainer(
        "nsr", tmp_path, peft_config=lora, engine=None, max_completion_length=4, truncated="wrong"
    )
    before = weights(trainer)
    trainer.train()
    changed = (weights(trainer) != before).sum().item()
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert 0 < changed <= trainable
    assert make_tokenizer().pad_token_id == 1
