"""RL and rejected-answer objectives against the numbers of the reference implementations (shared/fixtures/rl)."""

import pytest
import torch
from objectives_support import close, gradient

from negpo.objectives import (
    aft_loss,
    clipped_policy_loss,
    first_pit,
    group_advantages,
    lipo_loss,
    nft_loss,
    ngrpo_advantages,
    nll_loss,
    raft_advantages,
    redi_loss,
    reinforce_rej_advantages,
    resrl_token_weights,
    signed_advantages,
    step_advantages,
    topr_loss,
)

SIGNED = {"positive": (1.0, 0.0), "negative": (0.0, 1.0)}


def assert_case(loss, tensor, case, key="grad_new_logp", rtol=1e-9):
    """Stored numbers have 12 significant digits; the references add 1e-8 or nothing to the token count."""
    close(loss, case["loss"], rtol=rtol, atol=1e-11)
    close(gradient(loss, tensor), case[key], rtol=rtol, atol=1e-11)


def grouped(function, rewards, groups, **settings):
    """Applies a (P, G) advantage function to (N,) rewards whose groups are contiguous blocks of one size."""
    return function(rewards.view(int(groups.max()) + 1, -1), **settings).flatten()


def test_psr_nsr_and_weighted_reinforce_equal_the_release_on_the_rows_it_keeps(rl):
    file = rl("psr_nsr")
    for case in file["cases"]:
        data = rl.dataset(file, case)
        positive, negative = SIGNED.get(case["mode"], (case["lam"], 1.0))
        advantages = signed_advantages(data["rewards"], positive_weight=positive, negative_weight=negative)
        kept = torch.zeros_like(data["mask"])
        kept[case["rows"]] = True
        loss, _ = clipped_policy_loss(data["new"], data["old"], advantages, data["mask"] & kept)
        grad = torch.zeros_like(data["new"])
        stored = torch.tensor(case["grad_new_logp"], dtype=torch.float64)
        grad[: len(stored)] = stored
        close(loss, case["loss"])
        close(gradient(loss, data["new"]), grad, atol=1e-11)


def test_token_mean_within_micro_batches_depends_on_the_split_as_in_verl(rl):
    file = rl("psr_nsr")
    case = file["verl_dynamic_bsz"]
    data = rl.dataset(file, case)
    advantages = signed_advantages(data["rewards"], positive_weight=case["lam"], negative_weight=1.0)
    parts = [
        len(rows)
        / 12
        * clipped_policy_loss(data["new"][rows], data["old"][rows], advantages[rows], data["mask"][rows])[0]
        for rows in case["micro_batches"]
    ]
    assert_case(sum(parts), data["new"], case)
    whole, _ = clipped_policy_loss(data["new"], data["old"], advantages, data["mask"])
    close(whole, case["single_micro_batch_loss"])


