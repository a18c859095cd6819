"""What papers lead one to expect of the runs of `negpo demo rlvr`: inequalities with bounds, and how they came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from negpo.eval.bootstrap import Estimate, Floats, estimate
from negpo.lab.claims import Claim, Part
from negpo.lab.rlvr_estimates import (
    BASE,
    GROUP,
    Results,
    all_wrong_shares,
    area_values,
    change_values,
    compare,
    distinct_values,
    drop_values,
    entropy_against,
    entropy_at_equal_accuracy,
    fall_at_accuracy_of,
    first_and_last,
    gap_of_losses,
    loss_by_errors,
    pass_values,
    rollout_mean,
)

KEPT_ENTROPY = 0.8  # share of the entropy before training that counts as kept
LOSS_MARGIN = 0.02  # pass@k below which a loss is not told from none


def claims(results: Results) -> list[Claim]:
    """The claims whose methods were all run."""
    needed: list[tuple[Callable[[Results], Claim], set[str]]] = [
        (_entropy_claim, {"psr", "nsr"}),
        (_all_wrong_claim, {"ngrpo", "grpo"}),
        (_displacement_claim, {"resrl", "nsr"}),
    ]
    if results.world == "countdown":
        needed.append((_weighted_claim, {"w_reinforce", "psr", "nsr"}))
    found = [claim(results) for claim, names in needed if names <= set(results.names)]
    errors = dict.fromkeys(name.partition("-")[2] for name in results.noisy if name.startswith(("psr", "nsr")))
    return found + [_errors_claim(results, error) for error in errors if {"psr", "nsr"} <= set(results.names)]


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
    different = GROUP * first_and_last(results, "nsr", "distinct")[0]
    complete = {name: first_and_last(results, name, "complete") for name in ("psr", "nsr")}
    shares = ", ".join(f"{results.title(name)} {a:.0%} to {b:.0%}" for name, (a, b) in complete.items())
    notes = (
        "Rewards of 1 and 0 and of 0 and -1 differ by a constant baseline, so on-policy their expected gradients are "
        "equal up to scale. What tells PSR from NSR is how a group treats answers it did not draw, and a group of "
        f"{GROUP} holds {different:.1f} different answers here at first.",
        f"{_room_for_entropy(results)} At equal accuracy of the rollouts NSR's entropy was "
        f"{entropy_at_equal_accuracy(results, 'nsr', 'psr'):.2f} times PSR's.",
        f"Answers that {results.style}, first to last rollouts: {shares}.",
    )
    return Claim(f"NSR keeps entropy and pass@{k}, PSR loses both (arXiv 2506.01347)", parts, notes)


def _room_for_entropy(results: Results) -> str:
    """Whether a policy can be right in many ways."""
    if results.world == "countdown":
        names = [name for name in (BASE, "psr", "nsr") if name in results.names]
        different = _listed(results, names, distinct_values, "{:.1f}")
        return f"Different right answers among the samples of a question: {different}."
    wordings = float(np.mean([run["right_answers_per_problem"] for run in results.runs(BASE)]))
    return (
        f"A question has {wordings:.1f} different right answers here (among the samples of before), so whoever becomes "
        "right must lose most of the entropy. On the hardest levels only complete answers are right, so both signs of "
        "the gradient lead to them."
    )


def _weighted_claim(results: Results) -> Claim:
    """Table 1 of the paper: the best pass@1 of the three, and nearly NSR's pass@256."""
    k = results.ks[-1]

    def gap(other: str, at: int) -> Estimate:
        return compare(results, "w_reinforce", other, lambda run: pass_values(run, [at]))

    parts = (
        Part(f"pass@1, W-REINFORCE minus PSR (no loss beyond {LOSS_MARGIN})", gap("psr", 1), -LOSS_MARGIN, True),
        Part("pass@1, W-REINFORCE minus NSR", gap("nsr", 1), 0.0, True),
        Part(f"pass@{k}, W-REINFORCE minus PSR", gap("psr", k), 0.0, True),
        Part(f"pass@{k}, W-REINFORCE minus NSR (no loss beyond {LOSS_MARGIN})", gap("nsr", k), -LOSS_MARGIN, True),
    )
    return Claim(f"W-REINFORCE has PSR's pass@1 and NSR's pass@{k} (arXiv 2506.01347)", parts)


def _errors_claim(results: Results, error: str) -> Claim:
    """No paper's claim: wrong answers called right mislead who learns from right ones, and the other way round."""
    false_positives = error.startswith("fp")
    first, second = ("psr", "nsr") if false_positives else ("nsr", "psr")
    titles = [results.title(name) for name in (first, second)]
    text = f"pass@1 lost, {titles[0]} minus {titles[1]}"
    parts = (Part(text, gap_of_losses(results, first, second, error), 0.0, True),)
    lost = {
        name: loss_by_errors(results, name, error).text()
        for name in results.names
        if f"{name}-{error}" in results.noisy
    }
    notes = ("pass@1 lost: " + ", ".join(f"{results.title(name)} {text}" for name, text in lost.items()) + ".",)
    kind = "false positives" if false_positives else "false negatives"
    return Claim(f"{error.lstrip('fpn')} % {kind} cost {titles[0]} more than {titles[1]}", parts, notes)


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
        f"right answers that {results.style}": lambda run: change_values(run, "complete"),
        "right answers that do not": lambda run: change_values(run, "partial"),
    }
    notes = (
        f"Fall: {_listed(results, names, drop_values, '{:.2f}')}.",
        *(
            f"Mean change of {title}: {_listed(results, names, values, '{:+.2f}')}."
            for title, values in kinds.items()
            if any(len(values(run)) for run in results.runs(names[0]))
        ),
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
