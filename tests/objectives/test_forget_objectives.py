"""Forget and retain objectives: naive references, closed-form gradients, identities of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_support import batch, close, gradient

from negpo.objectives import (
    catnip_loss,
    ga_loss,
    kto_loss,
    nll_loss,
    npo_loss,
    retain_kl,
    rmu_control_vector,
    rmu_loss,
    satimp_loss,
    simnpo_loss,
    tnpo_loss,
    u2a_scores,
    u2a_update_weights,
    wga_loss,
)
from negpo.objectives._common import log1mexp

BETAS = [0.1, 1.0, 2.0, 6.0]


def sums(values, mask):
    return torch.stack([row[m].sum() for row, m in zip(values, mask, strict=True)])


def test_nll_is_the_cross_entropy_of_hugging_face_and_ga_is_its_negative():
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 7, (3, 5)).masked_fill(torch.rand(3, 5) < 0.3, -100)
    mask = labels != -100
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss, stats = nll_loss(logps, mask)
    close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    close(ga_loss(logps, mask)[0], -loss)
    close(stats["mean_prob"], logps.exp()[mask].mean())
    close(gradient(loss, logits).sum(-1), torch.zeros(3, 5))  # logit gradients sum to 0 over the vocabulary


def test_statistics_count_the_tokens_the_model_is_sure_of():
    logps = torch.tensor([[-0.001, -0.02, -3.0, -0.009]])
    _, stats = nll_loss(logps, torch.tensor([[True, True, True, False]]))
    close(stats["tokens"], 3)
    close(stats["confident_share"], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
def test_npo_equals_the_naive_formula_and_its_weight_is_two_sigma(beta):
    logps, ref, mask = batch("logps", "ref")
    loss, stats = npo_loss(logps, ref, mask, beta=beta)
    ratio = sums(logps, mask) - sums(ref, mask)
    close(loss, (2 / beta) * torch.log1p((beta * ratio).exp()).mean())
    weight = 2 * torch.sigmoid(beta * ratio)
    close(gradient(loss, logps), torch.where(mask, weight.unsqueeze(-1) / 3, 0.0))
    close(stats["mean_weight"], weight.mean())
    close(stats["mean_log_ratio"], ratio.mean())


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_npo_starts_at_two_over_beta_log_two_with_weight_one(beta):
    logps, mask = batch("logps")
    loss, stats = npo_loss(logps, logps.detach(), mask, beta=beta)
    close(loss, 2 / beta * math.log(2))
    close(stats["mean_weight"], 1.0)
    close(stats["mean_log_ratio"], 0.0)


def test_npo_minus_its_constant_tends_to_sum_reduced_gradient_ascent():
    logps, ref, mask = batch("logps", "ref")
    ratio = sums(logps - ref, mask)
    errors = []
    for beta in (1e-1, 1e-2, 1e-3):
        loss, _ = npo_loss(logps, ref, mask, beta=beta)
        errors.append((loss - 2 / beta * math.log(2) - ratio.mean()).item())
        close(errors[-1], (beta * ratio.square() / 4).mean(), rtol=0.1)  # Proposition 1 with its leading error term
    close(gradient(loss, logps), torch.where(mask, 1 / 3, 0.0), rtol=1e-2)


@given(st.floats(-300, 300), st.sampled_from([0.05, 0.1, 1.0, 5.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_npo_lies_between_its_hinge_and_the_hinge_plus_a_constant(ratio, beta):
    one = torch.ones(1, 1, dtype=torch.bool)
    logps = torch.tensor([[ratio]], dtype=torch.float64)
    loss, stats = npo_loss(logps, torch.zeros_like(logps), one, beta=beta)
    hinge = max(0.0, 2 * ratio)
    assert hinge - 1e-9 <= loss.item() <= 2 / beta * math.log(2) + hinge + 1e-9
    assert 0 <= stats["mean_weight"].item() <= 2


def test_npo_weight_becomes_a_hinge_for_large_beta():
    one = torch.ones(3, 1, dtype=torch.bool)
    logps = torch.tensor([[0.5], [0.0], [-0.5]], dtype=torch.float64, requires_grad=True)
    loss, _ = npo_loss(logps, torch.zeros_like(logps), one, beta=1e4)
    close(gradient(loss, logps).flatten() * 3, [2.0, 1.0, 0.0])


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 0.0), (4.5, 0.3), (0.7, 3.0)])
def test_simnpo_equals_the_naive_formula_with_the_margin_inside_beta(beta, gamma):
    logps, mask = batch("logps")
    loss, _ = simnpo_loss(logps, mask, beta=beta, gamma=gamma)
    lengths = mask.sum(-1).double()
    margin = -sums(logps, mask) / lengths - gamma
    close(loss, (2 / beta) * torch.log1p((-beta * margin).exp()).mean())
    weight = 2 / lengths * torch.sigmoid(-beta * margin) / 3
    close(gradient(loss, logps), torch.where(mask, weight.unsqueeze(-1), 0.0))


def test_simnpo_of_one_row_is_reference_free_npo_with_beta_over_length():
    logps, mask = batch("logps", lengths=(5,))
    loss, _ = simnpo_loss(logps, mask, beta=2.0)
    rescaled, _ = npo_loss(logps, torch.zeros_like(logps), mask, beta=2.0 / 5)
    close(loss, rescaled / 5)


def test_simnpo_defaults_are_the_published_ones():
    logps, mask = batch("logps")
    close(simnpo_loss(logps, mask)[0], simnpo_loss(logps, mask, beta=2.5, gamma=0.0)[0])


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_kto_weight_is_two_sigma_and_the_idk_rows_only_shift_it(beta):
    logps, ref, mask = batch("logps", "ref")
    idk, idk_ref, idk_mask = batch("idk", "idk_ref", lengths=(2, 4), seed=1)
    loss, stats = kto_loss(logps, ref, mask, idk, idk_ref, idk_mask, beta=beta)
    z = sums(idk - idk_ref, idk_mask).mean()
    ratio = sums(logps - ref, mask)
    close(loss, 1 - (2 / beta) * F.logsigmoid(z - beta * ratio).mean())
    grads = gradient(loss, logps, idk)
    close(grads[0], torch.where(mask, (2 * torch.sigmoid(beta * ratio - z)).unsqueeze(-1) / 3, 0.0))
    assert (grads[1] == 0).all()
    close(stats["z"], z)
    start, _ = kto_loss(ref, ref, mask, idk_ref, idk_ref, idk_mask, beta=beta)
    close(start, 1 + 2 / beta * math.log(2))


WEIGHTED = {
    "wga": (lambda lp, ref, m: wga_loss(lp, m, beta=0.5), lambda p, q: p**0.5),
    "tnpo": (lambda lp, ref, m: tnpo_loss(lp, ref, m), lambda p, q: 2 * p**4 / (p**4 + q**4 + 1e-5)),
    "wtnpo": (
        lambda lp, ref, m: tnpo_loss(lp, ref, m, alpha=1.5),
        lambda p, q: 2 * p**5.5 / (p**4 + q**4 + 1e-5),
    ),
    "satimp": (lambda lp, ref, m: satimp_loss(lp, m), lambda p, q: p**5 * (1 - p)),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_token_weighted_ascent_has_the_naive_value_and_its_weight_as_gradient(name):
    function, formula = WEIGHTED[name]
    logps, ref, mask = batch("logps", "ref")
    loss, stats = function(logps, ref, mask)
    weight = formula(logps.detach().exp(), ref.detach().exp())
    close(loss, (weight * logps)[mask].mean())
    close(gradient(loss, logps), torch.where(mask, weight / mask.sum(), 0.0))
    close(stats["mean_weight"], weight[mask].mean())


def test_weighted_ascent_ignores_a_token_the_model_holds_impossible():
    logps = torch.tensor([[-math.inf, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    close(wga_loss(logps, mask)[0], -math.exp(-1) / 2)


@pytest.mark.parametrize("beta", BETAS)
def test_catnip_equals_the_naive_formula_and_its_closed_form_weight(beta):
    logps, mask = batch("logps")
    loss, stats = catnip_loss(logps, mask, beta=beta)
    p = logps.exp()
    close(loss, torch.log1p((p / (1 - p)) ** beta)[mask].mean())
    weight = beta * p**beta / (p**beta + (1 - p) ** beta)
    close(gradient(loss, logps), torch.where(mask, weight / mask.sum(), 0.0))
    close(stats["mean_weight"], weight[mask].mean())
    assert ((weight > 0) & (weight < beta)).all()


def test_catnip_at_beta_one_has_the_gradient_of_weighted_gradient_ascent():
    logps, mask = batch("logps")
    close(gradient(catnip_loss(logps, mask)[0], logps), gradient(wga_loss(logps, mask)[0], logps))


@pytest.mark.parametrize("beta", BETAS)
def test_static_catnip_is_half_beta_token_npo_and_npo_on_rows_of_one_token(beta):
    logps, ref, mask = batch("logps", "ref")
    static = gradient(catnip_loss(logps, mask, beta=beta, ref_logps=ref)[0], logps)
    close(static, beta / 2 * gradient(tnpo_loss(logps, ref, mask, beta=beta, eps=0.0)[0], logps))
    single, single_ref, one = batch("logps", "ref", lengths=(1, 1, 1))
    expected = beta / 2 * npo_loss(single, single_ref, one, beta=beta)[0]
    close(catnip_loss(single, one, beta=beta, ref_logps=single_ref)[0], expected)


@pytest.mark.parametrize("beta", BETAS)
def test_catnip_at_one_half_is_log_two_with_weight_half_beta(beta):
    logps = torch.full((1, 2), math.log(0.5), dtype=torch.float64, requires_grad=True)
    loss, _ = catnip_loss(logps, torch.ones(1, 2, dtype=torch.bool), beta=beta)
    close(loss, math.log(2))
    close(gradient(loss, logps), [[beta / 4, beta / 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("beta", BETAS)
def test_catnip_of_a_token_with_probability_one_is_finite_with_gradient_beta_over_n(beta, dtype):
    logps = torch.tensor([[0.0, -1.0]], dtype=dtype, requires_grad=True)
    loss, stats = catnip_loss(logps, torch.ones(1, 2, dtype=torch.bool), beta=beta)
    assert loss.isfinite()
    assert gradient(loss, logps)[0, 0].item() == pytest.approx(beta / 2, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    close(stats["saturated_share"], 0.5)
    assert all(value.isfinite() for value in stats.values())


def test_catnip_is_exact_for_probabilities_next_to_one_and_next_to_zero():
    gaps = [1e-3, 1e-8, 1e-12, 1e-15]
    logps = torch.tensor([[-gap for gap in gaps] + [-50.0, -700.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = catnip_loss(logps, torch.ones_like(logps, dtype=torch.bool))
    expected = [math.log1p(math.exp(-gap) / -math.expm1(-gap)) for gap in gaps]
    close(loss, (sum(expected) + math.exp(-50)) / 6, rtol=1e-12)
    close(gradient(loss, logps), logps.exp() / 6, rtol=1e-12)


@pytest.mark.parametrize("x", [-1e-300, -1e-16, -1e-8, -0.1, -0.69, -0.7, -1.0, -40.0, -800.0])
def test_log1mexp_is_exact_on_both_branches(x):
    # -expm1 of a double is exact to rounding; log1p is the better outer function once e^x is small.
    expected = math.log(-math.expm1(x)) if x > -0.6931 else math.log1p(-math.exp(x))
    close(log1mexp(torch.tensor(x, dtype=torch.float64)), expected, rtol=1e-15, atol=0)


def test_retain_kl_is_kl_of_reference_to_policy_over_all_positions_or_the_masked_ones():
    logits, ref_logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    logits.requires_grad_()
    policy, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    loss, _ = retain_kl(policy, ref)
    flat = policy.flatten(0, 1), ref.flatten(0, 1)
    close(loss, F.kl_div(*flat, log_target=True, reduction="batchmean"))
    close(gradient(loss, logits), (policy.exp() - ref.exp()) / 12)
    mask = torch.tensor([[True, False, True, False]]).expand(3, 4)
    close(retain_kl(policy, ref, mask)[0], (ref.exp() * (ref - policy)).sum(-1)[mask].mean())
    close(retain_kl(ref, ref)[0], 0.0)


def test_retain_kl_ignores_garbage_under_the_mask_and_tokens_the_reference_excludes():
    policy, ref = torch.randn(2, 1, 2, 4, dtype=torch.float64).log_softmax(-1)
    mask = torch.tensor([[True, False]])
    expected = (ref[0, 0].exp() * (ref[0, 0] - policy[0, 0])).sum()
    dirty = policy.clone()
    dirty[0, 1] = math.nan
    dirty.requires_grad_()
    loss, _ = retain_kl(dirty, ref, mask)
    close(loss, expected)
    grad = gradient(loss, dirty)
    assert (grad[0, 1] == 0).all()
    excluded = ref.clone()
    excluded[..., 0] = -math.inf
    close(retain_kl(policy, excluded, mask)[0], (ref.exp() * (ref - policy))[0, 0, 1:].sum())
    leaf = policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: retain_kl(x, ref, mask)[0], leaf)
    with pytest.raises(ValueError, match="False everywhere"):
        retain_kl(policy, ref, torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected"):
        retain_kl(policy, ref[:, :1])


def test_rmu_is_the_mean_over_rows_of_token_means_and_ignores_padding():
    hidden, target = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3, [False] * 4])
    rows = [(hidden[i][mask[i]] - target[i][mask[i]]).square().mean() for i in (0, 1)]
    dirty = torch.where(mask.unsqueeze(-1), hidden, math.nan).requires_grad_()
    loss, stats = rmu_loss(dirty, target, mask)
    close(loss, sum(rows) / 2)
    assert (gradient(loss, dirty)[~mask] == 0).all()
    close(stats["mean_norm"], hidden[mask].norm(dim=-1).mean())
    leaf = hidden.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rmu_loss(x, target, mask)[0], leaf)
    with pytest.raises(ValueError, match="broadcasts to hidden"):
        rmu_loss(hidden, torch.zeros(4), mask)


def test_rmu_control_vector_is_non_negative_has_the_asked_length_and_follows_its_generator():
    draws = [rmu_control_vector(64, scale=6.5, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    assert (draws[0] >= 0).all()
    close(draws[0].norm(), 6.5, rtol=1e-6)


def _quadratics(seed=0):
    """J and three l_i, quadratic in 4 parameters, with gradients at a point."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    return theta, lambda x: 0.5 * (x - centres[0]).square().sum(), theta - centres[0], theta - centres[1:]


