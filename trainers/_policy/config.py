"""Settings shared by every reinforcement-learning trainer, and what is refused before a model is loaded."""

from dataclasses import dataclass, field
from typing import ClassVar

from trl import GRPOConfig

from negpo.errors import ConfigError
from negpo.logprobs.shared import SHARING
from negpo.objectives.policy_terms import IMPORTANCE_MODES
from negpo.rewards.outcome import TRUNCATED
from negpo.rollout import ENGINES
from negpo.trainers._policy.reduction import NORMALIZERS
from negpo.trainers._policy.settings import POLICY
from negpo.trainers._run.run_config import RunConfig
from negpo.trainers._run.settings import Rule

STORED = "stored"  # rollouts from a file: negpo.rollout.stored


@dataclass
class PolicyConfig(RunConfig, GRPOConfig):  # type: ignore[misc]  # bf16 may be None before it is settled
    """``trl.GRPOConfig`` plus what learning from wrong answers needs.

    TRL's names keep their meaning: ``epsilon`` and ``epsilon_high`` are the lower and upper clip, ``delta`` the dual
    clip, ``beta`` the weight of the KL to the reference model, ``entropy_coef`` the weight of the entropy bonus. Other
    defaults than TRL's: four optimiser steps per rollout batch instead of one, so that ratios and clips do something;
    importance correction truncates per token instead of dropping long answers; bf16 only on a GPU that has it.
    """

    # Upstream leaves the annotation away, and mypy takes it for an instance variable.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "engine_options"]  # type: ignore[misc]

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "engine": (*ENGINES, STORED),
        "adapter_sync": ("adapter", "merge"),
        "share_prompt": SHARING,
        "normalizer": NORMALIZERS,
        "dead_groups": ("keep", "drop", "resample"),
        "partial_rewards": ("unknown", "sum"),
        "truncated": TRUNCATED,
        "reward_errors": ("stop", "unknown"),
        "vllm_importance_sampling_mode": IMPORTANCE_MODES,
    }

    inherited: ClassVar[dict[str, Rule]] = POLICY

    # batches
    updates_per_rollout: int = field(
        default=4,
        metadata={"help": "Optimiser steps per rollout batch (published: 4; NFT 16). 1 is exactly on-policy."},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longer prompts are left out, counted. Default: what the model's positions leave room for."},
    )
    drop_zero_rows: bool = field(
        default=True, metadata={"help": "Do not run rows through the model whose gradient is provably zero."}
    )
    dead_groups: str = field(
        default="keep",
        metadata={
            "help": "Groups without signal: keep (they count in the normaliser), drop, or resample other prompts "
            "(DAPO's dynamic sampling)."
        },
    )
    max_resamples: int = field(default=3, metadata={"help": "dead_groups=resample: most extra rollout rounds."})

    # loss
    normalizer: str = field(
        default="token_mean",
        metadata={
            "help": "token_mean and sequence_mean run over the whole optimiser batch; max_length divides the sum by "
            "rows times max_completion_length (Dr.GRPO), constant by normalizer_length (NFT); "
            "micro_batch_token_mean depends on the packing, as the papers' code does."
        },
    )
    normalizer_length: float = field(default=1000.0, metadata={"help": "Divisor of normalizer=constant."})

    # rewards
    truncated: str | None = field(
        default=None,
        metadata={
            "help": "Answers cut off by max_completion_length: unknown (no gradient, not in the group's baseline), "
            "wrong, mask (wrong in the baseline, their tokens not trained) or soft (judged by what was finished before "
            "the cut). Default: unknown; mask with mask_truncated_completions."
        },
    )
    skip_bad_golds: bool = field(
        default=False, metadata={"help": "Leave problems whose gold answer cannot be read out, counted; else an error."}
    )
    max_unknown_rollouts: int = field(
        default=5, metadata={"help": "Stop after this many rollouts in a row with (nearly) only unknown rewards."}
    )
    correct_threshold: float = field(default=0.5, metadata={"help": "A reward above this counts as a right answer."})
    reward_timeout: float = field(
        default=600.0, metadata={"help": "Seconds until a reward call is given up; its rows are then unknown."}
    )
    max_reward_timeouts: int = field(default=3, metadata={"help": "Timeouts in a row after which the run stops."})
    reward_errors: str = field(
        default="stop", metadata={"help": "A reward function that raises: stop, or make its rows unknown."}
    )
    partial_rewards: str = field(
        default="unknown",
        metadata={"help": "A row for which some reward functions returned None: unknown, or sum of the others (TRL)."},
    )
    overlap_rewards: bool | None = field(
        default=None,
        metadata={
            "help": "Score old log-probs of all rows while rewards are computed, instead of only the needed rows "
            "afterwards. Default: for methods that train on all rows."
        },
    )

    # rollouts
    engine: str = field(
        default="transformers", metadata={"help": "transformers, vllm, vllm-server; stored: see rollouts."}
    )
    engine_options: dict | str | None = field(default=None, metadata={"help": "Arguments of the engine's class."})
    share_prompt: str = field(
        default="auto",
        metadata={
            "help": "Run the prompt of a group once for all its answers, forward and backward: auto (where cheaper), "
            "always, never."
        },
    )
    deterministic_rollouts: bool = field(
        default=False,
        metadata={
            "help": "Samples and their log-probs do not depend on what else is in the batch, bit for bit: the "
            "transformers engine decodes each alone, vLLM uses its batch-invariant kernels (CUDA only)."
        },
    )
    adapter_sync: str = field(
        default="adapter",
        metadata={
            "help": "How LoRA reaches a vLLM engine: adapter (the factors alone, the base is not written) or merge "
            "(every weight, with the adapter folded in)."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={"help": "How sampling/training ratios are bounded; sequence modes drop or shrink whole answers."},
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=2.0, metadata={"help": "Largest importance weight (truncated importance sampling: 2)."}
    )

    # telemetry and guards
    log_entropy: bool = field(default=True, metadata={"help": "Measure the entropy of trained tokens."})
    displacement_rows: int = field(
        default=8,
        metadata={"help": "Right answers per process whose log-prob is compared before and after the updates."},
    )
    min_entropy: float | None = field(default=1e-3, metadata={"help": "Stop below this mean entropy (nats)."})
    max_entropy_share: float | None = field(
        default=0.7, metadata={"help": "Stop above this share of log(vocabulary), if entropy also rose by half."}
    )
    max_repetition: float | None = field(
        default=0.5, metadata={"help": "Stop when more than this share of long completions loops."}
    )
    max_kl: float | None = field(
        default=1.0, metadata={"help": "Stop above this mean KL per token between rollout and current policy."}
    )
    watchdog_patience: int = field(default=3, metadata={"help": "Optimiser steps in a row a limit must be broken."})

    def __post_init__(self) -> None:
        if self.steps_per_generation is None and self.generation_batch_size is None:
            self.steps_per_generation = self.updates_per_rollout * self.gradient_accumulation_steps
        if self.truncated is None:
            self.truncated = "mask" if self.mask_truncated_completions is True else "unknown"
        elif self.mask_truncated_completions is True and self.truncated != "mask":
            raise ConfigError(
                f"mask_truncated_completions and truncated={self.truncated} contradict each other; leave the first out"
            )
        super().__post_init__()
        self.mask_truncated_completions = False  # TRL's own mask would count such answers as empty
        self._check_rollout_batch()

    def validate(self) -> None:
        super().validate()
        self._check_groups()
        self._check_sampling()

    def _check_groups(self) -> None:
        if self.num_generations is None or self.num_generations < 2:
            raise ConfigError(
                f"num_generations is {self.num_generations}: a group of one has no statistics. Use at least 2"
            )
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if rows % self.num_generations:
            raise ConfigError(
                f"per_device_train_batch_size x gradient_accumulation_steps = {rows} rows per process and optimiser "
                f"step would split groups of num_generations={self.num_generations}. Make it a multiple"
            )

    def _check_sampling(self) -> None:
        if self.deterministic_rollouts and self.engine == "vllm-server":
            raise ConfigError(
                "deterministic_rollouts cannot reach a running server; start it with VLLM_BATCH_INVARIANT=1 and leave "
                "the setting out"
            )
        truncates = self.top_p < 1 or self.top_k > 0 or (self.min_p or 0) > 0
        if truncates and self.corrects_importance:
            raise ConfigError(
                f"top_p={self.top_p}, top_k={self.top_k}, min_p={self.min_p} cut off tokens, which biases the "
                "importance correction. Sample from the whole distribution, or set "
                "vllm_importance_sampling_correction=false"
            )

    def _check_rollout_batch(self) -> None:
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        if steps % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation={steps} is not a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: an optimiser step would mix two "
                "rollout batches. Leave it unset and use updates_per_rollout"
            )
        self.updates_per_rollout = steps // self.gradient_accumulation_steps

    @property
    def corrects_importance(self) -> bool:
        """Whether sampling and training may disagree (another engine samples) and the loss makes up for it."""
        return self.engine not in ("transformers", STORED) and self.vllm_importance_sampling_correction

    @property
    def on_policy(self) -> bool:
        """One optimiser step per rollout: every ratio is exactly 1 and old log-probs need no pass of their own."""
        return self.updates_per_rollout == 1 and self.num_iterations == 1 and self.engine != STORED

    @property
    def every_row_has_gradient(self) -> bool:
        """With an entropy bonus or a KL term a row of advantage 0 still moves the weights."""
        return self.beta != 0 or self.entropy_coef != 0