def test_logit_gradient_of_one_sampled_token_is_the_score_function(rl):
    case = rl("psr_nsr")["logit_gradient"]
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)[case["sampled"]].view(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for sign in (1.0, -1.0):
        loss, _ = clipped_policy_loss(logp, logp.detach(), torch.tensor([sign]), mask)
        close(gradient(loss, logits), sign * torch.tensor(case["psr_grad_of_minus_logpi"], dtype=torch.float64))


def test_grpo_and_ngrpo_advantages_losses_and_gradients_equal_the_release(rl):
    file = rl("ngrpo")
    for case in file["cases"]:
        data = rl.dataset(file, case)
        if case["virtual_samples"] is None:
            advantages = grouped(group_advantages, data["rewards"], data["groups"])
        else:
            advantages = grouped(ngrpo_advantages, data["rewards"], data["groups"], n_virtual=case["virtual_samples"])
        close(advantages, case["seq_advantage"])
        loss, _ = clipped_policy_loss(
            data["new"],
            data["old"],
            advantages,
            data["mask"],
            clip_low=case["clip_low"],
            clip_high=case["clip_high"],
        )
        assert_case(loss, data["new"], case)


def test_advantage_tables_equal_the_release_for_every_count_of_correct_answers(rl):
    for row in rl("ngrpo")["advantage_tables"]:
        size, count = row["G"], row["n_correct"]
        rewards = (torch.arange(size) < count).double().unsqueeze(0)
        results = {
            "grpo": group_advantages(rewards),
            "ngrpo_k1": ngrpo_advantages(rewards),
            "ngrpo_k2": ngrpo_advantages(rewards, n_virtual=2),
        }
        for name, advantages in results.items():
            if count > 0:
                close(advantages[0, 0], row[name]["correct"])
            if count < size:
                close(advantages[0, -1], row[name]["wrong"])


def test_groups_of_one_keep_their_reward(rl):
    case = rl("ngrpo")["singleton_groups"]
    rewards = torch.tensor(case["rewards"], dtype=torch.float64).unsqueeze(-1)
    close(ngrpo_advantages(rewards).flatten(), case["advantages"])
    close(group_advantages(rewards).flatten(), case["advantages"])


def test_raft_and_reinforce_rej_equal_the_release(rl):
    file = rl("raft_reinforce_rej")
    for case in file["cases"]:
        data = rl.dataset(file, case)
        rewards = data["rewards"] if case["reward_scale"] == "01" else 2 * data["rewards"] - 1
        function = reinforce_rej_advantages if case["name"] == "reinforce_rej" else raft_advantages
        advantages = grouped(function, rewards, data["groups"])
        close(advantages, case["seq_advantage"])
        if case["name"] == "raft":  # plain NLL on the kept rows over the tokens of all rows
            kept = data["mask"] & (advantages > 0).unsqueeze(-1)
            loss = nll_loss(data["new"], kept)[0] * kept.sum() / data["mask"].sum()
        else:
            loss, _ = clipped_policy_loss(data["new"], data["old"], advantages, data["mask"], dual_clip=3.0)
        assert_case(loss, data["new"], case)


def test_redi_equals_the_release_on_both_halves_of_the_pairs(rl):
    file = rl("redi")
    stored = file["inputs"]
    masks = [torch.tensor(stored[f"{side}_mask"]).bool() for side in ("chosen", "rejected")]
    for case in file["cases"]:
        if case["unpublished_neg_weighting"]:
            continue  # a switch that is off in the release and absent from the paper
        chosen, rejected = (
            torch.tensor(stored[f"{side}_logp"], dtype=torch.float64, requires_grad=True)
            for side in ("chosen", "rejected")
        )
        loss, _ = redi_loss(chosen, masks[0], rejected, masks[1], alpha=case["alpha_rejected"])
        assert_case(loss, chosen, case, "grad_chosen_logp")
        assert_case(loss, rejected, case, "grad_rejected_logp")


WEIGHTING = {0: "none", 1: "one_minus_rate", 2: "sqrt_odds"}


def _nft(case, data, **changes):
    settings = {
        "eps": case["clamp_neg"],
        "negative_weight": case["neg_weight"],
        "weighting": WEIGHTING[case["normalize"]],
    } | changes
    rate = torch.tensor(case["group_rate"], dtype=torch.float64)
    if case["ratio_type"] == "token":
        return nft_loss(data["new"], data["old"], data["mask"], data["rewards"], rate, **settings)[0]
    # Sequence mode: the full-product ratio is the ratio of one "token" whose log-prob is the sequence's sum.
    sums = [torch.where(data["mask"], data[key], 0.0).sum(-1, keepdim=True) for key in ("new", "old")]
    one = data["mask"].any(-1, keepdim=True)
    return nft_loss(*sums, one, data["rewards"], rate, length=1, **settings)[0]


def test_nft_equals_the_release_in_token_and_in_sequence_mode(rl):
    file = rl("nft")
    for case in file["cases"]:
        data = rl.dataset(file, case)
        assert_case(_nft(case, data), data["new"], case)


def test_nft_sequence_mode_gives_the_intended_value_where_the_release_fails_on_shapes(rl):
    # The release multiplies a (B,) loss by a (B, T) weight, which raises for B != T and broadcasts silently for B == T.
    file = rl("nft")
    case = next(
        c for c in file["cases"] if c["ratio_type"] == "sequence" and c["clamp_neg"] == 1 and c["policy"] == "off"
    )
    loss = _nft(case, rl.dataset(file, case), weighting="one_minus_rate")
    close(loss, file["sequence_normalize_bug"]["intended_loss_normalize_1_eps_1"])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_resrl_weights_equal_exact_svd_and_nearly_the_randomised_release(index, rl):
    file = rl("resrl")
    case = file["cases"][index]
    data = rl.dataset(file, case)
    positive = data["rewards"] > 0
    weights = resrl_token_weights(
        torch.tensor(case["hidden"], dtype=torch.float64),
        data["mask"],
        positive,
        data["groups"],
        rank=case["rank"],
        quantiles=(case["q_low"], case["q_high"]),
        min_weight=case["min_weight"],
    )
    close(weights, case["token_weights_exact"], rtol=1e-9, atol=1e-9)
    close(weights, case["token_weights_reference"], rtol=0, atol=1e-4)

    grpo = grouped(group_advantages, data["rewards"], data["groups"])
    close(grpo, case["grpo_seq_advantage"])
    scale = torch.where(positive.unsqueeze(-1), case["pos_weight"], weights)
    for policy, stored in case["loss"].items():
        data = rl.dataset(file, case | {"policy": policy})
        loss, _ = clipped_policy_loss(data["new"], data["old"], grpo.unsqueeze(-1) * scale, data["mask"], dual_clip=3.0)
        assert_case(loss, data["new"], stored, rtol=1e-5)  # the stored losses use the float32 randomised weights


def test_dual_clip_and_aggregations_equal_the_release(rl):
    file = rl("resrl")
    contrast, modes = file["dual_clip_contrast"], file["aggregation_modes"]
    data = rl.dataset(file, contrast)
    advantages = grouped(group_advantages, data["rewards"], data["groups"])

    def run(**settings):
        return clipped_policy_loss(data["new"], data["old"], advantages, data["mask"], **settings)[0]

    width = data["mask"].shape[1]
    expected = [
        (run(dual_clip=3.0), contrast["with_dual_clip_loss"], contrast["with_dual_clip_grad"]),
        (run(), contrast["without_dual_clip_loss"], contrast["without_dual_clip_grad"]),
        (run(dual_clip=3.0, reduction="sequence_mean"), *modes["seq-mean-token-mean"].values()),
        (run(dual_clip=3.0, reduction="constant", length=12), *modes["seq-mean-token-sum"].values()),
        (run(dual_clip=3.0, reduction="constant", length=width), *modes["seq-mean-token-sum-norm"].values()),
    ]
    for loss, value, grad in expected:
        close(loss, value, rtol=1e-9)
        close(gradient(loss, data["new"]), grad, rtol=1e-9, atol=1e-11)


def test_topr_equals_the_sequence_ratio_of_the_paper_and_differs_from_the_token_ratio_of_a_port(rl):
    file = rl("topr")
    for case in file["cases"]:
        data = rl.dataset(file, case)
        loss, _ = topr_loss(data["new"], data["old"], data["mask"], 2 * data["rewards"] - 1)
        if case["ratio"] == "sequence" or case["policy"] == "on":
            assert_case(loss, data["new"], case)
        else:
            assert abs(loss.item() - case["loss"]) > 1e-3


def test_lipo_equals_its_closed_form(rl):
    case = rl("offline_lipo_aft_stepdpo")["lipo"]
    policy = torch.tensor(case["policy_seq_logp"], dtype=torch.float64).view(1, -1, 1).requires_grad_()
    ref = torch.tensor(case["ref_seq_logp"], dtype=torch.float64).view(1, -1, 1)
    psi = torch.tensor(case["psi"], dtype=torch.float64).unsqueeze(0)
    loss, _ = lipo_loss(policy, ref, torch.ones_like(ref, dtype=torch.bool), psi, beta=case["beta"])
    close(loss, case["loss"])
    close(gradient(loss, policy).flatten() / case["beta"], case["grad_scores"], rtol=1e-8)


@pytest.mark.parametrize("variant", ["plain", "detached", "boundary"])
def test_aft_equals_its_closed_forms(variant, rl):
    file = rl("offline_lipo_aft_stepdpo")["aft"]
    case = next(c for c in file["cases"] if c["name"] == variant)
    logps = torch.tensor(file["token_logp"], dtype=torch.float64).unsqueeze(0).requires_grad_()
    mask, positive = torch.tensor(file["mask"]).bool().unsqueeze(0), torch.tensor(file["positive"]).bool().unsqueeze(0)
    loss, stats = aft_loss(logps, mask, positive, variant=variant, beta=file["beta"], sft_weight=0.0)
    close(loss, case["align_loss"])
    close(stats["align_loss"], case["align_loss"])
    close(gradient(loss, logps)[0], case["grad_token_logp"], rtol=1e-9, atol=1e-11)


def test_step_values_give_the_stored_advantages_and_first_pit(rl):
    case = rl("offline_lipo_aft_stepdpo")["step_dpo"]
    values = torch.tensor([case["q_values_after_each_step"]], dtype=torch.float64)
    prompt = torch.tensor([case["q_of_prompt"]], dtype=torch.float64)
    close(step_advantages(values, prompt)[0], case["advantages"])
    assert first_pit(values).item() == case["first_pit_step_index_min_q"]
