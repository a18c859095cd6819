"""The adapter over TRL 1.16's GRPOTrainer: the only file that names its private methods.

Every override calls ``super()`` and changes what goes in or comes out; no TRL method is copied. What negpo does with a
rollout is in ``base.py`` and ``collect.py``, behind the public hooks at the top of the class.
``broken_contract`` compares the names and signatures used here with the installed TRL; it is run before every training
and by a test.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer

from negpo.data.chat import fixed_date, text_ids
from negpo.errors import ConfigError
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.verdicts import cut_columns
from negpo.trainers._run.model_card import WritesModelCard
from negpo.trainers._run.sharding import whole_while_generating

# private method -> its parameters after self
CONTRACT = {
    "_generate": ("prompts",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_prepare_inputs": ("generation_batch",),
    "_compute_loss": ("model", "inputs"),
    "_get_train_sampler": ("dataset",),
    "_tokenize_prompts": ("prompts",),
}
SCORE_PARAMETERS = ("model", "input_ids", "attention_mask", "logits_to_keep")  # the first of a long list
# private attributes, and where TRL must mention them
ATTRIBUTES = {
    "__init__": ("_step", "_buffered_inputs", "_metrics", "_tokenizer", "_dist", "chat_template_kwargs"),
    "_tokenize_prompts": ("chat_template_kwargs",),
    "_prepare_inputs": ("_step", "_buffered_inputs"),
    "training_step": ("_step",),
    "log": ("_metrics", "_logs"),
}


def broken_contract() -> list[str]:
    """What this file relies on and the installed TRL no longer has; empty when all is well."""
    broken = []
    for name, expected in CONTRACT.items():
        found = _parameters(name)
        if found != expected:
            broken.append(f"GRPOTrainer.{name}{expected} is now {found}")
    scoring = _parameters("_get_per_token_logps_and_entropies")
    if scoring is None or scoring[: len(SCORE_PARAMETERS)] != SCORE_PARAMETERS:
        broken.append(f"GRPOTrainer._get_per_token_logps_and_entropies{SCORE_PARAMETERS} is now {scoring}")
    for method, names in ATTRIBUTES.items():
        source = inspect.getsource(getattr(GRPOTrainer, method))
        broken += [f"GRPOTrainer.{method} no longer uses self.{name}" for name in names if f"self.{name}" not in source]
    return broken


def _parameters(name: str) -> tuple[str, ...] | None:
    method = getattr(GRPOTrainer, name, None)
    return None if method is None else tuple(inspect.signature(method).parameters)[1:]


class GRPOAdapter(WritesModelCard, GRPOTrainer):  # type: ignore[misc]  # TRL's create_model_card has fewer arguments
    """GRPOTrainer with its private methods turned into the hooks below."""

    # Upstream these are unions with None, for the time before __init__ is done.
    args: Any
    model: Any
    train_dataset: Any
    _buffered_inputs: Any

    # ---- hooks ----------------------------------------------------------------------------------------------------

    def draw_completions(self, prompt_ids: list[list[int]], n: int) -> tuple[list[list[int]], list[list[float]] | None]:
        """Completions and their sampling log-probs for prompts that stand ``n`` times in a row each."""
        raise NotImplementedError

    def rewards_may_start(self, completions: list, completion_ids: list[list[int]], inputs: list[dict]) -> None:
        """Completions are known; the pass over the policy's log-probs comes next."""

    def score_block(self, model: Any, input_ids: Tensor, attention_mask: Tensor, completion_width: int) -> Tensor:
        """Log-probs (N, C) of the last C columns of a left- and right-padded block (N, P + C)."""
        raise NotImplementedError

    def collect_rollout(self, inputs: list[dict[str, Any]]) -> Record:
        """One rollout batch, as an aligned record."""
        raise NotImplementedError

    def plan(self, record: Record) -> list[Record]:
        """Micro-batches, ``steps_per_generation`` of them, in the order they are trained on."""
        raise NotImplementedError

    def micro_batch_loss(self, model: Any, batch: Record) -> Tensor:
        raise NotImplementedError

    # ---- what the hooks may use -----------------------------------------------------------------------------------

    def raw_rollout(self, inputs: list[dict[str, Any]]) -> tuple[Record, Tensor]:
        """TRL's generation and rewards: its output, and rewards (N over all processes, functions)."""
        self._raw_inputs = inputs
        output = super()._generate_and_score_completions(inputs)
        return output, self._rewards_per_function

    def tokenize_prompts(self, prompts: list) -> list[list[int]]:
        return self._tokenize_prompts(prompts)[0]

    def record_metric(self, name: str, value: float) -> None:
        """One value of a metric that is averaged until the next log."""
        self._metrics["train"][name].append(value)

    def log_advantages(self, advantages: Tensor) -> None:
        """The advantages that are trained on, in the place of TRL's own in the table of completions."""
        values = gather(advantages.mean(1) if advantages.ndim == 2 else advantages).tolist()
        logged: Any = self._logs["advantages"]
        for _ in range(min(len(values), len(logged))):
            logged.pop()
        logged.extend(values)

    @property
    def micro_step(self) -> int:
        """Micro-batches trained on since the beginning of the run."""
        return self._step

    @micro_step.setter
    def micro_step(self, value: int) -> None:
        self._step = value

    @property
    def buffered(self) -> list[Record] | None:
        return self._buffered_inputs

    @buffered.setter
    def buffered(self, batches: list[Record] | None) -> None:
        self._buffered_inputs = batches

    @property
    def tokenizer(self):
        return self._tokenizer

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Inside, the model's parameters are whole on every process (ZeRO-3, FSDP); free where nothing is sharded."""
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            yield
            return
        with (
            whole_while_generating(self.model_wrapped, self.accelerator),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),  # FSDP 1
        ):
            yield

    # ---- overrides ------------------------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        if images is not None or has_tool_images:
            raise ConfigError("images are not supported by the rollout engines; use text prompts")
        return self.draw_completions(prompt_ids, num_generations)

    def _tokenize_prompts(self, prompts):
        # Dates that a template prints stay the same over a run, and a tokenizer's end token is not part of a prompt.
        given: Any = self.chat_template_kwargs
        self.chat_template_kwargs = fixed_date(self.tokenizer) | given
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        if isinstance(prompts[0], str):
            prompt_ids = [text_ids(self.tokenizer, prompt) for prompt in prompts]
        return prompt_ids, images, fields

    def _generate(self, prompts):
        output = super()._generate(prompts)
        _, completion_ids, _, completions, *_ = output
        if self.model.training:
            self.rewards_may_start(completions, completion_ids, self._raw_inputs)
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        columns = cut_columns(completion_ids_list, self.args, self.eos_token_ids)
        inputs = [row | {name: values[place] for name, values in columns.items()} for place, row in enumerate(inputs)]
        self._rewards_per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_per_function

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **unused
    ):
        return self.score_block(model, input_ids, attention_mask, logits_to_keep), None, None

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            self._raw_inputs = inputs
            return super()._generate_and_score_completions(inputs)
        self.rollout = self.collect_rollout(inputs)
        # TRL shuffles and splits what is returned here; the rows themselves are planned in _prepare_inputs.
        return {"row": torch.arange(len(inputs))}

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = self.plan(self.rollout)
        del self.rollout
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model, inputs):
        if not self.model.training:  # evaluation is about rewards; a loss of samples against themselves says nothing
            return torch.zeros((), device=self.accelerator.device)
        return self.micro_batch_loss(model, inputs)

    def _get_train_sampler(self, dataset=None):
        self.train_sampler = EpochOrder(super()._get_train_sampler(dataset), self.args.seed)
        return self.train_sampler


class EpochOrder(torch.utils.data.Sampler):
    """TRL's RepeatSampler with an order that is a function of (seed, epoch): a resumed epoch has the same one."""

    def __init__(self, sampler: Any, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if getattr(self.sampler, "generator", None) is not None:
            self.sampler.generator.manual_seed(self.seed + 1_000_003 * self.epoch)
        return iter(self.sampler)


def require_contract() -> None:
    """ConfigError when the installed TRL is not the one this file was written for."""
    if broken := broken_contract():
        raise ConfigError(f"trl {version('trl')} does not fit this version of negpo: {'; '.join(broken)}")
