"""The retain constraint, sharpness-aware steps and the data of CE-U and AltPO, run with tiny models."""

import copy
import json

import pytest
import torch
from unlearn_tiny import FORGET, history, make_model, make_trainer

from negpo.errors import ConfigError, DataError
from negpo.objectives import dual_update


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_multiplier_moves_once_per_optimiser_step_after_the_warm_up(tmp_path):
    settings = {"retain_constraint": 2.0, "dual_step": 0.5, "dual_warmup": 1.0, "grad_diff_coeff": 3.0}
    trainer = make_trainer("pdu", tmp_path, batch=(1, 2), num_train_epochs=2.0, learning_rate=1e-4, **settings)
    trainer.train()
    multipliers, losses = history(trainer, "retain/multiplier"), history(trainer, "retain/loss")
    assert multipliers[:4] == [3.0] * 4  # three steps of the warm-up, and the step that the first update follows
    expected = 3.0
    for loss, used in zip(losses[3:], [*multipliers[4:], trainer.constraint.multiplier], strict=True):
        expected = dual_update(expected, loss, bound=2.0, step=0.5)
        assert used == pytest.approx(expected, rel=1e-5)


def test_the_multiplier_survives_a_resumed_run(tmp_path):
    settings = {"retain_constraint": 2.0, "dual_step": 0.5, "dual_warmup": 0.0, "grad_diff_coeff": 3.0}
    settings |= {"save_strategy": "steps", "save_steps": 2, "batch": (2, 1), "num_train_epochs": 2.0}
    whole = make_trainer("pdu", tmp_path / "whole", **settings)
    whole.train()
    saved = json.loads((tmp_path / "whole/checkpoint-2/retain_multiplier.json").read_text())
    assert saved["multiplier"] != 3.0
    again = make_trainer("pdu", tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert again.constraint.multiplier == pytest.approx(whole.constraint.multiplier, rel=1e-6)
    assert torch.allclose(weights(again.model), weights(whole.model), atol=1e-6)


def test_any_method_takes_the_constraint(tmp_path):
    trainer = make_trainer("npo", tmp_path, max_steps=1, retain_constraint=0.5, dual_step=2.0)
    trainer.train()
    assert trainer.constraint.multiplier == pytest.approx(1 + 2 * (history(trainer, "retain/loss")[0] - 0.5), rel=1e-5)


def test_sam_with_radius_zero_is_the_plain_step_and_npo_sam_is_not(tmp_path):
    models = [make_model(), make_model(), make_model()]
    reference = make_model(5)
    for model, method, rho in zip(models, ("npo", "npo_sam", "npo_sam"), (0.0, 1e-9, 0.5), strict=True):
        settings = {"max_steps": 1, "ref_model": copy.deepcopy(reference), "check_reference": False, "sam_rho": rho}
        make_trainer(method, tmp_path / f"{method}{rho}", model=model, batch=(3, 2), **settings).train()
    plain, tiny, wide = (weights(model) for model in models)
    assert torch.allclose(plain, tiny, atol=1e-6)
    assert (plain - wide).abs().max() > 1e-4


def test_sam_takes_the_forget_gradient_at_the_perturbed_weights(tmp_path):
    model, naive = make_model(), make_model()
    rho, rate = 0.3, 1e-2
    probe = make_trainer("ga", tmp_path / "probe", model=naive, batch=(6, 1), max_steps=1, learning_rate=rate)
    before = weights(naive)
    probe.train()
    gradient = (before - weights(naive)) / rate
    moved = make_model()
    torch.nn.utils.vector_to_parameters(before + rho * gradient / gradient.norm(), moved.parameters())
    at_peak = weights(moved)
    make_trainer("ga", tmp_path / "peak", model=moved, batch=(6, 1), max_steps=1, learning_rate=rate).train()
    expected = before + (weights(moved) - at_peak)
    trainer = make_trainer("ga", tmp_path, model=model, batch=(6, 1), max_steps=1, learning_rate=rate, sam_rho=rho)
    trainer.train()
    assert torch.allclose(weights(model), expected, atol=2e-5)
    assert len(history(trainer, "forget/loss")) == 1


def test_answers_shorter_than_what_ceu_skips_are_left_out(tmp_path):
    trainer = make_trainer("ceu", tmp_path, ignore_first_n_answer_tokens=7, max_steps=1)
    assert trainer.train_dataset.row_ids == [0, 2, 4, 5]  # "Oslo." and "Two." have no eighth token
    with pytest.raises(DataError, match="no answer is longer than the 500 tokens"):
        make_trainer("ceu", tmp_path, ignore_first_n_answer_tokens=500)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "altpo needs question, answer and alternate"),
        ({"alternate": " "}, "alternate answer is empty"),
        ({"alternate": "Oslo."}, "is the answer to forget itself"),
    ],
)
def test_altpo_refuses_rows_without_a_usable_alternate_by_row(tmp_path, row, message):
    rows = [FORGET[0] | {"alternate": "Bea Fern."}, FORGET[1] | row]
    with pytest.raises(DataError, match=message) as caught:
        make_trainer("altpo", tmp_path, train_dataset=rows)
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("pdu", {}, "retain_constraint is missing"),
        ("pdu", {"retain_loss": "none", "retain_constraint": 1.0}, "pdu bounds the retain loss"),
        ("npo", {"dual_step": 1.0}, "dual_step=1.0 would be ignored"),
        ("npo", {"retain_constraint": 1.0}, "dual_step is 0.0"),
        ("ga", {"retain_constraint": 1.0, "dual_step": 1.0}, "retain_loss is none"),
        ("npo", {"sam_rho": -1.0}, "sam_rho is -1.0"),
        ("npo_sam", {"sam_rho": 0.0}, "sam_rho is 0.0"),
        ("rmu", {"sam_rho": 0.1}, "sam_rho would be ignored"),
        ("ceu", {"ignore_first_n_answer_tokens": -1}, "must be 0 or greater"),
        ("undial", {"beta": -1.0}, "beta is -1.0"),
        ("undial", {"reference": "cache"}, "undial compares whole distributions"),
        ("undial", {"positions": "some"}, "choose one of labelled, all"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused_by_name(tmp_path, method, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(method, tmp_path, **settings)
