"""RL with verifiable rewards: naive references, closed-form gradients, identities of the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_support import batch, close, gradient

from negpo.objectives import (
    clipped_policy_loss,
    group_advantages,
    nft_loss,
    ngrpo_advantages,
    nll_loss,
    raft_advantages,
    reinforce_rej_advantages,
    resrl_token_weights,
    signed_advantages,
    topr_loss,
)

LENGTHS = (6, 3, 1, 4)
SIGNS = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


def off_policy(spread=1.5):
    """New log-probs around old ones, far enough apart to hit both clips and the dual clip."""
    old, mask = batch("old", lengths=LENGTHS)
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise[1, 0] = 1.6 / spread  # ratio 5 on a negative token
    return (old.detach() + spread * noise).requires_grad_(), old.detach(), mask


def on_policy():
    old, mask = batch("old", lengths=LENGTHS)
    return old, old.detach(), mask


def naive_clipped(new, old, advantages, mask, low, high, dual):
    """The definition, token by token, with the closed-form live mask for the gradient."""
    values, grads = torch.zeros_like(new), torch.zeros_like(new)
    for b, t in mask.nonzero().tolist():
        a, rho = advantages[b].item(), math.exp(new[b, t].item() - old[b, t].item())
        value = max(-a * rho, -a * min(max(rho, 1 - low), 1 + high))
        live = rho <= 1 + high if a >= 0 else rho >= 1 - low
        if a < 0 and dual is not None:
            value, live = min(value, -a * dual), live and rho <= dual
        values[b, t], grads[b, t] = value, -a * rho * live
    return values.detach(), grads.detach()


@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.16, 0.24, None), (0.2, 0.2, 3.0)])
def test_clipped_loss_equals_the_token_loop_in_every_reduction(low, high, dual):
    new, old, mask = off_policy()
    advantages = torch.tensor([0.7, -1.3, 0.0, -0.4], dtype=torch.float64)
    values, grads = naive_clipped(new, old, advantages, mask, low, high, dual)
    lengths = mask.sum(-1, keepdim=True).double()
    scales = {
        "token_mean": torch.ones_like(lengths) / mask.sum(),
        "sequence_mean": 1 / (4 * lengths),
        "constant": torch.ones_like(lengths) / 50,
    }
    for reduction, scale in scales.items():
        loss, stats = clipped_policy_loss(
            new,
            old,
            advantages,
            mask,
            clip_low=low,
            clip_high=high,
            dual_clip=dual,
            reduction=reduction,
            length=50 if reduction == "constant" else None,
        )
        close(loss, (values * scale).sum())
        close(gradient(loss, new), grads * scale)
    assert stats["clip_fraction"] > 0
    close(stats["mean_weight"], grads.abs()[mask].mean())
    close(stats["positive_tokens"], 6)
    close(stats["negative_tokens"], 7)
    ratio = (new - old).exp().detach()
    close(stats["negative_mean_ratio"], ratio[[1, 3]][mask[[1, 3]]].mean())
    close(stats["positive_mean_logp"], new[0][mask[0]].mean())


def test_per_token_advantages_equal_per_sequence_ones_when_constant_along_the_row():
    new, old, mask = off_policy()
    wide = SIGNS.unsqueeze(-1).expand(mask.shape)
    close(clipped_policy_loss(new, old, wide, mask)[0], clipped_policy_loss(new, old, SIGNS, mask)[0])
    dirty = torch.where(mask, wide, math.nan)
    close(clipped_policy_loss(new, old, dirty, mask)[0], clipped_policy_loss(new, old, SIGNS, mask)[0])
    with pytest.raises(ValueError, match="advantages has shape"):
        clipped_policy_loss(new, old, wide[:, :-1], mask)


def test_dual_clip_touches_only_negative_tokens_whose_ratio_exceeds_it():
    new, old, mask = off_policy()
    single, dual = (gradient(clipped_policy_loss(new, old, SIGNS, mask, dual_clip=c)[0], new) for c in (None, 3.0))
    beyond = mask & (SIGNS < 0).unsqueeze(-1) & ((new - old).exp() > 3)
    assert beyond.any()
    assert (dual[beyond] == 0).all()
    assert (single[beyond] != 0).all()
    close(dual[~beyond], single[~beyond])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [-2000.0, 2000.0])
def test_ratios_that_would_overflow_give_finite_losses_and_gradients(log_ratio, dtype):
    new = torch.full((2, 1), min(log_ratio, 0.0), dtype=dtype, requires_grad=True)
    old, mask = torch.full_like(new, min(-log_ratio, 0.0)), torch.ones(2, 1, dtype=torch.bool)
    loss, stats = clipped_policy_loss(new, old, torch.tensor([1.0, -1.0], dtype=dtype), mask)
    assert loss.isfinite()
    assert gradient(loss, new).isfinite().all()
    assert all(value.isfinite() for value in stats.values())


@pytest.mark.parametrize(("weights", "value"), [((1.0, 0.0), -1.0), ((0.0, 1.0), 1.0)])
def test_on_policy_psr_is_minus_one_and_nsr_plus_one_on_the_rows_they_keep(weights, value):
    new, old, mask = on_policy()
    rewards = (SIGNS > 0).double()
    advantages = signed_advantages(rewards, positive_weight=weights[0], negative_weight=weights[1])
    kept = mask & (advantages != 0).unsqueeze(-1)
    close(clipped_policy_loss(new, old, advantages, kept)[0], value)


def test_weighted_reinforce_at_one_is_reinforce_and_at_zero_is_nsr_times_the_share_of_negative_tokens():
    new, old, mask = off_policy()
    rewards = (SIGNS > 0).double()
    one = signed_advantages(rewards, positive_weight=1.0, negative_weight=1.0)
    close(one, SIGNS)
    zero = signed_advantages(rewards, positive_weight=0.0, negative_weight=1.0)
    kept = mask & (SIGNS < 0).unsqueeze(-1)
    whole = gradient(clipped_policy_loss(new, old, zero, mask)[0], new)
    subset = gradient(clipped_policy_loss(new, old, zero, kept)[0], new)
    close(whole, subset * kept.sum() / mask.sum())


def test_scaling_the_positive_part_of_the_loss_is_scaling_the_advantage():
    new, old, mask = off_policy()
    rewards = (SIGNS > 0).double()
    weighted, _ = clipped_policy_loss(new, old, signed_advantages(rewards), mask)
    parts = [
        clipped_policy_loss(new, old, SIGNS, mask & rows.unsqueeze(-1))[0] * (mask & rows.unsqueeze(-1)).sum()
        for rows in (SIGNS > 0, SIGNS < 0)
    ]
    close(weighted, (0.1 * parts[0] + parts[1]) / mask.sum())


def test_only_a_reward_of_one_is_correct_and_an_unscored_row_has_no_advantage():
    rewards = torch.tensor([1.0, 0.0, -1.0, 0.5, math.nan], dtype=torch.float64)
    close(signed_advantages(rewards), [0.1, -1.0, -1.0, -1.0, 0.0])
    assert signed_advantages(torch.tensor([1, 0])).dtype == torch.float32
    with pytest.raises(ValueError, match="rewards has shape"):
        signed_advantages(rewards.unsqueeze(0))


@given(
    rewards=st.lists(st.lists(st.floats(-2, 1), min_size=4, max_size=4), min_size=1, max_size=3),
    ddof=st.integers(0, 1),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_group_advantages_equal_torch_mean_and_std(rewards, ddof):
    values = torch.tensor(rewards, dtype=torch.float64)
    centred = values - values.mean(-1, keepdim=True)
    expected = centred / (values.std(-1, correction=ddof, keepdim=True) + 1e-6)
    close(group_advantages(values, ddof=ddof), expected, rtol=1e-6, atol=1e-8)
    close(group_advantages(values, scale=False), centred, atol=1e-14)
    close(ngrpo_advantages(values, n_virtual=0), group_advantages(values))


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_whose_rewards_agree_has_exactly_zero_advantage(value, dtype):
    rewards = torch.full((2, 7), value, dtype=dtype)
    assert (group_advantages(rewards) == 0).all()
    assert (ngrpo_advantages(rewards, max_reward=value) == 0).all()
    assert (reinforce_rej_advantages(rewards) == 0).all()
    assert group_advantages(rewards).dtype == dtype


def test_unscored_responses_get_zero_and_leave_the_statistics_of_their_group():
    rewards = torch.tensor([[1.0, math.nan, 0.0, 0.0], [math.nan] * 4, [1.0, math.nan, math.nan, math.nan]]).double()
    scored = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for function in (group_advantages, ngrpo_advantages, reinforce_rej_advantages, raft_advantages):
        advantages = function(rewards)
        close(advantages[0, [0, 2, 3]], function(scored)[0])
        assert (advantages[rewards.isnan()] == 0).all()
    assert group_advantages(rewards)[2, 0] == 0


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("virtual", [1, 2])
def test_ngrpo_has_its_closed_form_for_every_count_of_correct_answers(size, virtual):
    n = size + virtual
    for correct in range(size + 1):
        rewards = (torch.arange(size) < correct).double().unsqueeze(0)
        advantages = ngrpo_advantages(rewards, n_virtual=virtual, eps=0.0)[0]
        odds = math.inf if correct == size else (correct + virtual) / (size - correct)
        expected = [math.sqrt((n - 1) / n / odds)] * correct + [-math.sqrt((n - 1) / n * odds)] * (size - correct)
        close(advantages, expected)
        assert advantages.sum() <= 0
    close(ngrpo_advantages(torch.zeros(1, size, dtype=torch.float64), eps=0.0)[0, 0], -1 / math.sqrt(size + 1))


def test_groups_of_one_keep_their_reward_without_a_virtual_sample():
    rewards = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    close(ngrpo_advantages(rewards, eps=0.0), rewards)
    close(group_advantages(rewards, eps=0.0), rewards)
    close(group_advantages(rewards, scale=False), rewards)


def test_advantages_reject_flat_rewards_and_negative_counts():
    with pytest.raises(ValueError, match=r"expected \(P, G\)"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match="n_virtual is -1"):
        ngrpo_advantages(torch.zeros(1, 4), n_virtual=-1)


def test_raft_plus_plus_has_the_gradient_of_raft_on_policy():
    new, old, mask = on_policy()
    advantages = raft_advantages(SIGNS.view(1, -1)).flatten()
    plus_plus = gradient(clipped_policy_loss(new, old, advantages, mask, dual_clip=3.0)[0], new)
    kept = mask & (SIGNS > 0).unsqueeze(-1)
    close(plus_plus, gradient(nll_loss(new, kept)[0], new) * kept.sum() / mask.sum())


def test_reinforce_rej_with_zero_one_rewards_in_mixed_groups_is_raft():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert torch.equal(reinforce_rej_advantages(rewards), raft_advantages(rewards))
    signed = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    close(reinforce_rej_advantages(signed), [[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])


RATE = torch.tensor([0.5, 0.25, 0.25, 0.75], dtype=torch.float64)
OMEGA = {"one_minus_rate": lambda r: 1 - r, "sqrt_odds": lambda r: ((1 - r) / r).sqrt(), "none": torch.ones_like}


@pytest.mark.parametrize("weighting", OMEGA)
@pytest.mark.parametrize(("eps", "negative_weight"), [(1.0, 1.0), (0.5, 1.0), (0.1, 0.5), (1.0, 0.0)])
def test_nft_equals_the_naive_formula_and_its_closed_form_gradient(weighting, eps, negative_weight):
    new, old, mask = off_policy(spread=0.8)
    correct = SIGNS > 0
    loss, stats = nft_loss(
        new, old, mask, correct, RATE, eps=eps, negative_weight=negative_weight, weighting=weighting, length=10
    )
    ratio, r = (new - old).exp().detach(), RATE.unsqueeze(-1)
    v = ((1 - r * ratio) / (1 - r)).clamp(min=eps)
    value = torch.where(correct.unsqueeze(-1), -ratio.log(), -negative_weight * v.log())
    weight = torch.where(correct.unsqueeze(-1), -1.0, negative_weight * r * ratio / ((1 - r) * v))
    omega = OMEGA[weighting](RATE).unsqueeze(-1) / 10
    close(loss, (omega * value)[mask].sum())
    close(gradient(loss, new), torch.where(mask, omega * weight, 0.0))
    close(stats["mean_weight"], (10 * omega * weight).abs()[mask].mean())


@pytest.mark.parametrize(("weighting", "scale"), [("one_minus_rate", False), ("sqrt_odds", True)])
def test_nft_on_policy_is_zero_with_the_gradient_of_dr_grpo_or_population_grpo(weighting, scale):
    new, old, mask = on_policy()
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    advantages = group_advantages(rewards, ddof=0, eps=0.0, scale=scale)[0]
    loss, _ = nft_loss(new, old, mask, rewards[0], torch.full((4,), 0.5, dtype=torch.float64), weighting=weighting)
    close(loss, 0.0)
    constant, _ = clipped_policy_loss(new, old, advantages, mask, reduction="constant", length=1000)
    close(gradient(loss, new), gradient(constant, new))


def test_nft_has_no_gradient_where_the_log_ratio_exceeds_ten_and_stays_finite():
    new = torch.tensor([[11.0], [11.0], [9.0]], requires_grad=True)
    args = (torch.zeros_like(new), torch.ones(3, 1, dtype=torch.bool), torch.tensor([True, False, False]))
    loss, _ = nft_loss(new, *args, torch.tensor([0.5, 0.5, 0.5]))
    grads = gradient(loss, new).flatten()
    assert loss.isfinite()
    assert grads[0] == grads[1] == 0
    assert grads[2] > 0


def test_nft_accepts_signed_labels_and_clamps_the_rate_of_uniform_groups():
    new, old, mask = off_policy(spread=0.3)
    close(nft_loss(new, old, mask, SIGNS, RATE)[0], nft_loss(new, old, mask, SIGNS > 0, RATE)[0])
    extreme = torch.tensor([1.0, 0.0, 0.0, 1.0])
    close(
        nft_loss(new, old, mask, SIGNS > 0, extreme)[0],
        nft_loss(new, old, mask, SIGNS > 0, extreme.double().clamp(0.02, 0.98))[0],
    )


def test_topr_tapers_negatives_by_the_ratio_of_the_whole_sequence_and_never_positives():
    new, old, mask = off_policy(spread=0.4)
    loss, stats = topr_loss(new, old, mask, SIGNS)
    log_ratio = torch.where(mask, new - old, 0.0).sum(-1).detach()
    taper = torch.where(SIGNS > 0, 1.0, log_ratio.exp().clamp(max=1.0))
    weight = (-taper * SIGNS / mask.sum(-1) / 4).unsqueeze(-1)
    close(loss, (weight * torch.where(mask, new, 0.0)).sum())
    close(gradient(loss, new), torch.where(mask, weight, 0.0))
    close(stats["mean_weight"], taper.mean())


def test_topr_on_policy_is_reinforce_and_far_off_policy_forgets_the_negatives():
    new, old, mask = on_policy()
    policy, _ = clipped_policy_loss(new, old, SIGNS, mask, reduction="sequence_mean")
    close(gradient(topr_loss(new, old, mask, SIGNS)[0], new), gradient(policy, new))
    grads = gradient(topr_loss(new, old + 1000.0, mask, SIGNS)[0], new)
    assert (grads[SIGNS < 0] == 0).all()
    assert (grads[SIGNS > 0][mask[SIGNS > 0]] < 0).all()


def hidden_batch(width=12, seed=0):
    """Two prompts with two answers each; tokens of 7, 5, 6 and 4 states."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(8) < torch.tensor([7, 5, 6, 4]).unsqueeze(-1)
    hidden = torch.randn(4, 8, width, generator=generator, dtype=torch.float64)
    return hidden, mask, torch.tensor([True, False, True, False]), torch.tensor([3, 3, 9, 9])


