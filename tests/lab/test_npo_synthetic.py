"""The NPO paper's synthetic experiment at a size for tests."""

import json
import math

import pytest
import torch
from markupsafe import escape

from negpo.lab.claims import Counted
from negpo.lab.npo_synthetic import SyntheticSettings, claims_table, run_experiment, write_outputs
from negpo.lab.npo_synthetic.claims import fit_line, front_height, measure_growth
from negpo.lab.npo_synthetic.simulate import (
    METHODS,
    TABLE_1,
    Rows,
    build_world,
    descend,
    distance,
    logits,
    method_loss,
    pretrain,
    unlearn,
)

TINY = SyntheticSettings(seeds=2, steps=60, pretrain_steps=400)


@pytest.fixture(scope="module")
def world():
    return build_world(1, TINY)


@pytest.fixture(scope="module")
def result():
    return run_experiment(TINY)


def test_pretraining_is_plain_gradient_descent_on_the_mean_logistic_loss():
    z = torch.randn(1, 30, 128, dtype=torch.float64)
    rows = Rows(z, torch.randint(2, (1, 30)).double() * 2 - 1)
    theta = torch.zeros(1, 128, dtype=torch.float64, requires_grad=True)
    for _ in range(7):
        loss = torch.nn.functional.softplus(-rows.sign * logits(z, theta)).mean()
        theta = (theta - 0.05 * torch.autograd.grad(loss, theta)[0]).detach().requires_grad_(True)
    ours = pretrain(rows, SyntheticSettings(pretrain_steps=7))
    torch.testing.assert_close(ours, theta.detach(), rtol=1e-12, atol=1e-15)


def test_a_batch_of_seeds_walks_exactly_as_each_seed_alone(world):
    alone = build_world(1, SyntheticSettings(seeds=1, pretrain_steps=400))
    for method in METHODS:
        lr, beta = TABLE_1[1][method]
        *_, together = descend(method_loss(method, world, beta), world.reference, lr, 10)
        *_, single = descend(method_loss(method, alone, beta), alone.reference, lr, 10)
        torch.testing.assert_close(together[:1], single, rtol=1e-10, atol=1e-12)


def test_the_retrained_model_is_at_distance_zero_and_the_reference_is_not(world):
    assert distance(world, world.eval_forget, world.retrained).abs().max() < 1e-15
    assert distance(world, world.eval_forget, world.reference).min() > 0.01


def test_distance_is_the_kullback_leibler_divergence_of_two_coins(world):
    p = torch.sigmoid(logits(world.eval_retain.z, world.retrained))
    q = torch.sigmoid(logits(world.eval_retain.z, world.reference))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    torch.testing.assert_close(distance(world, world.eval_retain, world.reference), expected, rtol=1e-9, atol=0)


def test_labels_lean_to_one_on_forget_rows_and_to_zero_on_retain_rows(world):
    assert world.forget.sign.mean() > 0.2
    assert world.retain.sign.mean() < -0.2
    assert world.idk.sign.mean().abs() < 0.2
    torch.testing.assert_close(world.idk.z, world.forget.z)


def test_unlearning_starts_at_the_reference_and_measures_as_often_as_asked(world):
    path = unlearn("NPO+RT", world, 5e-3, 1.0, TINY)
    assert path.steps.tolist() == list(range(0, 61, 10))
    torch.testing.assert_close(path.forget[0], distance(world, world.eval_forget, world.reference))
    assert path.forget[-1].mean() < path.forget[0].mean()


def test_theorem_2_shows_a_line_for_ga_and_a_logarithm_for_npo():
    growth = measure_growth(SyntheticSettings(seeds=2, steps=400))
    assert (fit_line(growth.steps, growth.ga)[1] > 0.999).all()
    late = growth.steps >= 100
    slope, fit = fit_line(growth.steps[late].double().log(), growth.npo[late])
    assert (fit > 0.99).all()
    torch.testing.assert_close(slope / math.sqrt(32), torch.ones(2, dtype=torch.float64), rtol=0.1, atol=0)


def test_a_line_is_fitted_column_by_column():
    x = torch.arange(5)
    slope, fit = fit_line(x, torch.stack([2.0 * x + 1, -0.5 * x], dim=1).double())
    torch.testing.assert_close(slope, torch.tensor([2.0, -0.5], dtype=torch.float64))
    torch.testing.assert_close(fit, torch.ones(2, dtype=torch.float64))


def test_a_front_that_never_forgets_enough_is_infinitely_high():
    retain = torch.tensor([[0.1], [0.2], [0.3]])
    assert front_height(torch.tensor([[1.0], [0.3], [0.01]]), retain).item() == pytest.approx((3 * 0.3 + 0.2) / 4)
    assert front_height(torch.tensor([[1.0], [0.3], [0.2]]), retain).isinf().all()


def test_a_verdict_counts_the_instances():
    for holds, verdict in (([True, True], "holds"), ([False, False], "fails"), ([True, False], "in 1 of 2")):
        assert Counted("", holds).verdict == verdict


def test_exact_claims_hold_at_any_size(result):
    exact = [c for c in result.claims if c.source == "eq. 4" or c.source.startswith("prop. 1")]
    assert [part.verdict for claim in exact for part in claim.parts] == ["holds", "holds"]


def test_outputs_are_a_json_a_picture_and_a_page_without_external_parts(result, tmp_path):
    paths = write_outputs(result, tmp_path / "out")
    assert [path.name for path in paths] == ["results.json", "curves.png", "report.html"]
    stored = json.loads(paths[0].read_text())
    assert len(stored["claims"]) == len(result.claims) == claims_table(result).row_count
    assert set(stored["curves"]["alpha_1"]) == set(METHODS)
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    page = paths[2].read_text()
    assert all(escape(claim.title) in page for claim in result.claims)
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
