"""One step of every method against the same step written out with full logits, and its independence of splits."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from unlearn_tiny import FORGET, IDK, RETAIN, history, make_model, make_tokenizer, make_trainer

from negpo.data.qa import QATemplate, encode_qa
from negpo.errors import ConfigError
from negpo.trainers._run.rows import draw

LR, SEED = 1e-2, 42
COEFFICIENT = 0.7


def encode(row):
    return encode_qa(make_tokenizer(), QATemplate(), row["question"], row["answer"])


def full_logits(model, item):
    return model(torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)  # (T, V)


def answer_logps(model, item):
    """(n,) log-probs of the labelled tokens of one row, the slow way."""
    labels = torch.tensor(item["labels"])[1:]
    scores = full_logits(model, item)[:-1]
    return scores[labels != -100].gather(1, labels[labels != -100].unsqueeze(1)).squeeze(1)


def partner(index, stream, rows):
    return rows[draw(SEED, 0, index, len(rows), stream)]


class Naive:
    """The losses of the papers on lists of per-row log-probs."""

    def __init__(self, model, reference):
        self.model, self.reference = model, reference
        self.forget = [answer_logps(model, encode(row)) for row in FORGET]
        self.ref = [answer_logps(reference, encode(row)).detach() for row in FORGET]
        idk = [row | {"answer": partner(i, "idk", IDK)} for i, row in enumerate(FORGET)]
        self.idk = [answer_logps(model, encode(row)) for row in idk]
        self.ref_idk = [answer_logps(reference, encode(row)).detach() for row in idk]
        self.retain_rows = [partner(i, "retain", RETAIN) for i in range(len(FORGET))]

    def ratios(self, now, before):
        return torch.stack([(a - b).sum() for a, b in zip(now, before, strict=True)])

    def nll(self):
        return -torch.cat([answer_logps(self.model, encode(row)) for row in self.retain_rows]).mean()

    def kl(self):
        items = [encode(row) for row in self.retain_rows]
        policy = torch.cat([full_logits(self.model, item) for item in items])
        reference = torch.cat([full_logits(self.reference, item) for item in items]).detach()
        return (reference.exp() * (reference - policy)).sum(-1).mean()

    def logits(self, model):
        """(n, V) logits at the states that predict answer tokens, their labels, and the place of each in its row."""
        items = [encode(row) for row in FORGET]
        rows = [model(torch.tensor([item["input_ids"]])).logits[0] for item in items]
        labels = [torch.tensor(item["labels"]) for item in items]
        return items, rows, labels

    def ceu(self, skip):
        _, rows, labels = self.logits(self.model)
        values = []
        for z, y in zip(rows, labels, strict=True):
            keep = (y[1:] != -100).nonzero().squeeze(1)[skip:]
            target = z[:-1][keep].detach().scatter(1, y[1:][keep].unsqueeze(1), -torch.inf).softmax(-1)
            values.append(-(target * z[:-1][keep].log_softmax(-1)).sum(-1))
        return torch.cat(values).mean()

    def undial(self, beta, everything=False):
        items, rows, labels = self.logits(self.model)
        _, refs, _ = self.logits(self.reference)
        values = []
        for item, z, r, y in zip(items, rows, refs, labels, strict=True):
            y = torch.tensor(item["input_ids"]) if everything else y
            keep = y[1:] != -100
            z, r, y = z[:-1][keep], r[:-1][keep].detach(), y[1:][keep]
            target = (r - beta * F.one_hot(y, r.shape[-1])).softmax(-1)
            values.append(-(target * z.log_softmax(-1)).sum(-1))
        return torch.cat(values).mean()

    def pdu(self, positions):
        _, rows, labels = self.logits(self.model)
        spreads = []
        for z, y in zip(rows, labels, strict=True):
            chosen = z[y != -100] if positions == "unshifted" else z[:-1][y[1:] != -100]
            spreads.append((chosen.amax(-1) - chosen.mean(-1)).square())
        return torch.cat(spreads)

    def altpo(self, beta):
        rows = [row | {"answer": f"Not {row['answer']}"} for row in FORGET]
        alternate = [answer_logps(self.model, encode(row)) for row in rows]
        before = [answer_logps(self.reference, encode(row)).detach() for row in rows]
        gap = self.ratios(alternate, before) - self.ratios(self.forget, self.ref)
        return 2 / beta * F.softplus(-beta * gap).mean()

    def ga(self):
        return torch.cat(self.forget).mean()

    def npo(self, beta):
        return 2 / beta * F.softplus(beta * self.ratios(self.forget, self.ref)).mean()

    def simnpo(self, beta, gamma):
        nll = -torch.stack([row.mean() for row in self.forget])
        return 2 / beta * F.softplus(-beta * (nll - gamma)).mean()

    def weighted(self, weight):
        lp, lr = torch.cat(self.forget), torch.cat(self.ref)
        return (weight(lp.detach().exp(), lr.exp()) * lp).mean()

    def dpo(self, beta):
        gap = self.ratios(self.idk, self.ref_idk) - self.ratios(self.forget, self.ref)
        return 2 / beta * F.softplus(-beta * gap).mean()

    def kto(self, beta):
        z = self.ratios(self.idk, self.ref_idk).mean().detach()
        return 1 + 2 / beta * F.softplus(-(z - beta * self.ratios(self.forget, self.ref))).mean()

    def catnip(self, beta):
        lp = torch.cat(self.forget)
        q = torch.log(1 - lp.detach().exp())
        return F.softplus(-beta * (q - lp)).mean()

    def catnip_static(self, beta):
        return F.softplus(beta * (torch.cat(self.forget) - torch.cat(self.ref))).mean()


CASES = {
    "ga": ("ga", {}, lambda n: n.ga()),
    "graddiff": ("graddiff", {"forget_coeff": COEFFICIENT}, lambda n: COEFFICIENT * n.ga() + n.nll()),
    "ga with kl": ("graddiff", {"retain_loss": "kl", "kl_coeff": 3.0}, lambda n: n.ga() + 3 * n.kl()),
    "npo": ("npo", {"retain_loss": "none", "beta": 0.2}, lambda n: n.npo(0.2)),
    "npo with nll": (
        "npo",
        {"npo_coeff": COEFFICIENT, "grad_diff_coeff": 5.0},
        lambda n: COEFFICIENT * n.npo(0.1) + 5 * n.nll(),
    ),
    "npo with kl": ("npo", {"retain_loss": "kl"}, lambda n: n.npo(0.1) + n.kl()),
    "simnpo": ("simnpo", {"beta": 0.5, "gamma": 2.0}, lambda n: n.simnpo(0.5, 2.0) + n.nll()),
    "wga": ("wga", {"beta": 0.5}, lambda n: n.weighted(lambda p, r: p**0.5) + n.nll()),
    "tnpo": (
        "wga",
        {"weighting": "tnpo", "retain_loss": "none", "beta": 0.3},
        lambda n: n.weighted(lambda p, r: 2 * p**0.3 / (p**0.3 + r**0.3 + 1e-5)),
    ),
    "wtnpo": (
        "wga",
        {"weighting": "wtnpo", "retain_loss": "none", "beta": 0.3, "alpha": 0.2},
        lambda n: n.weighted(lambda p, r: 2 * p**0.5 / (p**0.3 + r**0.3 + 1e-5)),
    ),
    "satimp": (
        "wga",
        {"weighting": "satimp", "beta1": 0.5, "beta2": 1.0, "retain_loss": "none"},
        lambda n: n.weighted(lambda p, r: p**0.5 * (1 - p)),
    ),
    "idkdpo": ("idkdpo", {"beta": 0.2}, lambda n: n.dpo(0.2) + n.nll()),
    "kto": ("idkdpo", {"loss_type": "kto_log_sigmoid", "retain_loss": "none"}, lambda n: n.kto(0.1)),
    "catnip": ("catnip", {"beta": 2.0}, lambda n: n.catnip(2.0)),
    "ceu": ("ceu", {}, lambda n: n.ceu(1)),
    "ceu all": ("ceu", {"ignore_first_n_answer_tokens": 0, "retain_loss": "nll"}, lambda n: n.ceu(0) + n.nll()),
    "undial": ("undial", {"beta": 3.0}, lambda n: n.undial(3.0)),
    "undial kl": (
        "undial",
        {"retain_loss": "kl", "kl_coeff": COEFFICIENT, "beta": 10.0},
        lambda n: n.undial(10.0) + COEFFICIENT * n.kl(),
    ),
    "undial all": ("undial", {"positions": "all"}, lambda n: n.undial(10.0, everything=True)),
    "pdu": (
        "pdu",
        {"retain_constraint": 0.3, "grad_diff_coeff": 2.0},
        lambda n: n.pdu("predicting").mean() + 2 * (n.nll() - 0.3),
    ),
    "pdu code": (
        "pdu",
        {"retain_constraint": 0.3, "grad_diff_coeff": 2.0, "positions": "unshifted"},
        lambda n: n.pdu("unshifted").mean() + 2 * (n.nll() - 0.3),
    ),
    "altpo": ("altpo", {"beta": 0.2}, lambda n: n.altpo(0.2) + n.nll()),
    "catnip static": ("catnip", {"calibration": "static"}, lambda n: n.catnip_static(1.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step_equals_the_step_with_full_logits(case, tmp_path):
    # a reference that differs from the policy, so that log-ratios are not zero at the first step
    method, settings, objective = CASES[case]
    policy, reference = make_model(0), make_model(0)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    naive_model = copy.deepcopy(policy)
    naive_loss = objective(Naive(naive_model, reference))
    naive_loss.backward()
    uses_reference = (
        method in ("npo", "idkdpo", "undial", "altpo") or "tnpo" in case or "kl" in case or "static" in case
    )
    more = {"ref_model": reference} if uses_reference else {}
    if method in ("npo", "idkdpo", "altpo") or "tnpo" in case:
        more["check_reference"] = False
    trainer = make_trainer(method, tmp_path, model=policy, batch=(6, 1), max_steps=1, **settings, **more)
    trainer.train()
    assert history(trainer, "loss")[0] == pytest.approx(naive_loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(policy.named_parameters(), naive_model.parameters(), strict=True):
        expected = theirs.detach() - LR * theirs.grad
        assert torch.allclose(ours.detach(), expected, rtol=1e-5, atol=2e-6 * max(1, theirs.grad.abs().max())), name


def test_a_reference_that_differs_from_the_start_is_taken_by_default(tmp_path):
    """It was asked for; only a start that is not its own reference is a mistake."""
    trainer = make_trainer("npo", tmp_path, ref_model=make_model(5), retain_loss="none", batch=(6, 1), max_steps=1)
    trainer.train()
    assert abs(history(trainer, "forget/log_ratio")[0]) > 0.1
    wrong = make_trainer("npo", tmp_path, retain_loss="none", batch=(6, 1), max_steps=1)
    wrong._prepare_reference()
    with torch.no_grad():
        wrong.model.model.norm.weight.mul_(1.5)
    with pytest.raises(ConfigError, match="reference"):
        wrong.train()


def test_rmu_step_equals_the_step_with_all_hidden_states(tmp_path):
    policy, layer, alpha = make_model(0), 0, 3.0
    naive, frozen = copy.deepcopy(policy), make_model(5)
    generator = torch.Generator().manual_seed(SEED)
    direction = torch.rand(32, generator=generator)
    target = 2.0 * direction / direction.norm()

    def states(model, row):
        item = encode(row)
        hidden = model(torch.tensor([item["input_ids"]]), output_hidden_states=True).hidden_states[layer + 1][0]
        return hidden[torch.tensor(item["labels"]) != -100]  # (n, H)

    loss = 0.0
    for index, row in enumerate(FORGET):
        retain = partner(index, "retain", RETAIN)
        loss = loss + (states(naive, row) - target).square().mean() / len(FORGET)
        loss = loss + alpha * (states(naive, retain) - states(frozen, retain).detach()).square().mean() / len(FORGET)
    loss.backward()
    trainer = make_trainer(
        "rmu", tmp_path, model=policy, ref_model=frozen, batch=(3, 2), max_steps=1, layer=layer, alpha=alpha,
        steering_coeff=2.0,
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "loss")[0] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(policy.parameters(), naive.parameters(), strict=True):
        gradient = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert torch.allclose(ours, theirs - LR * gradient, atol=1e-5)


SPLIT_CASES = {
    "ga": {},
    "graddiff": {},
    "npo": {},
    "npo-kl": {"retain_loss": "kl"},
    "simnpo": {"beta": 0.5},
    "catnip": {},
    "idkdpo": {},
    "ceu": {},
    "undial": {},
    "pdu": {"retain_constraint": 0.3},
    "altpo": {},
    "rmu": {"layer": 1, "alpha": 2.0},
}


@pytest.mark.parametrize("case", SPLIT_CASES)
def test_loss_and_gradient_norm_do_not_depend_on_the_split_into_micro_batches(case, tmp_path):
    # six rows of unequal length: with 4 x 1 the last optimiser batch of an epoch holds two rows, however it is split
    method, settings = case.split("-")[0], SPLIT_CASES[case]
    runs = []
    for batch in ((4, 1), (2, 2), (1, 4)):
        model = make_model(0, attention_dropout=0.0)
        trainer = make_trainer(method, tmp_path, model=model, batch=batch, max_steps=3, **settings)
        trainer.train()
        runs.append((history(trainer, "loss"), history(trainer, "grad_norm"), history(trainer, "forget/logp")))
    for other in runs[1:]:
        for expected, seen in zip(runs[0], other, strict=True):
            assert seen == pytest.approx(expected, rel=1e-5, abs=2e-6)  # GradDiff subtracts two losses of 6


def test_the_papers_micro_batch_means_remain_available_and_do_depend_on_the_split(tmp_path):
    losses = []
    for batch in ((4, 1), (1, 4)):
        trainer = make_trainer("ga", tmp_path, batch=batch, max_steps=1, token_normalization="micro_batch")
        trainer.train()
        losses.append(history(trainer, "loss")[0])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_loss_is_declared_unscaled_for_transformers_that_ask():
    from negpo.trainers import UnlearnTrainer

    assert UnlearnTrainer.loss_is_scaled_for_ga is False


def test_npo_starts_at_its_constant_with_weight_one_and_log_ratio_zero(tmp_path):
    trainer = make_trainer("npo", tmp_path, max_steps=1)
    trainer.train()
    assert history(trainer, "forget/loss")[0] == pytest.approx(20 * math.log(2), rel=1e-6)
    assert history(trainer, "forget/grad_weight")[0] == pytest.approx(1.0, rel=1e-5)
    assert history(trainer, "forget/log_ratio")[0] == pytest.approx(0.0, abs=1e-4)


def test_logs_split_forget_and_retain_under_stable_names(tmp_path):
    trainer = make_trainer("npo", tmp_path, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    own = {name for name in entry if "/" in name}
    shared = {"loss", "logp", "p_above_99", "tokens"}
    expected = {f"forget/{name}" for name in shared | {"log_ratio", "grad_weight", "dead_rows"}}
    assert own == expected | {f"retain/{name}" for name in shared}
    counts = [sum(label != -100 for label in encode(row)["labels"]) for row in FORGET]
    assert entry["forget/tokens"] in [sum(counts) - a - b for i, a in enumerate(counts) for b in counts[:i]]


def test_label_stride_keeps_every_kth_position_only(tmp_path):
    rows = [{"text": "abcdefghijklmnopqrstuvwxyz" * 2}, {"text": "abcdefghij"}]
    trainer = make_trainer("catnip", tmp_path, train_dataset=rows, label_stride=16, batch=(1, 1), max_steps=1)
    (item,) = trainer.train_dataset.forget  # the row of ten tokens has no label left
    assert [place for place, label in enumerate(item["labels"]) if label != -100] == [16, 32, 48]
    trainer.train()
    assert history(trainer, "forget/tokens") == [3.0]
