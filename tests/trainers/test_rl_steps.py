"""Weights after real optimiser steps of every reinforcement-learning trainer, against full logits and identities."""

import math

import pytest
import torch
from rl_tiny import (
    MIXED,
    ScriptedEngine,
    change,
    history,
    make_policy_trainer,
    naive_logps,
    naive_rows,
    naive_step,
    vector,
    weights,
)
from unlearn_tiny import make_model

from negpo.objectives import clipped_policy_loss, group_advantages
from negpo.trainers import PolicyTrainer

BATCH = {"batch": (4, 4)}  # four groups of four rows in one optimiser step
CONSTANT = {"normalizer": "constant", "normalizer_length": 10.0}


def agree(left, right, tolerance=1e-6):
    scale = max(1.0, left.abs().max().item())
    assert (left - right).abs().max().item() <= tolerance * scale
    assert left.abs().max() > 1e-4, "nothing moved, the comparison shows nothing"


def test_nsr_is_the_gradient_of_the_mean_log_prob_of_wrong_answers(tmp_path):
    """On-policy dl/dlp = +1/n over the n tokens of wrong rows: right rows count nowhere."""
    model = make_model()
    wrong = [row for row in naive_rows() if "+" not in row[3]]
    logps = torch.cat([naive_logps(model, row) for row in wrong])
    start = vector(model)
    naive_step(model, logps.mean())
    agree(change("nsr", tmp_path, **BATCH), vector(model) - start)


def test_two_updates_use_the_log_probs_of_the_rollout_and_clip(tmp_path):
    """Groups 0, 2 train in the first step, 1, 3 in the second, whose ratios are against the starting model."""
    model, start = make_model(), vector(make_model())
    settings = {"learning_rate": 0.5, "epsilon": 0.02, "epsilon_high": 0.02}
    rows = naive_rows()
    with torch.no_grad():
        old = [naive_logps(model, row) for row in rows]
    for update in range(2):
        chosen = [i for i, row in enumerate(rows) if row[2] % 2 == update]
        advantages = [0.1 if "+" in rows[i][3] else -1.0 for i in chosen]
        terms = []
        for i, advantage in zip(chosen, advantages, strict=True):
            ratio = (naive_logps(model, rows[i]) - old[i]).exp()
            terms.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.98, 1.02)))
        naive_step(model, torch.cat(terms).mean(), 0.5)
    trainer = make_policy_trainer(
        "nsr", tmp_path, batch=(4, 2), preset="w_reinforce", updates_per_rollout=2, max_steps=2, **settings
    )
    trainer.train()
    agree(weights(trainer) - start, vector(model) - start, 1e-5)
    assert history(trainer, "negative/ratio")[0] == pytest.approx(1.0)
    assert history(trainer, "positive/clip_share")[1] > 0


def test_w_reinforce_is_nsr_plus_a_tenth_of_psr(tmp_path):
    """With one divisor for all; token means differ by their token counts, which is checked as well."""
    both, negative, positive = (
        change("nsr", tmp_path, preset=preset, **BATCH, **CONSTANT) for preset in ("w_reinforce", "nsr", "psr")
    )
    agree(both, negative + 0.1 * positive)
    tokens = [len(row[0]) - row[1] for row in naive_rows()]
    right = sum(n for n, row in zip(tokens, naive_rows(), strict=True) if "+" in row[3])
    share = 1 - right / sum(tokens)
    mean = {p: change("nsr", tmp_path, preset=p, **BATCH) for p in ("w_reinforce", "nsr", "psr")}
    agree(mean["w_reinforce"], share * mean["nsr"] + 0.1 * (1 - share) * mean["psr"])


def test_ngrpo_moves_on_a_batch_of_wrong_answers_where_grpo_does_not(tmp_path):
    wrong = ScriptedEngine([("a", "bb", "c", "dd")])
    assert change("grpo", tmp_path, engine=wrong, **BATCH).abs().max() == 0
    assert change("ngrpo", tmp_path, engine=wrong, **BATCH).abs().max() > 1e-3


def test_ngrpo_without_a_virtual_answer_is_grpo(tmp_path):
    agree(change("ngrpo", tmp_path, n_virtual=0, **BATCH), change("grpo", tmp_path, **BATCH))


