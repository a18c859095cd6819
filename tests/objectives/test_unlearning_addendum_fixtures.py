"""CE-U, AltPO, UNDIAL, PDU, NPO+SAM and weight arithmetic against the numbers of the authors' code."""

import math

import pytest
import torch

from negpo.logprobs.statistics import Complement, RestCrossEntropy, Spread, token_statistic
from negpo.objectives import (
    ceu_loss,
    dpo_loss,
    dual_update,
    extrapolate_weight,
    ga_loss,
    mix_weights,
    nll_loss,
    pdu_loss,
    perturbed,
    retain_kl,
    sam_perturbation,
    undial_loss,
)

FORGET, ALTERNATE, RETAIN = slice(0, 4), slice(4, 8), slice(8, 12)


class Toy:
    """The toy batch of the fixtures; the vocabulary is read through the streamed statistics, one token per (b, t)."""

    def __init__(self, inputs):
        def tensor(name):
            return torch.tensor(inputs[name], dtype=torch.float64)

        self.logits, self.ref_logits = tensor("policy_logits").requires_grad_(), tensor("ref_logits")
        self.labels, self.ids = torch.tensor(inputs["labels"]), torch.tensor(inputs["input_ids"])
        self.eye = torch.eye(inputs["V"], dtype=torch.float64)

    def mask(self, rows, labels=None):
        return (self.labels if labels is None else labels)[rows, 1:] != -100

    def logps(self, rows, labels=None, reference=False):
        logits = self.ref_logits if reference else self.logits
        targets = (self.labels if labels is None else labels)[rows, 1:].clamp(min=0)
        return logits[rows, :-1].log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    def statistic(self, statistic, logits, labels=None, **reference):
        n = logits.shape[:-1]
        labels = torch.zeros(n, dtype=torch.long) if labels is None else labels.clamp(min=0)
        flat = {name: x.flatten(0, 1) if name == "ref_hidden" else x for name, x in reference.items()}
        value, constant = token_statistic(statistic, logits.flatten(0, 1), self.eye, labels.reshape(-1), **flat)
        return value.view(n), None if constant is None else constant.view(n)


@pytest.fixture
def toy(load_fixture):
    return Toy(load_fixture("unlearning2/inputs.json"))


@pytest.fixture(scope="module")
def cases(load_fixture):
    return {case["name"]: case for case in load_fixture("unlearning2/open_unlearning2.json")["cases"]}


def retain_nll(toy):
    return nll_loss(toy.logps(RETAIN), toy.mask(RETAIN))[0]


def agrees(toy, loss, case):
    """Value to 1e-9 and gradient to 1e-7 of its largest entry; rows not listed have none."""
    assert loss.item() == pytest.approx(case["loss"], abs=1e-9, rel=1e-11)
    (grad,) = torch.autograd.grad(loss, toy.logits)
    expected = torch.zeros_like(grad)
    for row, values in case["grad"].items():
        expected[int(row)] = torch.tensor(values, dtype=torch.float64)
    assert (grad - expected).abs().max() < 1e-7
    assert grad.norm().item() == pytest.approx(case["grad_l2"], rel=1e-8)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_ceu_is_that_of_open_unlearning(toy, cases, skip):
    log_rest, entropy = toy.statistic(Complement(), toy.logits[FORGET, :-1], toy.labels[FORGET, 1:])
    mask = toy.mask(FORGET)
    loss, _ = ceu_loss(toy.logps(FORGET), log_rest, mask, rest_entropy=entropy, skip_first=skip)
    agrees(toy, loss, cases[f"CEU_skip{skip}"])


def undial(toy, beta, labels):
    rest, odds = toy.statistic(
        RestCrossEntropy(),
        toy.logits[FORGET, :-1],
        labels[FORGET, 1:],
        ref_hidden=toy.ref_logits[FORGET, :-1],
        ref_head=toy.eye,
    )
    return undial_loss(toy.logps(FORGET, labels), rest, odds, toy.mask(FORGET, labels), beta=beta)[0]


@pytest.mark.parametrize("beta", [3, 10, 30])
def test_undial_over_all_positions_is_that_of_open_unlearning(toy, cases, beta):
    agrees(toy, undial(toy, float(beta), toy.ids), cases[f"UNDIAL_beta{beta}"])


def test_undial_adds_either_retain_term(toy, cases):
    agrees(toy, undial(toy, 10.0, toy.ids) + retain_nll(toy), cases["UNDIAL_beta10_retain_NLL"])
    kl, _ = retain_kl(toy.logits[RETAIN].log_softmax(-1), toy.ref_logits[RETAIN].log_softmax(-1))
    agrees(toy, undial(toy, 10.0, toy.ids) + kl, cases["UNDIAL_beta10_retain_KL"])


@pytest.mark.parametrize(("gamma", "alpha", "eps"), [(1, 0, 0), (1, 100, 0.3), (0.5, 2, 1.5)])
def test_pdu_is_that_of_open_unlearning(toy, cases, gamma, alpha, eps):
    spread, _ = toy.statistic(Spread(), toy.logits[FORGET])  # the released mask is not shifted: all T positions
    forget, _ = pdu_loss(spread, toy.labels[FORGET] != -100)
    total = gamma * forget + alpha * (retain_nll(toy) - eps)
    agrees(toy, total, cases[f"PDU_gamma{gamma}_alpha{alpha}_eps{eps}"])


