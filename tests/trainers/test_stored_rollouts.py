"""Training on stored completions: the gradients of drawn ones, log-probs from the file or the starting model."""

import json

import pytest
import torch
from rl_tiny import ScriptedEngine, change, history, make_policy_trainer, plus_reward, weights
from unlearn_tiny import make_model, make_tokenizer

from negpo.errors import ConfigError, DataError
from negpo.rollout.stored import StoredRollouts

PROMPTS = ("one", "two words", "three", "4?")
TEXTS = (("a+", "bb", "c", "dddddd"), ("e+", "f+", "gg+", "h"), ("no", "nope", "never", "n"), ("y+", "yes+", "+", "++"))
BATCH = {"batch": (4, 4), "learning_rate": 0.1}


def file_of(folder, *, change=None, groups=TEXTS, **more):
    rows = [
        {"prompt": prompt, "completion": text, "verdict": "correct" if "+" in text else "wrong"} | more
        for prompt, texts in zip(PROMPTS, groups, strict=True)
        for text in texts
    ]
    if change is not None:
        index, update = change
        rows[index] = {key: value for key, value in (rows[index] | update).items() if value != "remove"}
    path = folder / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, **more):
    return StoredRollouts.load(path, make_tokenizer(), **{"samples": 4, "max_tokens": 8} | more)


def stored_trainer(method, folder, path, **settings):
    stored = load(path)
    common = {"engine": stored, "engine_name": "stored", "reward": stored, "data": stored.rows()}
    return make_policy_trainer(method, folder, **BATCH | common | settings)


@pytest.mark.parametrize("method", ["nsr", "grpo", "topr", "raft", "reinforce_rej", "nft"])
def test_a_step_on_stored_rollouts_is_the_step_on_drawn_ones(method, tmp_path):
    data = [{"prompt": prompt} for prompt in PROMPTS]
    drawn = change(method, tmp_path / "drawn", engine=ScriptedEngine(TEXTS), data=data, reward=plus_reward, **BATCH)
    trainer = stored_trainer(method, tmp_path / "stored", file_of(tmp_path))
    before = weights(trainer)
    trainer.train()
    assert torch.allclose(weights(trainer) - before, drawn, atol=1e-6)
    assert drawn.abs().max() > 1e-4


def test_log_probs_of_the_file_are_the_old_ones(tmp_path):
    """Half as likely under the policy that wrote them: every ratio is e^0.7 at the first step."""
    model, tokenizer = make_model(), make_tokenizer()
    rows = []
    for prompt, texts in zip(PROMPTS, TEXTS, strict=True):
        for text in texts:
            start = tokenizer(prompt)["input_ids"]
            ids = start + tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            values = [logps[i - 1, ids[i]].item() - 0.7 for i in range(len(start), len(ids))]
            verdict = "correct" if "+" in text else "wrong"
            rows.append({"prompt": prompt, "completion": text, "verdict": verdict, "logprobs": values})
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = stored_trainer("grpo", tmp_path / "run", path, epsilon=1.0, epsilon_high=9.0, max_kl=None)
    trainer.train()
    assert history(trainer, "negative/ratio")[0] == pytest.approx(2.0138, rel=1e-3)
    assert not history(trainer, "mismatch/mean")


def test_every_prompt_gets_its_next_group_in_the_next_epoch_and_a_resumed_run_goes_on(tmp_path):
    groups = tuple((*texts, *(f"{text}!" for text in texts)) for texts in TEXTS)
    path = file_of(tmp_path, groups=groups)
    settings = {"updates_per_rollout": 1, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = stored_trainer("nsr", tmp_path / "whole", path, **settings)
    whole.train()
    short = stored_trainer("nsr", tmp_path / "cut", path, **settings | {"max_steps": 2})
    short.train()
    resumed = stored_trainer("nsr", tmp_path / "cut", path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(whole), weights(resumed))
    stored = load(path)
    stored.bind([[i] for i in range(4)], 2)
    sampling = type("S", (), {"n": 4})
    stored.fill(lambda prompts, completions: [[-1.0] * len(ids) for ids in completions])
    drawn = [stored.generate([[0]], sampling, prompt_keys=[f"{r}:0"])[0][0].token_ids for r in range(6)]
    assert drawn[0] == drawn[1] == drawn[4]
    assert drawn[2] == drawn[3] != drawn[0]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"prompt": ""}, "field 'prompt': is ''"),
        ({"completion": 3}, "field 'completion': is 3"),
        ({"verdict": "maybe"}, "field 'verdict': is 'maybe'"),
        ({"verdict": "remove"}, "need exactly one of verdict and reward"),
        ({"reward": 1.0}, "need exactly one of verdict and reward"),
        ({"logprobs": [-1.0]}, "need 3 numbers of at most 0.*found 1"),
        ({"logprobs": [0.5, -1.0, -1.0]}, "need 3 numbers of at most 0"),
        ({"token_ids": [5, 6]}, "written by another one"),
        ({"token_ids": [10**6]}, "written by another one"),
        ({"prompt": "one", "completion": "bb", "verdict": "correct"}, "judged wrong.* before"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(update, message, tmp_path):
    path = file_of(tmp_path, change=(4, update))
    with pytest.raises(DataError, match=message) as error:
        load(path)
    assert "row 4" in str(error.value)


def test_short_groups_and_long_answers_are_left_out_with_a_count(tmp_path, caplog):
    path = file_of(tmp_path, groups=(*TEXTS[:3], ("y+", "a far too long answer", "+", "++")))
    stored = load(path)
    assert stored.prompts == list(PROMPTS[:3])
    assert "1 completions longer than max_completion_length=8" in caplog.text
    assert "1 prompts with fewer than num_generations=4" in caplog.text
    with pytest.raises(DataError, match="no prompt has 5 completions"):
        load(path, samples=5)
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.jsonl")


def test_rewards_may_stand_in_the_place_of_verdicts(tmp_path):
    rows = [
        {"prompt": prompt, "completion": text, "reward": None if text == "n" else float("+" in text)}
        for prompt, texts in zip(PROMPTS, TEXTS, strict=True)
        for text in texts
    ]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = stored_trainer("grpo", tmp_path / "run", path)
    trainer.train()
    assert history(trainer, "rows/unknown") == [1 / 16]


def test_an_engine_of_another_kind_and_methods_that_need_their_own_rollouts_are_refused(tmp_path):
    path = file_of(tmp_path)
    with pytest.raises(ConfigError, match="cannot train on stored ones"):
        stored_trainer("resrl", tmp_path / "run", path)
    stored = load(path)
    with pytest.raises(ConfigError, match="engine=transformers does not go with"):
        make_policy_trainer("nsr", tmp_path, engine=stored, reward=stored, data=stored.rows())


def test_the_script_trains_on_a_file_and_names_settings_that_it_would_not_read(tmp_path):
    from negpo.trainers._script import parse, run_training

    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    base = ["--model_name_or_path", str(tmp_path / "model"), "--rollouts", str(file_of(tmp_path)), "--use_cpu", "true"]
    base += ["--output_dir", str(tmp_path / "out"), "--num_generations", "4", "--max_completion_length", "8"]
    base += ["--per_device_train_batch_size", "4", "--updates_per_rollout", "1", "--save_strategy", "no"]
    run_training("topr", [*base, "--max_steps", "2", "--learning_rate", "1e-3"])
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="protocol=lab has no effect with rollouts"):
        parse("topr", [*base, "--protocol", "lab"])
    with pytest.raises(ConfigError, match="engine=vllm draws nothing with rollouts"):
        run_training("topr", [*base, "--engine", "vllm"])