def test_resrl_weights_equal_a_naive_projection_on_the_positive_span():
    hidden, mask, positive, groups = hidden_batch()
    weights = resrl_token_weights(hidden, mask, positive, groups, rank=3)
    norm = torch.nn.functional.layer_norm(hidden, (12,))
    for right, wrong in ((0, 1), (2, 3)):
        x = norm[right][mask[right]]
        basis = torch.linalg.svd(x - x.mean(0)).Vh[:3]
        centred = norm[wrong][mask[wrong]] - x.mean(0)
        distance = (centred - centred @ basis.T @ basis).square().mean(-1)
        low, high = distance.quantile(0.2), distance.quantile(0.8)
        close(weights[wrong][mask[wrong]], 0.1 + 0.9 * ((distance - low) / (high - low)).clamp(0, 1))
        assert (weights[right] == 1).all()
    assert (weights[~mask] == 1).all()
    assert ((weights >= 0.1) & (weights <= 1)).all()
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("positive", "changed"),
    [([False] * 4, False), ([True] * 4, False), ([True, False, False, False], True)],
)
def test_resrl_needs_both_signs_in_a_group(positive, changed):
    hidden, mask, _, groups = hidden_batch()
    weights = resrl_token_weights(hidden, mask, torch.tensor(positive), groups)
    assert (weights[:2] != 1).any() == changed
    assert (weights[2:] == 1).all()