@pytest.mark.parametrize("name", ["PDU_dual_tofu", "PDU_dual_muse", "PDU_dual_clamped"])
def test_the_multiplier_moves_as_in_open_unlearning(cases, name):
    case = cases[name]
    multiplier, bound = case["alpha"], case["retain_loss_eps"]
    for retain, total, after in zip(
        case["retain_losses"], case["total_before_update"], case["lambda_after"], strict=True
    ):
        assert case["forget_loss"] + multiplier * (retain - bound) == pytest.approx(total, abs=1e-9)
        multiplier = dual_update(multiplier, retain, bound=bound, step=case["dual_step_size"])
        assert multiplier == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize(("beta", "alpha"), [(0.05, 1), (0.1, 1), (0.1, 5), (0.5, 2)])
def test_altpo_is_dpo_with_alternates_as_winners(toy, cases, beta, alpha):
    winner, loser = (toy.logps(ALTERNATE), toy.mask(ALTERNATE)), (toy.logps(FORGET), toy.mask(FORGET))
    refs = toy.logps(ALTERNATE, reference=True), toy.logps(FORGET, reference=True)
    loss, _ = dpo_loss(*winner, *loser, *refs, beta=beta, scale=2 / beta)
    agrees(toy, loss + alpha * retain_nll(toy), cases[f"AltPO_beta{beta}_alpha{alpha}"])


def test_npo_with_sam_gives_the_gradient_of_the_release(toy, load_fixture):
    inputs = load_fixture("unlearning2/inputs.json")
    states, head = (torch.tensor(inputs[name], dtype=torch.float64).requires_grad_() for name in ("E", "W"))
    frozen = [torch.tensor(inputs[name], dtype=torch.float64) for name in ("E_ref", "W_ref")]

    def logps(rows, e, w):
        toy.logits = torch.tanh(e) @ w
        return toy.logps(rows)

    for case in load_fixture("unlearning2/smooth.json")["cases"]:
        if "sam_rho" not in case["params"] or "samples" in case["params"]:
            continue
        params = case["params"]
        reference, _ = nll_loss(logps(FORGET, *frozen), toy.mask(FORGET))

        def forget(params=params, reference=reference):
            value = nll_loss(logps(FORGET, states, head), toy.mask(FORGET))[0]
            if "beta" not in params:
                return ga_loss(logps(FORGET, states, head), toy.mask(FORGET))[0]
            # the release applies NPO to the token mean of the micro-batch, one scalar
            return -torch.nn.functional.logsigmoid(params["beta"] * (value - reference)) * 2 / params["beta"]

        weights = [states, head]
        before = [w.detach().clone() for w in weights]
        step = sam_perturbation(torch.autograd.grad(forget(), weights), rho=params["sam_rho"])
        with perturbed(weights, step):
            at_peak = torch.autograd.grad(forget(), weights)
        assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
        retain = torch.autograd.grad(nll_loss(logps(RETAIN, states, head), toy.mask(RETAIN))[0], weights)
        for name, f, r in zip("EW", at_peak, retain, strict=True):
            expected = torch.tensor(case["grad"][name], dtype=torch.float64)
            assert (f + params["gamma"] * r - expected).abs().max() < 1e-7, (case["name"], name)


def tensors(part):
    return {name: torch.tensor(_floats(value), dtype=torch.float64) for name, value in part.items()}


def _floats(value):
    return [_floats(x) for x in value] if isinstance(value, list) else float(value)


def test_weight_arithmetic_is_that_of_the_releases(load_fixture):
    for case in load_fixture("unlearning2/arithmetic.json")["cases"]:
        kind = case["name"].split("_")[0]
        if kind not in ("task", "model", "neon"):
            continue
        expected = tensors(case["result"])
        for name, value in expected.items():
            if kind == "task":
                model, tuned, origin = (tensors(case[x])[name] for x in ("model", "finetuned", "pretrained"))
                result = extrapolate_weight(model, tuned, origin, weight=case["alpha"])
            elif kind == "neon" and name in case["base"]:
                base, trained = tensors(case["base"])[name], tensors(case["self_trained"])[name]
                if name not in case["self_trained"]:
                    continue
                result = extrapolate_weight(base, trained, weight=case["w"])
            elif kind == "model":
                sides = tensors(case["before"])[name], tensors(case["after"])[name]
                result = mix_weights(*sides, ratio=case["update_ratio"])
            else:
                continue
            assert torch.allclose(result, value, atol=1e-9, rtol=0), (case["name"], name)


def test_mixing_ends_are_exact_and_neon_is_the_task_vector_from_the_model_itself():
    a, b = torch.randn(5, 3).bfloat16(), torch.randn(5, 3).bfloat16()
    assert torch.equal(mix_weights(a, b, ratio=1.0), a)
    assert torch.equal(mix_weights(a, b, ratio=0.0), b)
    assert torch.equal(extrapolate_weight(a, b, weight=0.7), extrapolate_weight(a, b, a, weight=0.7))
    counter = torch.tensor([3])
    assert torch.equal(extrapolate_weight(counter, counter + 4, weight=2.0), counter)
    spoiled = b.clone()
    spoiled[0, 0] = math.inf
    assert extrapolate_weight(a, spoiled, weight=0.5)[0, 0] == a[0, 0]
    with pytest.raises(ValueError, match=r"ratio is 1\.5"):
        mix_weights(a, b, ratio=1.5)