def test_nft_on_policy_has_the_gradient_of_dr_grpo(tmp_path):
    """R = 1: weight 1 - r on right answers, -r on wrong ones, which is the reward minus its group's mean."""
    settings = BATCH | CONSTANT | {"updates_per_rollout": 1}
    agree(change("nft", tmp_path, **settings), change("grpo", tmp_path, variant="dr_grpo", **settings))


def test_nft_on_policy_with_square_root_weights_is_grpo_with_population_std(tmp_path):
    settings = BATCH | CONSTANT | {"updates_per_rollout": 1}
    expected = change("grpo", tmp_path, advantage_std="population", advantage_eps=0.0, **settings)
    agree(change("nft", tmp_path, weighting="sqrt_odds", **settings), expected)


def test_raft_and_raft_plus_plus_agree_on_policy_and_part_off_policy(tmp_path):
    agree(change("raft", tmp_path, variant="raft", **BATCH), change("raft", tmp_path, **BATCH))
    off = {"updates_per_rollout": 2, "max_steps": 2, "batch": (4, 2)}
    off |= {"engine": ScriptedEngine([("a+", "bb+", "c", "d")])}
    plain, clipped = (change("raft", tmp_path, variant=variant, **off) for variant in ("raft", "raft++"))
    assert (plain - clipped).abs().max() > 1e-4


def test_raft_divides_by_the_tokens_of_wrong_answers_too(tmp_path):
    model, start = make_model(), vector(make_model())
    rows = naive_rows()
    logps = torch.cat([naive_logps(model, row) for row in rows if "+" in row[3]])
    naive_step(model, -logps.sum() / sum(len(row[0]) - row[1] for row in rows))
    agree(change("raft", tmp_path, **BATCH), vector(model) - start)


def test_topr_on_policy_is_reinforce_with_sequence_means(tmp_path):
    reinforce = change("nsr", tmp_path, positive_weight=1.0, normalizer="sequence_mean", **BATCH)
    agree(change("topr", tmp_path, **BATCH), reinforce)


def test_reinforce_rej_is_reinforce_on_mixed_groups_only(tmp_path):
    mixed = ScriptedEngine(MIXED[:2])
    settings = {"engine": mixed, "batch": (4, 2)}
    agree(change("reinforce_rej", tmp_path, **settings), change("nsr", tmp_path, positive_weight=1.0, **settings))
    assert change("reinforce_rej", tmp_path, engine=ScriptedEngine(MIXED[2:]), batch=(4, 2)).abs().max() == 0


def test_resrl_with_all_weights_one_is_grpo_with_dual_clip(tmp_path):
    settings = {"batch": (4, 2), "updates_per_rollout": 2, "max_steps": 2, "delta": 3.0}
    expected = change("grpo", tmp_path, **settings)
    agree(change("resrl", tmp_path, min_weight=1.0, positive_weight=1.0, **settings), expected)


def test_resrl_spares_some_tokens_of_wrong_answers(tmp_path):
    settings = BATCH | {"positive_weight": 1.0}
    sparing = change("resrl", tmp_path, min_weight=0.0, **settings)
    assert (sparing - change("resrl", tmp_path, min_weight=1.0, **settings)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["grpo", "nsr", "nft", "topr", "resrl"])
def test_accumulation_does_not_change_the_step(tmp_path, method):
    splits = ((16, 1), (4, 4), (2, 8), (1, 16))
    steps = [change(method, tmp_path, updates_per_rollout=1, batch=batch) for batch in splits]
    for other in steps[1:]:
        agree(steps[0], other, 2e-6)


@pytest.mark.parametrize("normalizer", ["token_mean", "sequence_mean", "max_length", "constant"])
def test_leaving_rows_without_gradient_out_changes_nothing(tmp_path, normalizer):
    """Groups 2 and 3 are all wrong and all right: half of the rows."""
    settings = BATCH | {"normalizer": normalizer}
    sparse = make_policy_trainer("grpo", tmp_path, **settings)
    full = make_policy_trainer("grpo", tmp_path, drop_zero_rows=False, **settings)
    start = weights(sparse)
    gradients = []
    for trainer in (sparse, full):
        trainer.train()
        gradients.append(weights(trainer) - start)
    agree(*gradients)
    assert (history(sparse, "rows/trained"), history(full, "rows/trained")) == ([8], [16])


