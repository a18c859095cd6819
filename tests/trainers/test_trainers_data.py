"""What is refused before training, how rows are paired, and what is trained."""

import pytest
import torch
from unlearn_tiny import FORGET, RETAIN, make_model, make_tokenizer, make_trainer

from negpo.errors import ConfigError, DataError
from negpo.trainers import METHODS
from negpo.trainers._run.model import freeze_all_but
from negpo.trainers._run.rows import EpochSampler, draw


def bad_rows(place, **change):
    return [row | change if index == place else row for index, row in enumerate(FORGET)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_dataset: there are no rows"),
        (bad_rows(2, answer=""), "train_dataset, row 2, field 'answer': the text is empty"),
        (bad_rows(1, question=7), "train_dataset, row 1, field 'question': expected text, found int"),
        ([*FORGET, {"question": "Who?"}], "train_dataset, row 6, field 'answer': the field is missing"),
        ([{"body": "x"}], "train_dataset, row 0: found fields ['body']"),
        (["text"], "train_dataset, row 0: expected a dict with fields, found str"),
    ],
)
def test_bad_rows_are_named_before_training(tmp_path, rows, message):
    with pytest.raises(DataError) as error:
        make_trainer("ga", tmp_path, train_dataset=rows)
    assert str(error.value).startswith(message)


def test_an_answer_cut_to_nothing_is_an_error_that_names_the_row(tmp_path):
    rows = [*FORGET, {"question": "Why? " * 20, "answer": "Because."}]
    with pytest.raises(DataError, match=r"row 6, field 'answer': no answer token is left .* max_length=64"):
        make_trainer("ga", tmp_path, train_dataset=rows, max_length=64)


def test_the_forget_set_as_retain_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="the forget set and the retain set are the same rows"):
        make_trainer("npo", tmp_path, retain=FORGET)


def test_a_row_in_both_sets_is_refused_by_number(tmp_path):
    shared = {"question": f" {FORGET[3]['question']}", "answer": f"{FORGET[3]['answer']} "}
    with pytest.raises(DataError, match=r"1 of 6 forget rows .* first forget row 3 = retain row 9"):
        make_trainer("npo", tmp_path, retain=[*RETAIN, shared])


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"does not belong to the model.* ids below 100"):
        make_trainer("ga", tmp_path, model=make_model(vocab_size=100))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("ga", {"retain": RETAIN}, "would be ignored"),
        ("simnpo", {"ref_model": "anything"}, "ref_model would be ignored"),
        ("npo", {"model": (same := make_model()), "ref_model": same}, "the model being trained"),
        ("npo", {"reference": "adapters_off"}, "needs a PEFT model"),
        ("idkdpo", {"idk_answers": []}, "idk_answers is missing"),
        ("rmu", {"layer": 2, "max_steps": 1}, "the model has layers 0 to 1"),
    ],
)
def test_contradictions_are_refused(tmp_path, method, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(method, tmp_path, **settings).train()


def test_a_config_of_another_method_is_refused(tmp_path):
    from negpo.trainers import GradientAscentConfig, NPOTrainer

    with pytest.raises(ConfigError, match="NPOTrainer needs a NPOConfig, got GradientAscentConfig"):
        NPOTrainer(make_model(), GradientAscentConfig(output_dir=str(tmp_path)), FORGET)


def test_four_bit_loading_without_bitsandbytes_says_what_to_install(tmp_path, monkeypatch):
    from negpo.trainers._run.model import load_model

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'negpo\[quantization\]'"):
        load_model("somewhere", {"quantization_config": object()})


def test_prompt_completion_rows_end_with_eos_and_label_the_completion_only(tmp_path):
    trainer = make_trainer("ga", tmp_path, train_dataset=[{"prompt": "ab", "completion": "cde"}], batch=(1, 1))
    (item,) = trainer.train_dataset.forget
    assert item["labels"][:2] == [-100, -100]
    assert item["labels"][2:] == item["input_ids"][2:]
    assert item["input_ids"][-1] == make_tokenizer().eos_token_id


def test_partners_depend_on_seed_epoch_and_index_only(tmp_path):
    first = make_trainer("npo", tmp_path).train_dataset
    second = make_trainer("npo", tmp_path, batch=(1, 1)).train_dataset
    other_seed = make_trainer("npo", tmp_path, seed=7).train_dataset
    keys = [(epoch, index) for epoch in range(3) for index in range(len(FORGET))]
    partners = [first[key]["retain"]["row_id"] for key in keys]
    assert partners == [second[key]["retain"]["row_id"] for key in reversed(keys)][::-1]
    assert partners != [other_seed[key]["retain"]["row_id"] for key in keys]
    assert partners[:6] != partners[6:12]


def test_fixed_pairing_repeats_the_partners_in_every_epoch(tmp_path):
    data = make_trainer("idkdpo", tmp_path, pairing="fixed").train_dataset
    for index in range(len(FORGET)):
        for part in ("retain", "idk"):
            first, later = data[0, index][part], data[5, index][part]
            assert first["input_ids"] == later["input_ids"]


def test_draws_are_uniform():
    counts = torch.bincount(torch.tensor([draw(0, 0, index, 10, "retain") for index in range(5000)]), minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


def test_the_order_is_a_permutation_that_changes_with_the_epoch():
    sampler = EpochSampler(50, seed=3, shuffle=True)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(index for _, index in first) == list(range(50))
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]


def test_only_parameters_that_match_a_pattern_move(tmp_path):
    model, before = make_model(), make_model()
    trainer = make_trainer(
        "catnip", tmp_path, model=model, max_steps=1, trainable_parameters=[r"layers\.[1]\.mlp\.down_proj\.weight"]
    )
    trainer.train()
    moved = [
        name
        for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(now, then)
    ]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]


def test_a_pattern_without_a_match_shows_similar_names():
    with pytest.raises(ConfigError, match=r"'layers.9.mlp.down' matches no parameter; similar: model.layers"):
        freeze_all_but(make_model(), [r"layers.9.mlp.down"])


def test_every_method_accepts_a_datasets_object(tmp_path):
    from datasets import Dataset

    make_trainer("ga", tmp_path, train_dataset=Dataset.from_list(FORGET), max_steps=1).train()


def test_lazy_names_cover_every_method():
    import negpo.trainers

    for module, trainer, config in METHODS.values():
        assert getattr(negpo.trainers, trainer).config_class is getattr(negpo.trainers, config), module