def test_resrl_needs_four_positive_tokens():
    hidden, mask, positive, groups = hidden_batch()
    mask[0, 3:] = False
    weights = resrl_token_weights(hidden, mask, positive, groups)
    assert (weights[1] == 1).all()
    assert (weights[3] != 1).any()


def test_resrl_gives_equidistant_negatives_the_middle_weight():
    hidden, mask, positive, groups = hidden_batch()
    hidden[1] = hidden[1, 0]
    weights = resrl_token_weights(hidden, mask, positive, groups)
    close(weights[1][mask[1]], [0.55] * 5)


def test_resrl_weights_ignore_padding_scale_and_offset_of_a_state_and_other_groups():
    hidden, mask, positive, groups = hidden_batch()
    expected = resrl_token_weights(hidden, mask, positive, groups, rank=3)
    dirty = torch.where(mask.unsqueeze(-1), hidden, math.nan)
    close(resrl_token_weights(dirty, mask, positive, groups, rank=3), expected)
    moved = hidden.clone()
    moved[1, 2] = moved[1, 2] * 3 + 5
    close(resrl_token_weights(moved, mask, positive, groups, rank=3), expected, rtol=0, atol=1e-3)
    order = torch.tensor([3, 0, 2, 1])
    shuffled = resrl_token_weights(hidden[order], mask[order], positive[order], groups[order], rank=3)
    close(shuffled, expected[order])