def test_a_step_without_any_live_row_still_applies_momentum_and_decay(tmp_path):
    """Its gradient is zero, not missing: AdamW moves on as it does when all rows are run."""
    settings = {"engine": ScriptedEngine([MIXED[0], MIXED[2]]), "batch": (4, 1), "updates_per_rollout": 2}
    settings |= {"max_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-2}
    sparse = change("grpo", tmp_path, **settings)
    agree(sparse, change("grpo", tmp_path, drop_zero_rows=False, **settings))
    assert (sparse - change("grpo", tmp_path, **settings | {"max_steps": 1})).abs().max() > 1e-4


def test_max_length_is_dr_grpos_divisor_and_constant_is_nfts(tmp_path):
    length = 4 * 4 * 8  # rows times max_completion_length
    constant = {"normalizer": "constant", "normalizer_length": float(length)}
    agree(change("grpo", tmp_path, **BATCH, normalizer="max_length"), change("grpo", tmp_path, **BATCH, **constant))


def test_micro_batch_means_depend_on_the_packing_as_in_the_papers_code(tmp_path):
    settings = {"normalizer": "micro_batch_token_mean"}
    steps = [change("grpo", tmp_path, batch=batch, **settings) for batch in ((16, 1), (4, 4))]
    agree(steps[0], change("grpo", tmp_path, batch=(16, 1), dead_groups="drop"))  # one micro-batch: a token mean
    assert (steps[0] - steps[1]).abs().max() > 1e-4


def test_unknown_verdicts_carry_no_gradient_and_leave_the_group(tmp_path):
    """A group of a right, a wrong and two unknown answers has the statistics of two."""
    engine = ScriptedEngine([("a+", "bb", "c?", "d?")])
    model, start = make_model(), vector(make_model())
    rows = [row for row in naive_rows([("a+", "bb", "c?", "d?")]) if "?" not in row[3]]
    advantages = group_advantages(torch.tensor([[1.0, 0.0]]))[0]
    logps = [naive_logps(model, row) for row in rows]
    total = sum((-a * lp).sum() for a, lp in zip(advantages, logps, strict=True))
    naive_step(model, total / sum(map(len, logps)))
    trainer = make_policy_trainer("grpo", tmp_path, engine=engine, batch=(4, 1))
    trainer.train()
    agree(weights(trainer) - start, vector(model) - start)
    assert history(trainer, "rows/unknown") == [0.5]


def test_dead_groups_are_counted_and_dropped_from_the_normaliser_on_request(tmp_path):
    kept = make_policy_trainer("grpo", tmp_path, **BATCH)
    kept.train()
    found = [history(kept, f"groups/{name}")[0] for name in ("all_right", "all_wrong", "dead")]
    assert found == [0.25, 0.25, 0.5]
    tokens = [len(row[0]) - row[1] for row in naive_rows()]
    ratio = sum(tokens) / sum(tokens[:8])
    agree(ratio * change("grpo", tmp_path, **BATCH), change("grpo", tmp_path, dead_groups="drop", **BATCH))


def test_dead_groups_are_replaced_by_other_prompts(tmp_path):
    """Groups 2 and 3 are dead; the extra round's groups 0 and 1 take their places."""
    engine = ScriptedEngine()
    trainer = make_policy_trainer("grpo", tmp_path, engine=engine, dead_groups="resample", **BATCH)
    trainer.train()
    assert [len(call) for call in engine.calls] == [4, 2]
    assert history(trainer, "groups/resampled") == [0.5]
    assert history(trainer, "rows/trained") == [16]


def test_ngrpo_resamples_only_groups_that_are_all_right(tmp_path):
    engine = ScriptedEngine()
    make_policy_trainer("ngrpo", tmp_path, engine=engine, dead_groups="resample", **BATCH).train()
    assert [len(call) for call in engine.calls] == [4, 1]


def test_own_functions_of_rewards_or_log_probs_reproduce_the_methods(tmp_path):
    def advantages(rewards, groups):
        return torch.where(rewards > 0.5, 0.1, -1.0)

    def loss(logps, old_logps, advantages, mask):
        return clipped_policy_loss(logps, old_logps, advantages, mask)

    expected = change("nsr", tmp_path, preset="w_reinforce", **BATCH)
    agree(change(PolicyTrainer, tmp_path, advantages=advantages, **BATCH), expected)
    agree(change(PolicyTrainer, tmp_path, advantages=advantages, loss=loss, **BATCH), expected)


@pytest.mark.parametrize("corrected", [True, False])
def test_entropy_bonus_and_kl_term_have_the_gradient_of_full_logits(tmp_path, corrected):
    """Second step of two: at the first one policy and reference agree and the KL term has no gradient."""
    model, start = make_model(), vector(make_model())
    model.save_pretrained(tmp_path / "start")
    rows = naive_rows(MIXED[:2])
    with torch.no_grad():
        old = [naive_logps(model, row) for row in rows]
    for update in range(2):
        chosen = [i for i, row in enumerate(rows) if row[2] == update]
        terms = []
        for i in chosen:
            ids, prompt_length, _, text = rows[i]
            logits = model(input_ids=torch.tensor([ids])).logits[0, prompt_length - 1 : -1].float().log_softmax(-1)
            logps = logits.gather(1, torch.tensor(ids[prompt_length:]).unsqueeze(1)).squeeze(1)
            entropy, gap = -(logits.exp() * logits).sum(-1), old[i] - logps
            advantage = 1.0 if "+" in text else -1.0
            ratio = (logps - old[i]).exp()
            divergence = (gap.exp() - gap - 1) * (ratio if corrected else 1.0)
            terms.append(-advantage * ratio + 0.3 * divergence - 0.2 * entropy)
        naive_step(model, torch.cat(terms).mean(), 0.1)
    settings = {"positive_weight": 1.0, "beta": 0.3, "entropy_coef": 0.2, "epsilon": 1.0, "epsilon_high": 9.0}
    settings |= {"updates_per_rollout": 2, "max_steps": 2, "learning_rate": 0.1, "use_bias_correction_kl": corrected}
    trainer = make_policy_trainer("nsr", tmp_path, model=str(tmp_path / "start"), batch=(4, 1), **settings)
    trainer.train()
    agree(weights(trainer) - start, vector(model) - start, 1e-5)


def test_displacement_is_the_change_of_right_answers_log_probs(tmp_path):
    trainer = make_policy_trainer("nsr", tmp_path, max_steps=2, learning_rate=0.5, **BATCH)
    right = [row for row in naive_rows() if "+" in row[3]]
    with torch.no_grad():
        before = torch.cat([naive_logps(trainer.model, row) for row in right])
    state = {}

    def remember(model):
        with torch.no_grad():
            state["after"] = torch.cat([naive_logps(model, row) for row in right])

    from transformers import TrainerCallback

    class AfterFirstStep(TrainerCallback):
        def on_step_end(self, args, state_, control, model=None, **kwargs):
            if state_.global_step == 1:
                remember(model)

    trainer.add_callback(AfterFirstStep())
    trainer.train()
    expected = (state["after"] - before).mean().item()
    assert math.isclose(history(trainer, "displacement/correct")[0], expected, abs_tol=1e-5)


LONG = [{"prompt": "example: 1 and 1 is 2. " * 3 + text} for text in ("one", "two words", "three", "4?")]


@pytest.mark.parametrize("method", ["nsr", "grpo", "nft"])
def test_a_prompt_that_is_run_once_for_its_group_gives_the_same_update(method, tmp_path):
    """Forward and backward: the change of the weights is minus the gradient."""
    settings = {"data": LONG, "batch": (8, 2), "updates_per_rollout": 1, "log_entropy": True}
    plain = change(method, tmp_path / "plain", share_prompt="never", **settings)
    shared = change(method, tmp_path / "shared", share_prompt="always", **settings)
    assert plain.norm() > 1e-3
    assert (shared - plain).norm() < 1e-6 * plain.norm() * 10


def test_micro_batches_keep_groups_together_where_prompts_are_shared(tmp_path):
    trainer = make_policy_trainer("grpo", tmp_path, data=LONG, batch=(8, 2), share_prompt="always")
    seen = []
    forward = trainer.scorer.forward
    trainer.scorer.forward = lambda model, batch, **how: seen.append(batch) or forward(model, batch, **how)
    trainer.train()
    trained = [batch["group"].tolist() for batch in seen if "advantages" in batch]
    assert trained
    assert all(len(set(groups)) <= 2 for groups in trained)


def test_groups_that_do_not_fill_micro_batches_are_not_given_more_of_them(tmp_path):
    trainer = make_policy_trainer("grpo", tmp_path, data=LONG, batch=(6, 2), num_generations=4, share_prompt="always")
    trainer.train()
    assert trainer.state.global_step == 1
