"""What holds for every attack: it finds what is there, changes nothing, and does not depend on the batch."""

import copy
import math

import numpy as np
import pytest
import torch

from negpo.errors import ConfigError, DataError
from negpo.eval.attacks import ATTACKS, AttackData, AttackItem, AttackResult, attack_data, make_attack
from negpo.eval.scoring import Batching
from negpo.eval.tofu import load_tofu
from negpo.models import hash_model


def without_time(result: AttackResult) -> dict:
    return {key: value for key, value in result.to_json().items() if key != "seconds"}


def numbers(content) -> list[float]:
    """All floats of a JSON value, in order."""
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers(value)]
    return [content] if isinstance(content, float) else []


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("linear_probe", "quantise_nf4")])
def test_an_attack_finds_what_a_model_knows_and_little_in_one_that_never_knew(run, ran, knowing, name):
    """The linear probe has its own test: two layers learn such facts by heart, not as a direction. NF4's blocks of 64
    span several rows of this tiny model, and destroy what it knows."""
    assert run(name, knowing).value > 0.9 > 0.8 > ran(name).value


@pytest.mark.parametrize("name", ATTACKS)
def test_the_callers_model_is_bit_for_bit_what_it_was(run, knowing, name):
    model = copy.deepcopy(knowing).train()
    frozen = next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    model.model.layers[1].eval()
    before, modes = hash_model(model), [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    run(name, model)
    assert hash_model(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not frozen.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ATTACKS)
def test_two_runs_with_one_seed_are_the_same(run, ran, ignorant, name):
    assert without_time(run(name, ignorant)) == without_time(ran(name))


@pytest.mark.parametrize("name", ATTACKS)
def test_batches_of_one_and_of_many_give_the_same_numbers(run, attacked, ignorant, name):
    """Generated texts are equal; probabilities agree to float32's rounding in matrix products of another shape."""
    four = attacked.first(4)
    many, one = (without_time(run(name, ignorant, four, batching=Batching(max_rows=rows))) for rows in (32, 1))
    assert many.keys() == one.keys()
    assert many["notes"] == one["notes"]
    assert [row.get("generation") for row in many["per_item"]] == [row.get("generation") for row in one["per_item"]]
    assert numbers(one) == pytest.approx(numbers(many), abs=2e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_value_is_the_mean_of_the_items_values_inside_its_interval(ran, name):
    result = ran(name)
    values = [row["value"] for row in result.per_item if "value" in row]
    assert result.value == pytest.approx(np.mean(values))
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.measures[result.headline] == [result.value, result.low, result.high]
    assert result.settings["seed"] == 0
    assert result.name == name


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_with_nan_logits_gives_nothing_away_and_the_result_says_why(run, knowing, name):
    broken = copy.deepcopy(knowing)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    result = run(name, broken)
    assert result.value == (0.5 if name == "linear_probe" else 0.0)
    assert any("NaN" in note and "row 0" in note for note in result.notes if "layers" not in note)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_result_comes_back_from_json_as_it_was(ran, name):
    result = ran(name)
    assert AttackResult.from_json(result.to_json()).to_json() == result.to_json()


def test_progress_reaches_its_end(run, knowing):
    seen = []
    run("quantise_8bit", knowing, progress=lambda *step: seen.append(step))
    assert seen[-1][1] == seen[-1][2]


def test_a_result_with_a_foreign_field_is_refused():
    content = AttackResult("x", {}, "rougeL_recall", 0.5, math.nan, 0.6).to_json()
    assert math.isnan(AttackResult.from_json(content).low)
    with pytest.raises(DataError, match="'extra'"):
        AttackResult.from_json({**content, "extra": 1})


def test_tofu_rows_become_items_with_all_their_wordings(tofu_folder):
    data = load_tofu(tofu_folder)
    items = attack_data(data)
    row = data.sets["forget"][2]
    assert items.forget[2] == AttackItem(
        2,
        row["question"],
        row["answer"],
        paraphrases=(),
        perturbed=tuple(row["perturbed_answer"]),
        paraphrased_answer=row["paraphrased_answer"],
    )
    assert len(items.retain) == 4
    assert len(items.holdout) == 5
    assert len(items.first(3).forget) == 3


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), "forget set is empty"),
        ((AttackItem(7, "Who?", " "),), "row 7, field 'answer'"),
        ((AttackItem(1, "Who?", "Ann"), AttackItem(1, "When?", "Now")), "row 1: the index is taken"),
    ],
)
def test_unusable_items_are_refused_by_row_and_field(items, message):
    with pytest.raises(DataError, match=message):
        AttackData(items, ())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hypnosis", {}, "no attack 'hypnosis'; choose from relearn_forget"),
        ("sampling", {"samples": 4}, "'samples'"),
        ("sampling", {"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ("prompting", {"families": ("magic",)}, "families are paraphrase"),
        ("prompting", {"given": (1.5,)}, "between 0 and 1"),
        ("quantise_4bit", {"bits": 16}, "bits must be between 2 and 8, not 16"),
        ("relearn_forget", {"k": 0}, "k must be at least 1"),
        ("relearn_forget", {"lr": -1.0}, "lr must be positive"),
        ("linear_probe", {"folds": 1}, "folds must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_attack(name, **settings)


def test_a_prompt_beyond_the_models_positions_names_its_row(run, make_model, attacked):
    long = AttackItem(3, "word " * 600, "Ann")
    with pytest.raises(DataError, match=r"row 3.*512 positions"):
        run("quantise_4bit", make_model(0), AttackData((long,), ()))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run, make_model, name):
    model = make_model(0)
    model.resize_token_embeddings(80)
    with pytest.raises(ConfigError, match="do not fit together"):
        run(name, model)
