"""Identities, gradients and refusals of CE-U, UNDIAL, PDU and SAM."""

import pytest
import torch

from negpo.objectives import ceu_loss, dual_update, pdu_loss, perturbed, sam_perturbation, undial_loss

MASK = torch.tensor([[True, True, True, False], [False, True, True, True], [True, False, False, False]])


def random_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 7, dtype=torch.float64, generator=generator) * 2
    labels = torch.randint(0, 7, (3, 4), generator=generator)
    return logits, labels


def at(x, labels):
    return x.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def without(logits, labels):
    return logits.scatter(-1, labels.unsqueeze(-1), -torch.inf)


def ceu_parts(logits, labels):
    rest = without(logits, labels)
    q = rest.softmax(-1)
    entropy = -torch.where(q > 0, q * q.clamp(min=1e-300).log(), 0.0).sum(-1)
    return at(logits.log_softmax(-1), labels), rest.logsumexp(-1) - logits.logsumexp(-1), entropy


def undial_parts(logits, ref_logits, labels):
    q = without(ref_logits, labels).softmax(-1)
    rest = -(q * logits.log_softmax(-1)).sum(-1)
    odds = at(ref_logits, labels) - without(ref_logits, labels).logsumexp(-1)
    return at(logits.log_softmax(-1), labels), rest, odds


def test_ceu_has_the_gradient_of_unlikelihood_and_the_value_of_its_cross_entropy():
    logits, labels = random_batch()
    logits.requires_grad_()
    logps, complement, entropy = ceu_parts(logits, labels)
    loss, stats = ceu_loss(logps, complement, MASK, rest_entropy=entropy, skip_first=0)
    q = without(logits, labels).softmax(-1).detach()
    naive = -(q * logits.log_softmax(-1)).sum(-1)[MASK].mean()
    assert loss.item() == pytest.approx(naive.item(), abs=1e-12)
    (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-torch.log1p(-logps.exp())[MASK].mean(), logits)
    assert torch.allclose(grad, expected, atol=1e-10)
    assert grad.abs().max() <= 1 / MASK.sum()
    assert stats["mean_weight"].item() == pytest.approx(logps.exp()[MASK].mean().item())


def test_a_memorised_token_gets_the_full_gradient_of_ceu():
    complement = torch.tensor([[-60.0]], dtype=torch.float64, requires_grad=True)  # p = 1 in every float format
    ceu_loss(torch.zeros(1, 1, dtype=torch.float64), complement, torch.ones(1, 1, dtype=torch.bool), skip_first=0)[
        0
    ].backward()
    assert complement.grad.item() == -1.0


def test_ceu_leaves_the_first_tokens_of_each_row_out_and_refuses_a_batch_without_any():
    logps = torch.rand(3, 4, dtype=torch.float64).log()
    whole = ceu_loss(logps, logps, MASK, skip_first=1)[0]
    by_hand = torch.cat([logps[0, 1:3], logps[1, 2:4]])
    assert whole.item() == pytest.approx(-by_hand.mean().item())
    with pytest.raises(ValueError, match="skip_first=3 leaves no token in a batch of 7"):
        ceu_loss(logps, logps, MASK, skip_first=3)
    with pytest.raises(ValueError, match="skip_first is -1"):
        ceu_loss(logps, logps, MASK, skip_first=-1)


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0, 10.0, 40.0])
def test_undial_is_the_cross_entropy_to_the_reference_with_a_lowered_label(beta):
    logits, labels = random_batch(1)
    ref, _ = random_batch(2)
    logits.requires_grad_()
    loss, _ = undial_loss(*undial_parts(logits, ref, labels), MASK, beta=beta)
    q = ref.scatter_add(-1, labels.unsqueeze(-1), torch.full_like(ref[..., :1], -beta)).softmax(-1)
    naive = -(q * logits.log_softmax(-1)).sum(-1)[MASK].mean()
    assert loss.item() == pytest.approx(naive.item(), abs=1e-12)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(grad, torch.where(MASK.unsqueeze(-1), logits.softmax(-1) - q, 0.0) / MASK.sum(), atol=1e-12)


