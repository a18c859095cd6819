"""Hashes, the log-prob cache and its failure modes, and the three sources of a reference."""

import copy
import errno
import json
import logging
import os

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from negpo.errors import ConfigError, DataError
from negpo.reference import ReferenceKey, StepZeroCheck, build_or_open, hash_model, hash_rows, score_rows

KEY = ReferenceKey(rows="r", weights="w", tokenizer="t", template="q", max_length=8, precision="float32/no")
VALUES = {0: [-1.0, -2.0], 1: [-3.0], 2: [-0.5, -0.25, -4.0]}
COUNTS = [len(values) for values in VALUES.values()]


def tiny(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.3, **sizes, **settings))


def compute(calls=None):
    def results():
        if calls is not None:
            calls.append(1)
        for row in (2, 0, 1):  # any order
            yield row, np.asarray(VALUES[row], dtype=np.float32)

    return results


def test_values_come_back_by_row_and_are_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        cache = build_or_open(tmp_path, KEY, COUNTS, compute(calls))
        assert [list(cache[row]) for row in range(3)] == list(VALUES.values())
    assert len(calls) == 1
    assert isinstance(cache._values, np.memmap)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_a_damaged_cache_is_noticed_and_built_again(tmp_path, damage, caplog):
    folder = build_or_open(tmp_path, KEY, COUNTS, compute()).folder
    path = folder / ("meta.json" if damage == "meta" else "logps.f32")
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        cache = build_or_open(tmp_path, KEY, COUNTS, compute())
    assert list(cache[2]) == VALUES[2]
    assert "computing them again" in caplog.text


def test_a_cache_of_other_weights_is_not_used_and_the_difference_is_named(tmp_path, caplog):
    calls = []
    build_or_open(tmp_path, KEY, COUNTS, compute())
    other = ReferenceKey(**{**KEY.__dict__, "weights": "other"})
    with caplog.at_level(logging.WARNING):
        build_or_open(tmp_path, other, COUNTS, compute(calls))
    assert calls
    assert "weights: w in the cache, other here" in caplog.text


