"""What papers lead one to expect of the runs of `negpo demo rlvr`: inequalities with bounds, and how they came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from negpo.eval.bootstrap import Floats, estimate
from negpo.lab.claims import Claim, Part
from negpo.lab.rlvr_estimates import (
    BASE,
    GROUP,
    Results,
    all_wrong_shares,
    area_values,
    change_values,
    compare,
    drop_values,
    entropy_against,
    entropy_at_equal_accuracy,
    fall_at_accuracy_of,
    first_and_last,
    pass_values,
    rollout_mean,
)

KEPT_ENTROPY = 0.8  # share of the entropy before training that counts as kept
LOSS_MARGIN = 0.02  # pass@k below which a loss is not told from none


def claims(results: Results) -> list[Claim]:
    """The claims whose methods were all run."""
    needed = (
        (_entropy_claim, {"psr", "nsr"}),
        (_all_wrong_claim, {"ngrpo", "grpo"}),
        (_displacement_claim, {"resrl", "nsr"}),
    )
    return [claim(results) for claim, names in needed if names <= set(results.names)]


def _entropy_claim(results: Results) -> Claim:
    k = results.ks[-1]
    parts = (
        Part("NSR's entropy per token, share of before", entropy_against(results, "nsr", BASE), KEPT_ENTROPY, True),
        Part("NSR's entropy per token as a multiple of PSR's", entropy_against(results, "nsr", "psr"), 1.0, True),
        Part(
            f"pass@{k}, NSR minus before (no loss beyond {LOSS_MARGIN})",
            compare(results, "nsr", BASE, lambda run: pass_values(run, [k])),
            -LOSS_MARGIN,
            True,
        ),
        Part(f"pass@{k}, PSR minus NSR", compare(results, "psr", "nsr", lambda run: pass_values(run, [k])), 0.0, False),
    )
    wordings = float(np.mean([run["right_answers_per_problem"] for run in results.runs(BASE)]))
    complete = {name: first_and_last(results, name, "complete") for name in ("psr", "nsr")}
    shares = ", ".join(f"{results.title(name)} {a:.0%} to {b:.0%}" for name, (a, b) in complete.items())
    different = GROUP * first_and_last(results, "nsr", "distinct")[0]
    notes = (
        "Rewards of 1 and 0 and of 0 and -1 differ by a constant baseline, so on-policy their expected gradients are "
        "equal up to scale. What tells PSR from NSR is how a group treats answers it did not draw, and a group of "
        f"{GROUP} holds {different:.1f} different answers here at first: little is left undrawn.",
        f"A question has {wordings:.1f} different right answers here (among the samples of before), so whoever becomes "
        "right must lose most of the entropy. At equal accuracy of the rollouts NSR's entropy was "
        f"{entropy_at_equal_accuracy(results, 'nsr', 'psr'):.2f} times PSR's.",
        f"Answers that carry out every operation, first to last rollouts: {shares}. On the hardest levels "
        "only those are right, so both signs of the gradient lead to them.",
    )
    return Claim(f"NSR keeps entropy and pass@{k}, PSR loses both (arXiv 2506.01347)", parts, notes)


def _all_wrong_claim(results: Results) -> Claim:
    shares = all_wrong_shares(results)
    level = max(shares, key=lambda name: shares[name])
    ks = results.ks
    measures: dict[str, Callable[[Any], Floats]] = {
        "area under pass@k": lambda run: area_values(run, ks, level),
        "pass@1": lambda run: pass_values(run, [1], level),
        f"pass@{ks[-1]}": lambda run: pass_values(run, [ks[-1]], level),
    }
    parts = tuple(
        Part(f"{level}, {title}: NGRPO minus GRPO", compare(results, "ngrpo", "grpo", values), 0.0, True)
        for title, values in measures.items()
    )
    rollouts = [rollout_mean(results, name, "all_wrong", level) for name in ("grpo", "ngrpo")]
    size = min(GROUP, ks[-1])
    notes = (
        f"On {level.lower()} a group of {size} holds no right answer in {shares[level]:.0%} of the cases before "
        f"training, and over training in {rollouts[0]:.0%} (GRPO) and {rollouts[1]:.0%} (NGRPO). GRPO learns nothing "
        "from those.",
    )
    return Claim("NGRPO beats GRPO where groups are all wrong (arXiv 2509.18851)", parts, notes)


def _displacement_claim(results: Results) -> Claim:
    parts = (
        Part(
            "fall of right answers' log-prob (nats per answer), ResRL minus NSR",
            compare(results, "resrl", "nsr", drop_values),
            0.0,
            False,
        ),
    )
    names = [name for name in ("nsr", "w_reinforce", "resrl") if name in results.names]
    kinds: dict[str, Callable[[Any], Floats]] = {
        "right answers that carry out every operation": lambda run: change_values(run, "complete"),
        "those that stop early and are right all the same": lambda run: change_values(run, "partial"),
    }
    notes = (
        f"Fall: {_listed(results, names, drop_values, '{:.2f}')}.",
        *(f"Mean change of {title}: {_listed(results, names, values, '{:+.2f}')}." for title, values in kinds.items()),
        "At equal accuracy: when NSR's rollouts first were as right as ResRL's at its end, NSR's answers had fallen by "
        f"{fall_at_accuracy_of(results, 'nsr', 'resrl'):.2f}, ResRL's by "
        f"{fall_at_accuracy_of(results, 'resrl', 'resrl'):.2f} (mean over all answers).",
        "ResRL also rewards right answers with weight 0.1, as W-REINFORCE does, so that line is the fairer comparison.",
    )
    return Claim("ResRL displaces right answers less than NSR (arXiv 2605.00380)", parts, notes)


def _listed(results: Results, names: Sequence[str], values: Callable[[Any], Floats], form: str) -> str:
    """`NSR 0.10 (0.08 to 0.12), ...` of the first column of `values`."""
    found = {name: estimate([values(run) for run in results.runs(name)]) for name in names}
    return ", ".join(f"{results.title(name)} {one.text(form)}" for name, one in found.items())
