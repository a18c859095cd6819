"""Reductions, importance weights and the KL estimate against plain loops; the contract of all objectives holds."""

import math

import pytest
import torch

from negpo.objectives import clipped_policy_loss, importance_weights, low_variance_kl, reduce_tokens
from negpo.objectives.policy_terms import IMPORTANCE_MODES

REDUCTIONS = ({"reduction": "token_mean"}, {"reduction": "sequence_mean"}, {"reduction": "constant", "length": 7.0})


def batch(seed=0, dtype=torch.float64):
    """Log-probs of two models (4, 6) and a mask whose last row is empty."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (-2.0 * torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(4, 6, generator=generator) < 0.6
    mask[:3, 0], mask[3] = True, False
    return left.to(dtype), right.to(dtype), mask


# (first, second, mask) -> tensor
PIECES = {f"reduce {r['reduction']}": lambda a, b, m, r=r: reduce_tokens(a - b, m, **r) for r in REDUCTIONS}
PIECES |= {mode: lambda a, b, m, mode=mode: importance_weights(a, b, m, mode=mode) for mode in IMPORTANCE_MODES}
PIECES |= {"kl": low_variance_kl}
every_piece = pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)


@every_piece
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 7.0])
def test_what_stands_under_the_mask_changes_nothing(piece, garbage):
    left, right, mask = batch()
    found = []
    for a, b in ((left, right), (left.masked_fill(~mask, garbage), right.masked_fill(~mask, garbage))):
        a = a.clone().requires_grad_()
        value = piece(a, b, mask)
        gradient = torch.autograd.grad(value.sum(), a)[0] if value.requires_grad else torch.zeros_like(a)
        found.append((value, torch.where(mask, gradient, 0.0)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@every_piece
def test_more_padding_changes_nothing(piece):
    left, right, mask = batch()
    wide = piece(*(torch.nn.functional.pad(x, (2, 3)) for x in (left, right, mask)))
    assert torch.allclose(wide if wide.ndim == 0 else wide[:, 2:-3], piece(left, right, mask))


@every_piece
def test_a_batch_without_tokens_is_refused(piece):
    left, right, mask = batch()
    with pytest.raises(ValueError, match="False everywhere"):
        piece(left, right, torch.zeros_like(mask))


@every_piece
@pytest.mark.parametrize(("given", "kept"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_half_precision_is_raised_and_double_is_kept(piece, given, kept):
    assert piece(*batch(dtype=given)).dtype == kept


def test_reductions_are_those_of_plain_loops():
    left, right, mask = batch()
    rows = [[float(v) for v, m in zip(r, k, strict=True) if m] for r, k in zip(left - right, mask, strict=True)]
    rows = [row for row in rows if row]
    tokens = [value for row in rows for value in row]
    expected = (sum(tokens) / len(tokens), sum(sum(r) / len(r) for r in rows) / len(rows), sum(tokens) / 7.0)
    for settings, value in zip(REDUCTIONS, expected, strict=True):
        assert reduce_tokens(left - right, mask, **settings).item() == pytest.approx(value)


def test_the_clipped_loss_reduces_like_the_function():
    left, _, mask = batch()
    advantages = torch.tensor([0.5, -1.0, 2.0, 1.0], dtype=torch.float64)
    for settings in REDUCTIONS:
        loss, _ = clipped_policy_loss(left, left, advantages, mask, **settings)
        expected = reduce_tokens(-advantages.unsqueeze(1).expand_as(left), mask, **settings)
        assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "mean"}, "expected one of"),
        ({"reduction": "constant"}, "length is None"),
        ({"length": 2}, "only there"),
    ],
)
def test_a_reduction_that_does_not_exist_or_lacks_its_length_is_refused(settings, message):
    left, _, mask = batch()
    with pytest.raises(ValueError, match=message):
        reduce_tokens(left, mask, **settings)


@pytest.mark.parametrize("mode", IMPORTANCE_MODES)
def test_importance_weights_are_those_of_plain_loops(mode):
    left, right, mask = batch(3)
    low, high = 0.6, 1.4
    weights = importance_weights(left, right, mask, mode=mode, clip_min=low, clip_max=high)
    for r in range(4):
        total = sum(float(left[r, t] - right[r, t]) for t in range(6) if mask[r, t])
        for t in range(6):
            ratio = math.exp(total if mode.startswith("sequence") else float(left[r, t] - right[r, t]))
            bounded = min(max(ratio, low), high) if mode.endswith("truncate") else ratio * (low <= ratio <= high)
            assert weights[r, t].item() == pytest.approx(bounded if mask[r, t] else 0.0)


def test_importance_weights_of_equal_engines_are_one_and_carry_no_gradient():
    left, _, mask = batch()
    weights = importance_weights(left.requires_grad_(), left, mask)
    assert torch.equal(weights, mask.double())
    assert not weights.requires_grad


@pytest.mark.parametrize(
    "settings", [{"mode": "token"}, {"clip_min": 3.0}, {"clip_max": 0.0}, {"clip_min": -1.0}, {"clip_max": math.nan}]
)
def test_importance_settings_that_leave_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        importance_weights(*batch(), **settings)


def test_the_kl_estimate_is_zero_on_itself_non_negative_and_has_its_stated_gradient():
    left, right, mask = batch()
    assert low_variance_kl(left, left, mask).abs().max() == 0
    left.requires_grad_()
    values = low_variance_kl(left, right, mask)
    assert (values >= 0).all()
    (gradient,) = torch.autograd.grad(values.sum(), left)
    assert torch.allclose(gradient, torch.where(mask, 1.0 - (right - left).exp(), 0.0).detach())
    assert torch.autograd.gradcheck(lambda x: low_variance_kl(x, right, mask), (left,))


def test_the_kl_estimate_has_the_kl_as_its_mean_over_samples():
    """Over a vocabulary of three: sum_v p(v) k(v) = KL(p || q)."""
    p, q = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
    values = low_variance_kl(p.log().unsqueeze(0), q.log().unsqueeze(0), torch.ones(1, 3, dtype=torch.bool))[0]
    assert (p * values).sum().item() == pytest.approx((p * (p / q).log()).sum().item())