def test_undial_without_a_lowered_label_leaves_the_reference_where_it_is():
    logits, labels = random_batch(3)
    policy = logits.clone().requires_grad_()
    undial_loss(*undial_parts(policy, logits, labels), MASK, beta=0.0)[0].backward()
    assert policy.grad.abs().max() < 1e-15


def test_undial_stays_exact_where_the_reference_is_certain():
    """p_ref(y) = 1 - 1e-14: the form with 1 - a would lose all digits in float32."""
    logps, rest = torch.tensor([[-1e-14]]), torch.tensor([[9.0]])
    loss, stats = undial_loss(logps, rest, torch.tensor([[32.2]]), torch.ones(1, 1, dtype=torch.bool), beta=10.0)
    share = 1 / (1 + torch.tensor(22.2, dtype=torch.float64).exp())
    assert loss.item() == pytest.approx(9.0 * share.item(), rel=1e-5)
    assert stats["mean_weight"].item() == pytest.approx(share.item(), rel=1e-5)


def test_pdu_ignores_a_constant_added_to_all_logits_and_pulls_only_the_peak_down():
    logits, _ = random_batch(4)
    logits.requires_grad_()

    def loss(x):
        return pdu_loss(x.amax(-1) - x.mean(-1), MASK)[0]

    assert loss(logits).item() == pytest.approx(loss(logits + 5.0).item(), abs=1e-10)
    assert loss(logits).item() == pytest.approx(loss(logits.log_softmax(-1)).item(), abs=1e-10)
    (grad,) = torch.autograd.grad(loss(logits), logits)
    peak = torch.nn.functional.one_hot(logits.argmax(-1), 7).bool() & MASK.unsqueeze(-1)
    assert (grad[peak] > 0).all()
    assert (grad[~peak] <= 0).all()


def test_pdu_averages_the_batch_like_the_code_or_each_answer_like_the_paper():
    spread = torch.rand(3, 4, dtype=torch.float64)
    rows = torch.stack([spread[i][MASK[i]].square().mean() for i in range(3)])
    assert pdu_loss(spread, MASK)[0].item() == pytest.approx(spread[MASK].square().mean().item())
    assert pdu_loss(spread, MASK, per_row=True)[0].item() == pytest.approx(rows.mean().item())


def test_the_multiplier_is_never_negative():
    assert dual_update(0.5, 0.0, bound=1.0, step=10.0) == 0.0
    assert dual_update(0.0, 2.0, bound=1.0, step=0.5) == 0.5
    with pytest.raises(ValueError, match="multiplier is -1"):
        dual_update(-1.0, 0.0, bound=1.0, step=1.0)


def test_sam_moves_by_rho_and_restores_half_precision_weights_bit_for_bit():
    weights = [torch.randn(40).bfloat16(), torch.randn(3, 5), torch.randn(2)]
    gradients = [torch.randn(40).bfloat16(), torch.randn(3, 5), None]
    step = sam_perturbation(gradients, rho=0.3)
    assert step[2] is None
    norm = torch.cat([e.float().flatten() for e in step if e is not None]).norm()
    assert norm.item() == pytest.approx(0.3, rel=1e-2)
    before = [w.clone() for w in weights]
    with perturbed(weights, step):
        assert not torch.equal(weights[1], before[1])
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert all((e == 0).all() for e in sam_perturbation(gradients, rho=0.0) if e is not None)
    with pytest.raises(RuntimeError, match="norm of the forget gradient is nan"):
        sam_perturbation([torch.tensor([float("nan")])], rho=0.1)


@pytest.mark.parametrize("name", ["ceu", "undial", "pdu"])
def test_gradients_are_right_and_what_stands_under_the_mask_never_matters(name):
    torch.manual_seed(0)
    a, b, c = (torch.rand(3, 4, dtype=torch.float64) + 0.1 for _ in range(3))

    def loss(a, b, c):
        if name == "ceu":
            return ceu_loss(-a, -b, MASK, rest_entropy=c, skip_first=1)[0]
        return undial_loss(-a, b, c, MASK, beta=0.7)[0] if name == "undial" else pdu_loss(b, MASK)[0]

    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda b: loss(a, b, c), (b,))
    dirty = [torch.where(MASK, x, torch.nan) for x in (a, b.detach(), c)]
    assert loss(*dirty).item() == pytest.approx(loss(a, b, c).item())
