"""Relearning: what is trained on, what is measured, and knowledge that comes back without being trained on."""

import copy
import random

import pytest
import torch

from negpo.data.collate import pad_batch
from negpo.data.qa import encode_qa
from negpo.errors import ConfigError, DataError
from negpo.eval.attacks import AttackData, AttackItem
from negpo.eval.attacks.relearn import _batches, _looks, chosen
from negpo.logprobs import model_token_logprobs


@pytest.fixture(scope="module")
def suppressed(knowing, tiny_tokenizer, template, attacked):
    """The knowing model after a few ascent steps on the forget answers: silent, but the knowledge is still there."""
    model = copy.deepcopy(knowing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    items = [encode_qa(tiny_tokenizer, template, item.question, item.answer) for item in attacked.forget]
    batch = pad_batch(items, tiny_tokenizer.eos_token_id)
    for _ in range(40):
        scored = model_token_logprobs(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        loss = scored.logps.sum() / scored.mask.sum()
        if loss < -2:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_suppressed_knowledge_of_rows_that_were_not_trained_on_comes_back(run, suppressed, ignorant):
    back = run("relearn_forget", suppressed, steps=8).measures
    control = run("relearn_forget", ignorant, steps=8).measures
    assert back["answer_probability_before"][0] < 0.3
    assert back["answer_probability"][0] > 2 * back["answer_probability_before"][0]
    assert back["answer_probability"][0] > 2 * control["answer_probability"][0]


def test_the_value_is_measured_on_rows_that_were_not_trained_on(ran):
    result = ran("relearn_forget")
    used = [row["index"] for row in result.per_item if row["used"]]
    assert used == result.settings["rows"]
    assert len(used) == 3
    assert all(("value" in row) != row["used"] for row in result.per_item)
    assert "used_rougeL_recall" in result.measures


def test_relearning_on_retain_rows_measures_every_forget_row(ran, attacked):
    result = ran("relearn_retain")
    assert result.settings["rows"] == [item.index for item in attacked.retain]
    assert all("value" in row for row in result.per_item)
    assert not any(name.startswith("used_") for name in result.measures)


def test_the_curve_starts_before_training_and_the_value_is_its_highest_point(ran):
    result = ran("relearn_paraphrase")
    points = result.curves["answer_probability"]
    assert [x for x, *_ in points] == result.settings["looks"] == [0, 1, 2, 4]
    assert result.value == max(y for _, y, *_ in points)
    assert points[0][1] == result.measures["answer_probability_before"][0]
    assert all(len(row["answer_probability"]) == 4 for row in result.per_item)


def test_looks_are_powers_of_two_and_the_last_step():
    assert sorted(_looks(20)) == [0, 1, 2, 4, 8, 16, 20]
    assert sorted(_looks(1)) == [0, 1]


def test_batches_repeat_no_row_before_all_were_seen_and_depend_on_the_seed_alone():
    rows = [{"input_ids": [i]} for i in range(5)]
    batches = list(_batches(rows, 5, 2, random.Random("a")))
    order = [row["input_ids"][0] for batch in batches for row in batch]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert batches == list(_batches(rows, 5, 2, random.Random("a")))
    assert batches != list(_batches(rows, 5, 2, random.Random("b")))


def test_rows_to_train_on_are_neighbours_round_the_end(attacked):
    picks = {tuple(item.index for item in chosen(attacked, "forget", 3, seed)) for seed in range(40)}
    assert picks == {tuple((start + offset) % 8 for offset in range(3)) for start in range(8)}


def test_half_of_the_forget_rows_and_all_retain_rows_are_the_default(attacked):
    assert len(chosen(attacked, "forget", None, 0)) == 4
    assert len(chosen(attacked, "retain", None, 0)) == 8
    with pytest.raises(ConfigError, match="1 of 1 forget rows leaves none"):
        chosen(AttackData(attacked.forget[:1], ()), "paraphrase", None, 0)


def test_a_loss_that_is_not_finite_ends_training_with_a_note(run, knowing):
    result = run("relearn_forget", knowing, lr=1e30)
    assert any("the loss became" in note and "step" in note for note in result.notes)
    assert result.curves["rougeL_recall"][0][0] == 0


@pytest.mark.parametrize(
    ("name", "k", "message"),
    [
        ("relearn_forget", 8, "8 of 8 forget rows leaves none"),
        ("relearn_retain", 9, "k=9 exceeds the 8 retain rows"),
    ],
)
def test_too_many_rows_to_train_on_are_refused(run, knowing, name, k, message):
    with pytest.raises(ConfigError, match=message):
        run(name, knowing, k=k)


def test_missing_material_is_named(run, knowing, attacked):
    with pytest.raises(DataError, match="no retain rows"):
        run("relearn_retain", knowing, AttackData(attacked.forget, ()))
    bare = tuple(AttackItem(item.index, item.question, item.answer) for item in attacked.forget)
    with pytest.raises(DataError, match=r"forget, row \d, field 'paraphrased_answer'"):
        run("relearn_paraphrase", knowing, AttackData(bare, attacked.retain))
