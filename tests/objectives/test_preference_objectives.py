"""Objectives on rejected answers and lists: naive references, closed-form gradients, identities of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from objectives_support import batch, close, gradient

from negpo.objectives import (
    aft_loss,
    d2o_loss,
    dpo_loss,
    first_pit,
    lipo_loss,
    n_pair_loss,
    npo_loss,
    position_weighted_mean,
    redi_loss,
    step_dpo_loss,
)


def pairs():
    """(chosen, ref, mask), (rejected, ref, mask) of three pairs."""
    return batch("chosen", "ref"), batch("rejected", "ref", lengths=(2, 5, 4), seed=1)


def dpo(chosen, rejected, **settings):
    (lw, rw, mw), (ll, rl, ml) = chosen, rejected
    return dpo_loss(lw, mw, ll, ml, rw, rl, **settings)


def ratios(side):
    logps, ref, mask = side
    return torch.stack([(row[m] - r[m]).sum() for row, r, m in zip(logps, ref, mask, strict=True)])


@pytest.mark.parametrize(("beta", "scale"), [(0.1, 1.0), (0.1, 20.0), (1.0, 2.0)])
def test_dpo_equals_the_naive_formula_and_pushes_both_sides_equally(beta, scale):
    chosen, rejected = pairs()
    loss, stats = dpo(chosen, rejected, beta=beta, scale=scale)
    difference = ratios(chosen) - ratios(rejected)
    close(loss, -scale * F.logsigmoid(beta * difference).mean())
    weight = scale * beta * torch.sigmoid(-beta * difference) / 3
    grads = gradient(loss, chosen[0], rejected[0])
    close(grads[0], torch.where(chosen[2], -weight.unsqueeze(-1), 0.0))
    close(grads[1], torch.where(rejected[2], weight.unsqueeze(-1), 0.0))
    close(stats["mean_weight"], 3 * weight.mean())
    close(stats["accuracy"], (difference > 0).double().mean())


def test_idk_dpo_starts_at_two_over_beta_log_two():
    (_, ref, mask), (_, ref_l, mask_l) = pairs()
    loss, _ = dpo_loss(ref, mask, ref_l, mask_l, ref, ref_l, beta=0.1, scale=20.0)
    close(loss, 20 * math.log(2))


def test_dpo_with_a_winner_that_never_moves_is_npo():
    (_, ref, mask), rejected = pairs()
    loss, _ = dpo((ref, ref, mask), rejected, beta=0.1, scale=20.0)
    close(loss, npo_loss(*rejected, beta=0.1)[0])


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
def test_redi_equals_the_naive_formula_with_a_gradient_that_ignores_the_log_probs(alpha):
    (chosen, _, chosen_mask), (rejected, _, rejected_mask) = pairs()
    loss, stats = redi_loss(chosen, chosen_mask, rejected, rejected_mask, alpha=alpha)
    nll = [
        -torch.stack([row[m].mean() for row, m in zip(x, mask, strict=True)]).mean()
        for x, mask in ((chosen, chosen_mask), (rejected, rejected_mask))
    ]
    close(loss, nll[0] - alpha * nll[1])
    close(stats["chosen_nll"], nll[0])
    grads = gradient(loss, chosen, rejected)
    close(grads[0], chosen_mask / (-3.0 * chosen_mask.sum(-1, keepdim=True).double()))
    close(grads[1], rejected_mask / (3.0 * rejected_mask.sum(-1, keepdim=True).double()) * alpha)


def test_doubling_a_rejected_answer_halves_its_gradient_per_token():
    chosen, chosen_mask = batch("chosen", lengths=(3,))
    grads = []
    for length in (4, 8):
        rejected, mask = batch("rejected", lengths=(length,))
        grads.append(gradient(redi_loss(chosen, chosen_mask, rejected, mask)[0], rejected)[0, 0])
    close(grads[0], 2 * grads[1])


def test_symmetric_redi_has_the_gradient_of_simpo_in_the_limit_of_small_beta():
    (chosen, _, chosen_mask), (rejected, _, rejected_mask) = pairs()
    redi = gradient(redi_loss(chosen, chosen_mask, rejected, rejected_mask, alpha=1.0)[0], chosen, rejected)
    means = [torch.where(m, x, 0.0).sum(-1) / m.sum(-1) for x, m in ((chosen, chosen_mask), (rejected, rejected_mask))]
    beta = 1e-5
    simpo = gradient(-F.logsigmoid(beta * (means[0] - means[1])).mean() * 2 / beta, chosen, rejected)
    close(simpo[0], redi[0], rtol=1e-4)
    close(simpo[1], redi[1], rtol=1e-4)


def d2o_batch(count=3):
    samples = batch("samples", "ref", lengths=tuple(1 + i % 4 for i in range(2 * count)), shape=(2, count))
    return samples, batch("rejected", "ref", lengths=(5, 2), seed=2)


def d2o(samples, rejected, **settings):
    (s, rs, ms), (lo, rl, ml) = samples, rejected
    return d2o_loss(s, ms, lo, ml, rs, rl, **settings)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.1), (0.3, 0.7)])
def test_d2o_equals_the_naive_formula_and_its_closed_form_gradient(alpha, beta):
    samples, rejected = d2o_batch()
    loss, stats = d2o(samples, rejected, alpha=alpha, beta=beta)
    s = torch.where(samples[2], samples[0] - samples[1], 0.0).sum(-1)
    u = beta / 3 * s.sum(-1) - alpha * ratios(rejected)
    close(loss, -F.logsigmoid(u).mean())
    c = torch.sigmoid(-u).view(2, 1) / 2
    grads = gradient(loss, samples[0], rejected[0])
    close(grads[0], torch.where(samples[2], -c.unsqueeze(-1) * beta / 3, 0.0))
    close(grads[1], torch.where(rejected[2], c * alpha, 0.0))
    close(stats["mean_weight"], torch.sigmoid(-u).mean())


def test_d2o_starts_at_log_two_and_with_one_sample_is_dpo():
    samples, rejected = d2o_batch(count=1)
    start, _ = d2o((samples[1], *samples[1:]), (rejected[1], *rejected[1:]))
    close(start, math.log(2))
    winner = tuple(x[:, 0] for x in samples)
    close(d2o(samples, rejected, alpha=0.2, beta=0.2)[0], dpo(winner, rejected, beta=0.2)[0])


def test_d2o_without_samples_weight_is_npo_without_its_factor():
    samples, rejected = d2o_batch()
    close(d2o(samples, rejected, alpha=0.3, beta=0.0)[0], 0.15 * npo_loss(*rejected, beta=0.3)[0])


def test_d2o_is_bounded_by_the_mean_of_the_instance_level_losses():
    samples, rejected = d2o_batch()
    loss, _ = d2o(samples, rejected, alpha=0.5, beta=0.5)
    single = [dpo(tuple(x[:, i] for x in samples), rejected, beta=0.5)[0] for i in range(3)]
    assert loss <= sum(single) / 3


def test_d2o_averages_over_the_samples_that_exist():
    (s, rs, ms), rejected = d2o_batch()
    two = d2o((s[:, :2], rs[:, :2], ms[:, :2]), rejected)
    dropped = d2o((s, rs, ms.index_fill(1, torch.tensor([2]), False)), rejected)
    close(dropped[0], two[0])


def list_batch(lengths=(3, 1, 4, 2, 2, 5), shape=(2, 3)):
    return batch("logps", "ref", lengths=lengths, shape=shape)


def test_lipo_equals_a_double_loop_over_the_pairs():
    logps, ref, mask = list_batch()
    psi = torch.tensor([[0.9, 0.1, 0.4], [0.2, 0.2, 0.7]], dtype=torch.float64)
    loss, stats = lipo_loss(logps, ref, mask, psi, beta=0.3)
    scores = 0.3 * torch.where(mask, logps - ref, 0.0).sum(-1)
    total, count = 0.0, 0
    for s, labels in zip(scores, psi, strict=True):
        rank = 1 + (s.unsqueeze(0) > s.unsqueeze(1)).sum(-1)
        for i in range(3):
            for j in range(3):
                if labels[i] > labels[j]:
                    gain = abs(2 ** labels[i] - 2 ** labels[j])
                    delta = gain * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                    total, count = total + delta * torch.log1p(torch.exp(s[j] - s[i])), count + 1
    close(loss, total / 2)
    assert loss >= 0
    close(stats["pairs"], count)


def test_lipo_on_two_responses_is_dpo_times_the_cost_of_the_swap():
    logps, ref, mask = list_batch(lengths=(3, 5), shape=(1, 2))
    psi = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    delta = abs(1 / math.log(2) - 1 / math.log(3))
    sides = [tuple(x[:, i] for x in (logps, ref, mask)) for i in range(2)]
    close(lipo_loss(logps, ref, mask, psi, beta=0.2)[0], delta * dpo(*sides, beta=0.2)[0])


def test_lipo_leaves_out_a_response_without_tokens_and_without_a_label():
    logps, ref, mask = list_batch()
    psi = torch.tensor([[0.9, 0.1, math.nan], [0.2, 0.4, math.nan]], dtype=torch.float64)
    loss, _ = lipo_loss(logps, ref, mask.index_fill(1, torch.tensor([2]), False), psi)
    close(loss, lipo_loss(logps[:, :2], ref[:, :2], mask[:, :2], psi[:, :2])[0])
    assert gradient(loss, logps).isfinite().all()


def test_lipo_needs_one_pair_with_different_labels():
    logps, ref, mask = list_batch()
    with pytest.raises(ValueError, match="orders no two responses"):
        lipo_loss(logps, ref, mask, torch.full((2, 3), 0.5))


def test_aft_with_one_positive_and_one_negative_is_logistic_in_the_mean_log_probs():
    logps, mask = batch("logps", lengths=(3, 5), shape=(1, 2))
    positive = torch.tensor([[True, False]])
    loss, _ = aft_loss(logps, mask, positive, variant="plain", sft_weight=0.0)
    score = torch.where(mask, logps, 0.0).sum(-1) / mask.sum(-1)
    close(loss, -F.logsigmoid(score[0, 0] - score[0, 1]))


def test_detached_aft_gives_negatives_no_gradient_and_boundary_aft_pulls_back_those_far_below():
    logps = torch.tensor([[[-1.0], [-9.0]]], dtype=torch.float64, requires_grad=True)
    mask, positive = torch.ones(1, 2, 1, dtype=torch.bool), torch.tensor([[True, False]])
    grads = {
        variant: gradient(aft_loss(logps, mask, positive, variant=variant)[0], logps).flatten()
        for variant in ("plain", "detached", "boundary")
    }
    assert grads["plain"][1] > 0
    assert grads["detached"][1] == 0
    assert grads["boundary"][1] < 0


def test_aft_adds_the_likelihood_of_the_positives():
    logps, mask = batch("logps", lengths=(3, 5, 2, 4), shape=(2, 2))
    positive = torch.tensor([[True, False], [True, True]])
    loss, stats = aft_loss(logps, mask, positive, sft_weight=0.5)
    close(stats["sft_loss"], -logps[mask & positive.unsqueeze(-1)].mean())
    close(loss, 0.5 * stats["sft_loss"] + stats["align_loss"])


def test_step_dpo_is_dpo_of_the_prefix_up_to_the_first_pit():
    chosen, rejected = pairs()
    steps = torch.arange(rejected[2].shape[1]).expand_as(rejected[2]) // 2
    values = torch.tensor([[0.5, 0.1, 0.1], [0.0, 0.4, math.nan], [0.9, 0.8, 0.2]])
    pit = first_pit(values)
    assert pit.tolist() == [1, 0, 2]
    (lw, rw, mw), (ll, rl, ml) = chosen, rejected
    loss, stats = step_dpo_loss(lw, mw, ll, ml, rw, rl, steps, pit)
    kept = ml & (steps <= pit.unsqueeze(-1))
    close(loss, dpo(chosen, (ll, rl, kept))[0])
    assert (gradient(loss, ll)[ml & ~kept] == 0).all()
    close(stats["rejected_tokens"], kept.sum())


def test_first_pit_needs_a_value_in_every_row():
    with pytest.raises(ValueError, match="without any value"):
        first_pit(torch.tensor([[math.nan, math.nan]]))


def test_position_weights_count_real_tokens_whatever_the_padding_side():
    hidden = torch.randn(1, 3, 2, dtype=torch.float64)
    expected = (hidden[0] * torch.tensor([[1.0], [2.0], [3.0]])).sum(0) / 6
    garbage = torch.full((1, 2, 2), math.nan, dtype=torch.float64)
    pad, real = torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    for states, mask in (
        (torch.cat([hidden, garbage], 1), torch.cat([real, pad], 1)),
        (torch.cat([garbage, hidden], 1), torch.cat([pad, real], 1)),
    ):
        close(position_weighted_mean(states, mask)[0], expected)
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        position_weighted_mean(torch.zeros(2, 2, 1), torch.tensor([[True, True], [False, False]]))


def test_n_pair_equals_the_naive_formula_and_its_limits():
    anchors, positives = torch.randn(2, 3, 4, dtype=torch.float64)
    negatives = torch.randn(3, 2, 4, dtype=torch.float64)
    anchors.requires_grad_()
    loss, _ = n_pair_loss(anchors, positives, negatives)
    excess = torch.stack([n @ a - a @ p for a, p, n in zip(anchors, positives, negatives, strict=True)])
    close(loss, torch.log1p(excess.exp().sum(-1)).mean())
    share = excess.exp() / (1 + excess.exp().sum(-1, keepdim=True))
    expected = (share.unsqueeze(-1) * (negatives - positives.unsqueeze(1))).sum(1) / 3
    close(gradient(loss, anchors), expected)
    assert torch.autograd.gradcheck(lambda a: n_pair_loss(a, positives, negatives)[0], anchors)
    close(n_pair_loss(anchors, positives, positives.unsqueeze(1))[0], math.log(2))
    close(n_pair_loss(anchors, positives, negatives[:, :0])[0], 0.0)
    close(n_pair_loss(anchors[:1], positives[:1])[0], 0.0)
    in_batch = F.cross_entropy(anchors @ positives.T, torch.arange(3))
    close(n_pair_loss(anchors, positives)[0], in_batch)
    with pytest.raises(ValueError, match="negatives has shape"):
        n_pair_loss(anchors, positives, negatives[:2])