def test_u2a_scores_predict_how_one_descent_step_on_a_sample_changes_the_alignment_loss():
    theta, alignment, gradient_j, gradients = _quadratics()
    scores = u2a_scores(gradient_j, gradients)
    step = 1e-6
    for score, sample in zip(scores, gradients, strict=True):
        close((alignment(theta - step * sample) - alignment(theta)) / step, -score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sign", "better"), [("descent", True), ("released", False)])
def test_u2a_descent_sign_lowers_the_alignment_loss_and_the_released_one_raises_it(sign, better):
    theta, alignment, gradient_j, gradients = _quadratics()

    def after(weights):
        return alignment(theta - 1e-3 * weights @ gradients)

    weights = torch.ones(3, dtype=torch.float64)
    updated = u2a_update_weights(weights, u2a_scores(gradient_j, gradients), eta=0.1, sign=sign)
    assert (after(updated) < after(weights)) == better


@pytest.mark.parametrize("sign", ["descent", "released"])
def test_u2a_update_keeps_sum_zeros_and_proportions(sign):
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    scores = torch.tensor([3.0, 9.0, -2.0, 0.5], dtype=torch.float64)
    updated = u2a_update_weights(weights, scores, eta=0.3, sign=sign)
    close(updated.sum(), 3.0)
    assert updated[1] == 0
    rescaled = weights * 3 / weights.sum()
    close(u2a_update_weights(weights, scores, eta=0.0, sign=sign), rescaled)
    close(u2a_update_weights(weights, torch.full_like(scores, 7.0), eta=2.0, sign=sign), rescaled)
    extreme = u2a_update_weights(weights, scores, eta=1e6, sign=sign)
    close(extreme, [3.0, 0, 0, 0] if sign == "descent" else [0, 0, 3.0, 0])


def test_u2a_rejects_nan_scores_and_unusable_weights():
    with pytest.raises(ValueError, match=r"samples \[1\] are NaN"):
        u2a_scores(torch.ones(2), torch.tensor([[1.0, 1.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="at least one > 0"):
        u2a_update_weights(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="sign is 'up'"):
        u2a_update_weights(torch.ones(2), torch.ones(2), sign="up")
    with pytest.raises(ValueError, match="scores has shape"):
        u2a_update_weights(torch.ones(2), torch.ones(3))