def test_a_folder_renamed_to_fit_another_key_is_refused(tmp_path):
    other = ReferenceKey(**{**KEY.__dict__, "weights": "other"})
    folder = build_or_open(tmp_path, KEY, COUNTS, compute()).folder
    os.rename(folder, tmp_path / other.digest()[:24])
    with pytest.raises(DataError, match=r"made for something else .*weights"):
        build_or_open(tmp_path, other, COUNTS, compute())


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupted():
        yield 0, np.asarray(VALUES[0], dtype=np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_open(tmp_path, KEY, COUNTS, interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = []
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build_or_open(tmp_path, KEY, COUNTS, compute(calls))
    assert not calls
    assert list(tmp_path.iterdir()) == []


def test_a_non_finite_reference_names_the_row(tmp_path):
    def results():
        yield 1, np.asarray([np.nan], dtype=np.float32)

    with pytest.raises(DataError, match="row 1: the reference model gives this row a non-finite log-prob"):
        build_or_open(tmp_path, KEY, COUNTS, results)


def test_every_part_of_the_key_changes_the_digest():
    changed = [ReferenceKey(**{**KEY.__dict__, name: 9}).digest() for name in KEY.__dict__]
    assert len({KEY.digest(), *changed}) == len(changed) + 1


def test_the_weight_hash_sees_one_bit_dtype_and_name():
    model = tiny()
    before = hash_model(model)
    assert hash_model(tiny()) == before
    assert hash_model(tiny().double()) != before
    with torch.no_grad():
        model.lm_head.weight[3, 4] = torch.nextafter(model.lm_head.weight[3, 4], torch.tensor(9.0))
    assert hash_model(model) != before


def test_a_lora_model_hashes_like_its_base_without_adapters():
    from peft import LoraConfig, get_peft_model

    base = tiny()
    expected = hash_model(base)
    wrapped = get_peft_model(base, LoraConfig(target_modules="all-linear"))
    assert hash_model(wrapped, adapters=False) == expected
    assert hash_model(wrapped) != expected


def test_scores_do_not_depend_on_the_batching():
    model = tiny().double()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (5, 9, 3, 12, 7):
        ids = torch.randint(0, 50, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    one = dict(score_rows(model, rows, pad_id=0, tokens_per_batch=1))
    many = dict(score_rows(model, rows, pad_id=0, tokens_per_batch=1000))
    assert sorted(one) == sorted(many) == list(range(5))
    for row in one:
        assert len(one[row]) == len(rows[row]["input_ids"]) - 2
        assert np.allclose(one[row], many[row], atol=1e-6)
    assert hash_rows(rows) != hash_rows(rows[::-1])


def test_the_step_zero_check_accepts_rounding_and_refuses_more():
    logps = torch.full((2, 3), -1.0)
    mask = torch.ones(2, 3, dtype=torch.bool)
    StepZeroCheck.measure(logps, logps + 1e-5, mask).enforce("float32")
    for gap in (0.1, float("nan")):
        with pytest.raises(ConfigError, match="dropout"):
            StepZeroCheck.measure(logps, logps + gap, mask).enforce("float32")


def test_dropout_is_caught_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="dropout is on"):
        npo(tmp_path, model=tiny(attention_dropout=0.5)).train()


ROWS = [{"input_ids": list(range(i, i + 8)), "labels": [-100] * 3 + list(range(i + 3, i + 8))} for i in range(4)]


def npo(folder, **more):
    from transformers import PreTrainedTokenizerFast

    from negpo.trainers import NPOConfig, NPOTrainer

    settings = {
        name: more.pop(name) for name in ("reference", "retain_loss", "reference_cache_dir", "bf16") if name in more
    }
    args = NPOConfig(
        output_dir=str(folder),
        **{"retain_loss": "none"} | settings,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = more.pop("model", None) or tiny()
    return NPOTrainer(model, args, ROWS, processing_class=tokenizer(PreTrainedTokenizerFast), **more)


def tokenizer(kind):
    from tokenizers import Tokenizer, models

    vocab = {f"t{i}": i for i in range(50)}
    return kind(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t0")), eos_token="t1", pad_token="t2")


def run(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lora():
    from peft import LoraConfig

    torch.manual_seed(1)
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=True)


def test_adapters_off_a_second_model_and_the_cache_are_the_same_reference(tmp_path):
    sources = {"cache": {}, "adapters_off": {}, "model": {"ref_model": tiny()}}
    losses = {
        source: run(npo(tmp_path / source, reference=source, peft_config=lora(), **more))
        for source, more in sources.items()
    }
    assert losses["cache"][0] != losses["cache"][2]
    assert losses["adapters_off"] == pytest.approx(losses["cache"], rel=1e-6)
    assert losses["model"] == pytest.approx(losses["cache"], rel=1e-6)


def test_kl_with_lora_needs_no_second_model(tmp_path):
    retain = [{"input_ids": list(range(20, 28)), "labels": list(range(20, 28))}]
    off = npo(tmp_path / "a", retain_loss="kl", peft_config=lora(), retain_dataset=retain)
    second = npo(tmp_path / "b", retain_loss="kl", peft_config=lora(), retain_dataset=retain, ref_model=tiny())
    assert run(off) == pytest.approx(run(second), rel=1e-5)
    assert off.reference.model is None


def test_lora_training_leaves_the_base_weights_alone(tmp_path):
    model = tiny()
    before = hash_model(model)
    trainer = npo(tmp_path, model=model, peft_config=lora())
    run(trainer)
    assert hash_model(trainer.model, adapters=False) == before


def test_a_cache_folder_is_shared_by_runs_with_the_same_start(tmp_path, caplog):
    run(npo(tmp_path / "a", reference_cache_dir=str(tmp_path / "cache")))
    with caplog.at_level(logging.INFO, logger="negpo"):
        run(npo(tmp_path / "b", reference_cache_dir=str(tmp_path / "cache"), peft_config=lora()))
    assert "using the cache" in caplog.text
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    assert json.loads(meta.read_text())["key"]["weights"] == hash_model(tiny())


def test_the_reference_may_be_another_model(tmp_path):
    from_start = run(npo(tmp_path / "start"))
    from_other = run(npo(tmp_path / "other", ref_model=tiny(3)))
    assert abs(from_start[0] - from_other[0]) > 1e-3


def test_bfloat16_autocast_starts_at_the_same_reference(tmp_path):
    model = tiny()
    trainer = npo(tmp_path, model=copy.deepcopy(model), bf16=True)
    losses = run(trainer)
    assert losses[0] == pytest.approx(13.8629, abs=0.2)
