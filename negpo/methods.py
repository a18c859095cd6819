"""The table of methods: what `negpo train` offers, told once. Standard library only.

Everything that lists methods reads ``TABLE``: ``negpo.trainers.METHODS``, the command line, ``negpo plan``, model
cards, the tests, and (through ``scripts/sync_docs.py``) README, docs and mkdocs.yml. A new method is one entry here;
its class lives in ``negpo.trainers.<name>``, its page in ``docs/methods/<name>.md``, its recipes in
``configs/recipes/<name>/``.
"""

from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parent / "configs" / "recipes"


@dataclass(frozen=True)
class StepCost:
    """What one step runs, as far as memory and operations depend on it, with the method's default settings.

    rows: rows of the forward per example of the micro-batch. reference: "none", "logprobs" (a cache can replace it)
    or "model" (needed in every step, whatever the cache). updates: optimiser steps per rollout batch, 0 for methods
    on stored rows.
    """

    rows: int
    reference: str = "none"
    updates: int = 0


@dataclass(frozen=True)
class Method:
    """One method. ``objectives`` are functions of negpo.objectives, ``papers`` arXiv numbers with a title in PAPERS.

    family: a key of FAMILIES. summary: what it does with the answers it is trained against, in one phrase. rows: the
    kinds of rows it trains on by default. trainer, config: classes of ``module``.
    """

    name: str
    family: str
    title: str
    trainer: str
    config: str
    objectives: tuple[str, ...]
    papers: tuple[str, ...]
    rows: tuple[str, ...]
    cost: StepCost
    summary: str

    @property
    def module(self) -> str:
        return f"negpo.trainers.{self.name}"

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the shipped recipes, as ``--config`` takes them: ``npo/tofu_forget10``."""
        return tuple(sorted(f"{self.name}/{path.stem}" for path in (RECIPES / self.name).glob("*.yaml")))


FAMILIES = {"unlearn": "Unlearning", "policy": "Wrong answers", "preference": "Rejected answers"}

FORGET, FORGET_RETAIN, PROBLEMS = ("forget",), ("forget", "retain"), ("problem",)
PAIRS = ("chosen", "rejected")
CLIPPED = "clipped_policy_loss"
ROLLOUTS = StepCost(1, updates=4)

_METHODS = (
    Method(
        "ga", "unlearn", "gradient ascent", "GradientAscentTrainer", "GradientAscentConfig", ("ga_loss",),
        ("2401.06121", "2404.05868"), FORGET, StepCost(1), "ascent, nothing that slows it down",
    ),
    Method(
        "graddiff", "unlearn", "gradient difference", "GradDiffTrainer", "GradDiffConfig", ("ga_loss",),
        ("2401.06121", "2404.05868"), FORGET_RETAIN, StepCost(2), "ascent, with a likelihood or KL term on retain rows",
    ),
    Method(
        "npo", "unlearn", "negative preference optimisation", "NPOTrainer", "NPOConfig", ("npo_loss",), ("2404.05868",),
        FORGET_RETAIN, StepCost(2, "logprobs"), "a force that fades as the answer falls below the starting model",
    ),
    Method(
        "simnpo", "unlearn", "SimNPO", "SimNPOTrainer", "SimNPOConfig", ("simnpo_loss",), ("2410.07163",),
        FORGET_RETAIN, StepCost(2), "NPO on length-normalised likelihoods, without a reference",
    ),
    Method(
        "catnip", "unlearn", "CATNIP", "CATNIPTrainer", "CATNIPConfig", ("catnip_loss",), ("2602.02824",),
        FORGET, StepCost(1), "each token against the model's own complement, without retain data or reference",
    ),
    Method(
        "wga", "unlearn", "weighted gradient ascent", "WGATrainer", "WGAConfig",
        ("wga_loss", "tnpo_loss", "satimp_loss"), ("2502.19301",),
        FORGET_RETAIN, StepCost(2), "ascent with a weight per token (WGA, TNPO, SatImp)",
    ),
    Method(
        "idkdpo", "unlearn", "IdkDPO", "IdkDPOTrainer", "IdkDPOConfig", ("dpo_loss", "kto_loss"),
        ("2401.06121", "2404.05868"), ("forget", "idk", "retain"), StepCost(3, "logprobs"),
        "\"I don't know\" preferred over the answer (DPO, KTO)",
    ),
    Method(
        "rmu", "unlearn", "representation misdirection", "RMUTrainer", "RMUConfig", ("rmu_loss",), ("2403.03218",),
        FORGET_RETAIN, StepCost(2, "model"), "hidden states of one layer steered to a random direction",
    ),
    Method(
        "ceu", "unlearn", "cross-entropy unlearning", "CEUTrainer", "CEUConfig", ("ceu_loss",), ("2503.01224",),
        FORGET, StepCost(1), "cross-entropy to the model's own distribution without the label",
    ),
    Method(
        "altpo", "unlearn", "alternate preference optimisation", "AltPOTrainer", "AltPOConfig", ("dpo_loss",),
        ("2409.13474",), ("forget", "alternate", "retain"), StepCost(3, "logprobs"),
        "an alternate answer, written by the target, preferred over the answer",
    ),
    Method(
        "undial", "unlearn", "UNDIAL", "UNDIALTrainer", "UNDIALConfig", ("undial_loss",), ("2402.10052",),
        FORGET, StepCost(1, "model"), "self-distillation onto the starting model with the label's logit lowered",
    ),
    Method(
        "pdu", "unlearn", "primal-dual unlearning", "PDUTrainer", "PDUConfig", ("pdu_loss", "dual_update"),
        ("2506.05314",), FORGET_RETAIN, StepCost(2), "flat logits under a bound on the retain loss",
    ),
    Method(
        "npo_sam", "unlearn", "NPO+SAM", "NPOSAMTrainer", "NPOSAMConfig", ("npo_loss", "sam_perturbation"),
        ("2404.05868", "2502.05374"), FORGET_RETAIN, StepCost(2, "logprobs"),
        "NPO at the sharpest point nearby, against relearning",
    ),
    Method(
        "nsr", "policy", "PSR, NSR, W-REINFORCE", "NSRTrainer", "NSRConfig", ("signed_advantages", CLIPPED),
        ("2506.01347",), PROBLEMS, ROLLOUTS, "right / wrong: psr 1 / –, nsr – / -1, w_reinforce 0.1 / -1; clip 0.2",
    ),
    Method(
        "ngrpo", "policy", "NGRPO", "NGRPOTrainer", "NGRPOConfig", ("ngrpo_advantages", CLIPPED), ("2509.18851",),
        PROBLEMS, ROLLOUTS, "group-normalised with virtual right answers; clip 0.16 down, 0.24 up",
    ),
    Method(
        "nft", "policy", "negative-aware fine-tuning", "NFTTrainer", "NFTConfig", ("nft_loss",), ("2505.18116",),
        PROBLEMS, StepCost(1, updates=16), "wrong answers fitted with the implicit negative policy",
    ),
    Method(
        "resrl", "policy", "ResRL", "ResRLTrainer", "ResRLConfig", ("resrl_token_weights", CLIPPED), ("2605.00380",),
        PROBLEMS, ROLLOUTS, "right: GRPO x 0.1, wrong: GRPO x token weight in [0.1, 1]; clip 0.2, dual clip 3",
    ),
    Method(
        "topr", "policy", "tapered off-policy REINFORCE", "TOPRTrainer", "TOPRConfig", ("topr_loss",), ("2503.14286",),
        PROBLEMS, ROLLOUTS, "right / wrong: 1 / -1, the full-sequence ratio on wrong answers",
    ),
    Method(
        "raft", "policy", "RAFT", "RAFTTrainer", "RAFTConfig", ("raft_advantages", CLIPPED), ("2504.11343",),
        PROBLEMS, ROLLOUTS, "right / wrong: 1 / –; variant raft: likelihood, raft++: clip 0.2",
    ),
    Method(
        "reinforce_rej", "policy", "Reinforce-Rej", "ReinforceRejTrainer", "ReinforceRejConfig",
        ("reinforce_rej_advantages", CLIPPED), ("2504.11343",), PROBLEMS, ROLLOUTS,
        "right / wrong: 1 / -1 in mixed groups; clip 0.2, dual clip 3",
    ),
    Method(
        "grpo", "policy", "GRPO, DAPO, Dr.GRPO", "GroupPolicyTrainer", "GroupPolicyConfig",
        ("group_advantages", CLIPPED), ("2402.03300", "2503.14476", "2503.20783"), PROBLEMS, ROLLOUTS,
        "baseline: variant grpo, dapo or dr_grpo; clip 0.2 (dapo 0.28 up)",
    ),
    Method(
        "sft", "preference", "supervised fine-tuning", "SFTTrainer", "SFTConfig", ("nll_loss",), ("2505.24850",),
        ("chosen",), StepCost(1), "baseline: rejected answers are not read",
    ),
    Method(
        "redi", "preference", "reinforcement distillation", "REDITrainer", "REDIConfig", ("redi_loss",),
        ("2505.24850",), PAIRS, StepCost(2), "likelihood of wrong traces down at weight 0.8, without a reference",
    ),
    Method(
        "d2o", "preference", "distributional dispreference optimisation", "D2OTrainer", "D2OConfig", ("d2o_loss",),
        ("2403.03419",), ("rejected",), StepCost(5, "logprobs"),  # one rejected answer, K = 4 samples
        "the model's own samples preferred over the rejected answer",
    ),
    Method(
        "dpo", "preference", "direct preference optimisation", "DPOTrainer", "DPOConfig", ("dpo_loss",),
        ("2305.18290",), PAIRS, StepCost(2, "logprobs"), "baseline: log-ratio of the pair",
    ),
    Method(
        "simpo", "preference", "SimPO", "SimPOTrainer", "SimPOConfig", ("simpo_loss",), ("2405.14734",),
        PAIRS, StepCost(2), "baseline: length-normalised margin, without a reference",
    ),
    Method(
        "kto", "preference", "KTO", "KTOTrainer", "KTOConfig", ("unpaired_kto_loss",), ("2402.01306",),
        ("completion", "label"), StepCost(2, "logprobs"), "baseline: answers labelled good or bad without a partner",
    ),
    Method(
        "step_dpo", "preference", "per-step DPO", "StepDPOTrainer", "StepDPOConfig", ("step_dpo_loss",),
        ("2406.14532",), ("chosen", "steps", "values"), StepCost(2, "logprobs"),
        "wrong answers cut after their first bad step",
    ),
    Method(
        "aft", "preference", "alignment fine-tuning", "AFTTrainer", "AFTConfig", ("aft_loss",), ("2309.02144",),
        ("completions", "labels"), StepCost(2), "mean log-probs of all wrong traces below those of right ones",
    ),
    Method(
        "lipo", "preference", "LiPO-λ", "LiPOTrainer", "LiPOConfig", ("lipo_loss",), ("2402.01878",),
        ("completions", "scores"), StepCost(2, "logprobs"), "every ordered pair of a list, weighted by its DCG swap",
    ),
    Method(
        "wpn", "preference", "WPN, a reconstruction", "WPNTrainer", "WPNConfig", ("n_pair_loss",), ("2408.09459",),
        PAIRS, StepCost(2), "pooled states of the prompt nearer to harmless than to harmful answers",
    ),
)  # fmt: skip
TABLE: dict[str, Method] = {method.name: method for method in _METHODS}

# what the project's pages and objectives cite; docs/papers.md says where
PAPERS = {
    "1707.06347": "PPO",
    "1912.09729": "dual clip",
    "2202.08904": "SGPT, position-weighted mean pooling",
    "2305.18290": "DPO",
    "2309.02144": "AFT",
    "2401.06121": "TOFU",
    "2402.01306": "KTO",
    "2402.01878": "LiPO-λ",
    "2402.03300": "GRPO",
    "2402.10052": "UNDIAL",
    "2403.03218": "WMDP, RMU",
    "2403.03419": "D²O",
    "2404.05868": "NPO",
    "2404.19733": "RPO, DPO with an NLL anchor",
    "2405.14734": "SimPO",
    "2406.09179": "UWC, matched utility",
    "2406.13356": "relearning attacks",
    "2406.14532": "RL on incorrect synthetic data, per-step DPO",
    "2407.06460": "MUSE",
    "2408.09459": "WPN",
    "2409.13474": "AltPO",
    "2410.07163": "SimNPO",
    "2410.16454": "quantisation undoes unlearning",
    "2502.05374": "NPO+SAM",
    "2502.19301": "G-effect: WGA, TNPO",
    "2503.01224": "CE-U",
    "2503.14286": "TOPR",
    "2503.14476": "DAPO",
    "2503.20783": "Dr.GRPO",
    "2504.06659": "U2A",
    "2504.11343": "RAFT++, Reinforce-Rej",
    "2505.18116": "NFT",
    "2505.18830": "lazy likelihood displacement",
    "2505.24850": "REDI",
    "2506.01347": "PSR, NSR, W-REINFORCE",
    "2506.05314": "PDU",
    "2506.12618": "OpenUnlearning",
    "2509.18851": "NGRPO",
    "2602.02824": "CATNIP",
    "2605.00380": "ResRL",
}


def of_family(family: str) -> tuple[str, ...]:
    """Names of the methods of one family, in the table's order."""
    return tuple(name for name, method in TABLE.items() if method.family == family)
