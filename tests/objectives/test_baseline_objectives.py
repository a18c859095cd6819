"""SimPO and unpaired KTO, the baselines of preference trainers: naive references, gradients, padding."""

import pytest
import torch
import torch.nn.functional as F

from negpo.objectives import redi_loss, simpo_loss, unpaired_kto_loss


def batch(rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(rows, length, generator=generator, dtype=torch.float64) - 0.1
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    return logps.requires_grad_(), mask


def test_simpo_equals_its_formula_written_out():
    (good, good_mask), (bad, bad_mask) = batch(4, 6, 0), batch(4, 8, 1)
    loss, stats = simpo_loss(good, good_mask, bad, bad_mask, beta=2.0, gamma=0.7)
    margins = [g[m].mean() - b[n].mean() for g, m, b, n in zip(good, good_mask, bad, bad_mask, strict=True)]
    expected = sum(-F.logsigmoid(2.0 * margin - 0.7) for margin in margins) / 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert stats["mean_margin"].item() == pytest.approx(sum(margins).item() / 4, rel=1e-12)


def test_simpo_turns_into_symmetric_redi_as_beta_vanishes():
    (good, good_mask), (bad, bad_mask) = batch(3, 5, 2), batch(3, 5, 3)
    beta = 1e-7
    simpo, _ = simpo_loss(good, good_mask, bad, bad_mask, beta=beta, gamma=0.0)
    redi, _ = redi_loss(good, good_mask, bad, bad_mask, alpha=1.0)
    ours = torch.autograd.grad(simpo, (good, bad))
    theirs = torch.autograd.grad(redi, (good, bad))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one * 2 / beta, other, atol=1e-6)


def test_kto_equals_its_formula_written_out():
    (logps, mask), (other, other_mask) = batch(4, 6, 4), batch(3, 6, 5)
    ref, ref_other = logps.detach() - 0.3, other.detach() - 0.2
    positive = torch.tensor([True, False, False, True])
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    loss, stats = unpaired_kto_loss(logps, ref, mask, positive, other, ref_other, other_mask, beta=0.4, **weights)
    z = (0.2 * other_mask.sum(1)).mean()
    ratio = 0.3 * mask.sum(1)
    good = 1.5 * (1 - torch.sigmoid(0.4 * (ratio - z)))
    bad = 0.5 * (1 - torch.sigmoid(0.4 * (z - ratio)))
    assert loss.item() == pytest.approx(torch.where(positive, good, bad).mean().item(), rel=1e-6)
    assert stats["z"].item() == pytest.approx(z.item(), rel=1e-6)
    assert torch.autograd.grad(loss, other, allow_unused=True)[0] is None


def test_kto_never_measures_against_a_negative_z():
    (logps, mask), (other, other_mask) = batch(2, 4, 6), batch(2, 4, 7)
    positive = torch.tensor([True, False])
    _, stats = unpaired_kto_loss(logps, logps.detach(), mask, positive, other, other.detach() + 1.0, other_mask)
    assert stats["z"].item() == 0.0


@pytest.mark.parametrize("poison", [float("nan"), -7.0])
def test_padding_never_changes_loss_or_gradient(poison):
    (good, good_mask), (bad, bad_mask) = batch(3, 5, 8), batch(3, 5, 9)
    dirty = [torch.where(m, x, poison).detach().requires_grad_() for x, m in ((good, good_mask), (bad, bad_mask))]
    for function in (
        lambda g, b: simpo_loss(g, good_mask, b, bad_mask)[0],
        lambda g, b: unpaired_kto_loss(g, g.detach(), good_mask, torch.ones(3), b, b.detach(), bad_mask)[0],
    ):
        clean = function(good, bad)
        same = function(*dirty)
        assert same.item() == clean.item()
        assert torch.equal(torch.autograd.grad(same, dirty[0])[0], torch.autograd.grad(clean, good)[0])


def test_gradients_pass_gradcheck():
    (good, good_mask), (bad, bad_mask) = batch(2, 3, 10), batch(2, 4, 11)
    assert torch.autograd.gradcheck(lambda g, b: simpo_loss(g, good_mask, b, bad_mask)[0], (good, bad))
    ref, positive = good.detach() + 0.1, torch.tensor([True, False])
    assert torch.autograd.gradcheck(
        lambda g: unpaired_kto_loss(g, ref, good_mask, positive, bad.detach(), bad.detach() - 0.1, bad_mask)[0], (good,)
    )
