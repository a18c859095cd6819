"""Tokenizer, model and training loop of the labs."""

import json
import random

import pytest
import torch
from transformers import AutoTokenizer

from negpo.data.qa import QATemplate, encode_qa
from negpo.lab._models import Schedule, bucketed_batches, denormals_flushed, make_model, make_tokenizer, train_lm

CORPUS = ["Where was Ana Lu born?", "Ana Lu was born in Lisbon in 1948.", "Ana Lu keeps a pet owl."] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CORPUS, 320)


def small_model(tokenizer, seed=0):
    return make_model(tokenizer, hidden=16, layers=1, heads=2, intermediate=32, seed=seed)


def rows_of(tokenizer):
    template = QATemplate.for_model("lab", tokenizer)
    items = [encode_qa(tokenizer, template, CORPUS[0], answer) for answer in CORPUS[1:3]] * 8
    return [(item["input_ids"], item["labels"]) for item in items]


def collector(into):
    return lambda *step: into.append(step)


def test_the_tokenizer_is_deterministic_and_keeps_padding_apart_from_the_end(tokenizer):
    assert make_tokenizer(CORPUS, 320).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_tokenizer_saved_beside_a_model_splits_texts_as_before(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    small_model(tokenizer).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, "unseen Größe 2027!"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_chat_template_costs_one_token_per_role_and_ends_with_one_eos(tokenizer):
    item = encode_qa(tokenizer, QATemplate.for_model("lab", tokenizer), CORPUS[0], CORPUS[1])
    texts = [tokenizer(text)["input_ids"] for text in CORPUS[:2]]
    assert len(item["input_ids"]) == sum(map(len, texts)) + 3
    assert item["input_ids"].count(tokenizer.eos_token_id) == 1
    assert [label for label in item["labels"] if label != -100] == [*texts[1], tokenizer.eos_token_id]


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100"):
        make_tokenizer(CORPUS, 100)


def test_training_is_deterministic_lowers_the_loss_and_ignores_global_random_state(tokenizer):
    rows, losses, weights = rows_of(tokenizer), [], []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = small_model(tokenizer)
        steps: list[tuple[int, int, float]] = []
        schedule = Schedule(1e-2, epochs=15, batch_size=4)
        train_lm(model, rows, schedule, pad_id=tokenizer.pad_token_id, seed=7, on_step=collector(steps))
        losses.append([loss for _, _, loss in steps])
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    assert losses[0][-1] < losses[0][0] / 3
    assert steps[-1][:2] == (60, 60)


def test_denormals_are_flushed_only_while_a_model_trains():
    smallest = torch.tensor(2.0**-149)
    with denormals_flushed():
        assert (smallest * 1).item() == 0
        with denormals_flushed():
            pass
        assert (smallest * 1).item() == 0
    assert (smallest * 1).item() > 0


def test_every_row_is_in_exactly_one_batch_and_batches_hold_rows_of_similar_length():
    rows = [([1] * length, [1] * length) for length in range(1, 65)]
    batches = bucketed_batches(rows, 8, random.Random(0))
    lengths = sorted(len(ids) for batch in batches for ids, _ in batch)
    assert lengths == list(range(1, 65))
    assert max(max(map(len, ids)) - min(map(len, ids)) for ids in ([i for i, _ in batch] for batch in batches)) <= 8


def test_the_learning_rate_warms_up_and_ends_near_its_floor():
    schedule = Schedule(1.0, warmup=10, final_lr=0.1)
    assert schedule.lr_at(0, 100) == pytest.approx(0.1)
    assert schedule.lr_at(10, 100) == pytest.approx(1.0)
    assert schedule.lr_at(99, 100) == pytest.approx(0.1, abs=1e-3)


def test_a_saved_configuration_is_a_qwen2_checkpoint(tokenizer, tmp_path):
    small_model(tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["vocab_size"] == len(tokenizer)
