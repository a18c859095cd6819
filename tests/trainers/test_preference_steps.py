"""One step of every preference trainer against full logits, identities between methods, and splits of a batch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from preference_tiny import LISTS, LR, ROWS, SAMPLED, make_trainer, naive_logps, shifted_model
from unlearn_tiny import history, make_model


class Naive:
    """Losses written out from full logits, one sequence at a time."""

    def __init__(self, policy, reference):
        self.policy, self.reference = policy, reference

    def logps(self, prompt, answer):
        return naive_logps(self.policy, prompt, answer)

    def mean(self, prompt, answer):
        return self.logps(prompt, answer).mean()

    def ratio(self, prompt, answer):
        return (self.logps(prompt, answer) - naive_logps(self.reference, prompt, answer).detach()).sum()

    def pairs(self, loss, rows=ROWS):
        return sum(loss(row["prompt"], row["chosen"], row["rejected"]) for row in rows) / len(rows)

    def redi(self, alpha):
        return self.pairs(lambda x, good, bad: alpha * self.mean(x, bad) - self.mean(x, good))

    def dpo(self, beta):
        return self.pairs(lambda x, good, bad: -F.logsigmoid(beta * (self.ratio(x, good) - self.ratio(x, bad))))

    def simpo(self, beta, gamma):
        return self.pairs(lambda x, good, bad: -F.logsigmoid(beta * (self.mean(x, good) - self.mean(x, bad)) - gamma))

    def sft(self):
        logps = torch.cat([self.logps(row["prompt"], row["chosen"]) for row in ROWS])
        return -logps.mean()

    def d2o(self, alpha, beta):
        loss = 0.0
        for row in SAMPLED:
            anchor = sum(self.ratio(row["prompt"], answer) for answer in row["samples"]) / len(row["samples"])
            loss = loss - F.logsigmoid(beta * anchor - alpha * self.ratio(row["prompt"], row["rejected"]))
        return loss / len(SAMPLED)

    def aft(self):
        align = self.pairs(lambda x, good, bad: torch.log1p((self.mean(x, bad).detach() - self.mean(x, good)).exp()))
        return align + self.sft()

    def lipo(self, beta):
        loss = 0.0
        for row in LISTS:
            s = torch.stack([beta * self.ratio(row["prompt"], answer) for answer in row["completions"]])
            rank = (-s.detach()).argsort().argsort() + 1
            for i, j in ((i, j) for i in range(3) for j in range(3) if row["scores"][i] > row["scores"][j]):
                gain = 2 ** row["scores"][i] - 2 ** row["scores"][j]
                delta = gain * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                loss = loss + delta * F.softplus(s[j] - s[i])
        return loss / len(LISTS)

    def kto(self, beta):
        others = [ROWS[(i + 1) % len(ROWS)]["chosen"] for i in range(len(ROWS))]
        ratios = [self.ratio(row["prompt"], other).detach() for row, other in zip(ROWS, others, strict=True)]
        z = max(0.0, sum(ratios).item() / len(ROWS))
        good = sum(1 - torch.sigmoid(beta * (self.ratio(row["prompt"], row["chosen"]) - z)) for row in ROWS)
        bad = sum(1 - torch.sigmoid(beta * (z - self.ratio(row["prompt"], row["rejected"]))) for row in ROWS)
        return (good + bad) / (2 * len(ROWS))


CASES = {
    "redi": ("redi", {"alpha": 0.8}, lambda n: n.redi(0.8)),
    "dpo": ("dpo", {"beta": 0.2}, lambda n: n.dpo(0.2)),
    "dpo with anchor": ("dpo", {"nll_coeff": 0.5}, lambda n: n.dpo(0.1) + 0.5 * n.redi(0.0)),
    "simpo": ("simpo", {}, lambda n: n.simpo(2.0, 1.0)),
    "sft": ("sft", {}, lambda n: n.sft()),
    "kto": ("kto", {}, lambda n: n.kto(0.1)),
    "d2o": ("d2o", {"samples": "offline", "train_dataset": SAMPLED, "alpha": 0.2}, lambda n: n.d2o(0.2, 0.1)),
    "aft": ("aft", {}, lambda n: n.aft()),
    "lipo": ("lipo", {"train_dataset": LISTS}, lambda n: n.lipo(0.05)),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step_equals_the_step_with_full_logits(case, tmp_path):
    method, settings, objective = CASES[case]
    policy, reference = make_model(0), shifted_model()
    naive = copy.deepcopy(policy)
    loss = objective(Naive(naive, reference))
    loss.backward()
    more = {"ref_model": reference} if method in ("dpo", "kto", "d2o", "lipo") else {}
    # KTO's z belongs to the micro-batch; all others must not care how the batch is split
    batch = (6, 1) if method == "kto" else (2, 3)
    trainer = make_trainer(method, tmp_path, model=policy, batch=batch, max_steps=1, **settings, **more)
    trainer.train()
    assert history(trainer, "loss")[0] == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(policy.named_parameters(), naive.parameters(), strict=True):
        expected = theirs.detach() - LR * theirs.grad
        assert torch.allclose(ours.detach(), expected, rtol=1e-5, atol=2e-6 * max(1, theirs.grad.abs().max())), name


def run(method, folder, **settings):
    """(losses, gradient norms, weights) of two steps."""
    trainer = make_trainer(method, folder, max_steps=2, **settings)
    trainer.train()
    return history(trainer, "loss"), history(trainer, "grad_norm"), trainer.model.state_dict()


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1] == pytest.approx(other[1], rel=1e-4)
    for name, value in one[2].items():
        assert torch.allclose(value, other[2][name], atol=1e-6), name


def test_d2o_with_one_sample_is_dpo_with_the_sample_as_winner(tmp_path):
    rows = [{"prompt": row["prompt"], "rejected": row["rejected"], "samples": row["chosen"]} for row in ROWS]
    d2o = run("d2o", tmp_path / "d2o", samples="offline", train_dataset=rows, alpha=0.3, beta=0.3)
    assert_same(d2o, run("dpo", tmp_path / "dpo", beta=0.3))


def test_redi_without_rejected_weight_is_sft_on_sequence_means(tmp_path):
    flat = [row | {"rejected": "Something else entirely."} for row in ROWS]  # must not matter
    assert_same(run("redi", tmp_path / "a", alpha=0.0), run("redi", tmp_path / "b", alpha=0.0, train_dataset=flat))
    one_each = [row | {"chosen": "abcd"} for row in ROWS]  # equal lengths: sequence means and token means agree
    redi = run("redi", tmp_path / "c", alpha=0.0, train_dataset=one_each)
    assert_same(redi, run("sft", tmp_path / "d", train_dataset=one_each))


def test_lipo_on_pairs_is_dpo_times_the_swap_cost(tmp_path):
    swap = (2 - 1) * (1 / math.log(2) - 1 / math.log(3))
    lipo = run("lipo", tmp_path / "lipo", beta=0.1, learning_rate=LR / swap)
    dpo = run("dpo", tmp_path / "dpo", beta=0.1)
    assert [loss / swap for loss in lipo[0]] == pytest.approx(dpo[0], rel=1e-5)
    for name, value in lipo[2].items():
        assert torch.allclose(value, dpo[2][name], atol=1e-6), name


def test_plain_aft_on_pairs_is_the_logistic_loss_of_mean_log_probs(tmp_path):
    aft = run("aft", tmp_path / "aft", variant="plain", sft_weight=0.0)
    assert_same(aft, run("simpo", tmp_path / "simpo", beta=1.0, gamma=0.0))


UNEQUAL = [*ROWS[:4], {"prompt": "Two? ", "chosen": ["Two.", "It is two."], "rejected": ["One.", "Six of them."]}]
SPLIT_CASES = {
    "redi": {"train_dataset": UNEQUAL},
    "dpo": {"train_dataset": UNEQUAL, "nll_coeff": 0.3},
    "sft": {"train_dataset": UNEQUAL},
    "aft": {"train_dataset": UNEQUAL},
    "lipo": {"train_dataset": LISTS[:5], "ref_model": shifted_model()},  # else ranks at step 0 are rounding noise
    "d2o": {"train_dataset": SAMPLED[:5], "samples": "offline"},
    "wpn": {"train_dataset": UNEQUAL},
}


@pytest.mark.parametrize("method", SPLIT_CASES)
def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches(method, tmp_path):
    # five prompts with 4 x 1, 2 x 2, 1 x 4: the last optimiser batch holds one, and prompts have one or four pairs
    settings = SPLIT_CASES[method]
    runs = [run(method, tmp_path, batch=batch, **settings) for batch in ((4, 1), (2, 2), (1, 4))]
    for other in runs[1:]:
        assert_same(runs[0], other)


@pytest.mark.parametrize("method", ["dpo", "wpn"])
def test_a_shared_prompt_gives_the_numbers_of_a_repeated_one(method, tmp_path):
    rows = [row | {"prompt": "A long introduction that all answers share. " + row["prompt"]} for row in UNEQUAL]
    settings = {"train_dataset": rows, "batch": (5, 1)}
    shared = run(method, tmp_path / "shared", share_prompt="always", **settings)
    assert_same(shared, run(method, tmp_path / "repeated", share_prompt="never", **settings))


def test_answers_cut_from_the_end_keep_different_prompts_and_are_not_shared(tmp_path):
    limits = {"max_length": 20, "truncation_mode": "keep_end", "batch": (6, 1)}
    shared = run("dpo", tmp_path / "shared", share_prompt="always", **limits)
    assert_same(shared, run("dpo", tmp_path / "repeated", share_prompt="never", **limits))


def test_step_dpo_equals_its_objective_on_whole_solutions(tmp_path):
    from negpo.objectives import step_dpo_loss

    steps = ["One and one.\n", "That is three.\n", "So: three"]
    row = {"prompt": "1+1? ", "chosen": "Two.", "steps": steps, "values": [0.6, 0.1, 0.1]}
    policy, reference = make_model(0), shifted_model()
    chosen = [naive_logps(model, row["prompt"], row["chosen"])[None] for model in (policy, reference)]
    rejected = [naive_logps(model, row["prompt"], "".join(steps))[None] for model in (policy, reference)]
    ids = torch.tensor([[k for k, step in enumerate(steps) for _ in step] + [2]])  # byte tokenizer: a token a letter
    masks = [torch.ones_like(side[0], dtype=torch.bool) for side in (chosen, rejected)]
    loss, _ = step_dpo_loss(
        chosen[0], masks[0], rejected[0], masks[1], chosen[1], rejected[1], ids, torch.tensor([1]), beta=0.1
    )
    trainer = make_trainer(
        "step_dpo", tmp_path, model=policy, ref_model=reference, train_dataset=[row], batch=(1, 1), max_steps=1
    )
    trainer.train()
    assert history(trainer, "loss")[0] == pytest.approx(loss.item(), rel=1e-5)
    assert history(trainer, "rejected/tokens") == [len(steps[0] + steps[1])]


def test_wpn_pulls_prompts_towards_harmless_answers(tmp_path):
    trainer = make_trainer("wpn", tmp_path, batch=(6, 1), max_steps=8, learning_rate=0.05)
    trainer.train()
    margins = history(trainer, "loss/mean_margin")
    assert margins[-1] > margins[0]