def test_resrl_leaves_only_what_lies_outside_the_positive_span_when_the_rank_covers_it():
    hidden, mask, positive, groups = hidden_batch(width=32)
    hidden[1, 1] = hidden[0, 4]
    weights = resrl_token_weights(hidden, mask, positive, groups, rank=64)
    close(weights[1, 1], 0.1)


def test_resrl_repeated_positive_tokens_do_not_add_arbitrary_directions():
    hidden, mask, positive, groups = hidden_batch(width=32)
    twice = torch.cat([hidden, hidden], dim=1)
    double_mask = torch.cat([mask, mask & positive.unsqueeze(-1)], dim=1)  # positives twice, negatives once
    expected = resrl_token_weights(hidden, mask, positive, groups)
    close(resrl_token_weights(twice, double_mask, positive, groups)[:, :8], expected, rtol=1e-7)


def test_resrl_thins_very_many_positive_tokens_and_gives_the_same_numbers_twice():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5000, 4, generator=generator)
    mask = torch.ones(2, 5000, dtype=torch.bool)
    runs = [resrl_token_weights(hidden, mask, torch.tensor([1, 0]), torch.tensor([0, 0]), rank=2) for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0].dtype == torch.float32
    assert (runs[0][1] < 1).any()


@pytest.mark.parametrize(
    "changes", [{"rank": 0}, {"quantiles": (0.8, 0.2)}, {"min_weight": 1.5}], ids=["rank", "quantiles", "min_weight"]
)
def test_resrl_rejects_impossible_settings(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        resrl_token_weights(*hidden_batch(), **changes)


def test_resrl_weight_one_is_grpo_with_dual_clip():
    new, old, mask = off_policy()
    hidden = torch.randn(*mask.shape, 5, dtype=torch.float64)
    weights = resrl_token_weights(hidden, mask, torch.zeros(4), torch.zeros(4))
    weighted, _ = clipped_policy_loss(new, old, SIGNS.unsqueeze(-1) * weights, mask, dual_clip=3.0)
    close(weighted, clipped_policy_loss(new, old, SIGNS, mask, dual_clip=3.0)[0])
