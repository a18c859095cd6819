"""Floating-point operations of an optimiser step on one device, and the time they take.

A matrix product of n tokens with an (i, o) matrix is 2 n i o operations. Forward of t tokens in rows of T:

    layers     2 t (matrices of a layer) L
    attention  2 t T Q L             scores and values over T/2 earlier positions on average: kernels skip the rest
    head       2 n V H               answer tokens only

Backward: twice that for layers and attention (PaLM, arXiv 2204.02311, appendix B); the head executes three products
(logits again, two gradients: arXiv 2411.09009 does the same). Under LoRA the frozen matrices need one product instead
of two, and the head none: its forward already made the gradient's direction with a second one.

Utilisation is executed operations over what the device could do; without gradient checkpointing it is, up to the head's
extra product, the MFU of PaLM. Communication has no term of its own: it lowers the utilisation that one measures.
"""

import math
from dataclasses import dataclass

from negpo.plan.memory import ENGINE_ROWS, kv_cache_bytes
from negpo.plan.settings import DTYPES, Settings
from negpo.plan.shapes import Shape
from negpo.plan.strategies import trainable


@dataclass(frozen=True)
class Operations:
    """Operations of one optimiser step on one device. ``rollouts`` includes reading the prompts."""

    forward: int
    backward: int
    recomputation: int
    reference: int
    old_logps: int
    rollouts: int

    @property
    def training(self) -> int:
        """All but the rollouts, which run at another speed."""
        return self.forward + self.backward + self.recomputation + self.reference + self.old_logps


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimiser step and tokens (positions of trained rows) per second of all devices together."""

    training_seconds: float
    rollout_seconds: float
    tokens_per_second: float

    @property
    def step_seconds(self) -> float:
        return self.training_seconds + self.rollout_seconds


def operations(shape: Shape, settings: Settings) -> Operations:
    """See the module docstring; reference and old log-probs are forwards of all rows."""
    steps = settings.gradient_accumulation
    tokens, answers = settings.tokens * steps, settings.answer_tokens * steps
    layers = _layers(shape, tokens, settings.sequence_length)
    head = 2 * answers * shape.head_matrix
    forward, backward = layers + head, 2 * layers + 3 * head
    if settings.lora_r:
        adapters = 2 * tokens * trainable(shape, settings)
        forward, backward = layers + 2 * head + adapters, layers + 2 * adapters
    rl = bool(settings.cost.updates)
    return Operations(
        forward=forward,
        backward=backward,
        recomputation=layers if settings.gradient_checkpointing else 0,
        reference=0 if settings.reference_in_steps == "none" else layers + head,
        old_logps=layers + head if rl else 0,
        rollouts=layers + 2 * shape.head_matrix * settings.max_new_tokens * settings.rows * steps if rl else 0,
    )


def speed(shape: Shape, settings: Settings) -> Speed:
    training = operations(shape, settings).training / (settings.flops * settings.utilisation)
    rollout = _rollout_seconds(shape, settings)
    tokens = settings.tokens * settings.gradient_accumulation * settings.devices
    return Speed(training, rollout, tokens / (training + rollout))


def _layers(shape: Shape, tokens: int, length: int) -> int:
    return 2 * tokens * shape.layers * (shape.layer_matrices + length * shape.query)


def _rollout_seconds(shape: Shape, settings: Settings) -> float:
    """Decoding reads all weights and the cache once per token of the longest answer (arXiv 2211.05102, section 2).

    The batch is the rows in flight; per optimiser step it counts with its share of the rollout. An ideal engine is
    assumed: ``generate`` of transformers adds some milliseconds of Python per token.
    """
    if not settings.cost.updates:
        return 0.0
    rows = min(settings.rollout_rows, ENGINE_ROWS)
    weights = DTYPES[settings.dtype] * shape.parameters
    cache = kv_cache_bytes(shape, rows * (settings.sequence_length - settings.max_new_tokens // 2), settings.dtype)
    reading = settings.max_new_tokens * (weights + cache) / settings.bandwidth
    batches = math.ceil(settings.rollout_rows / ENGINE_ROWS)
    computing = operations(shape, settings).rollouts / (settings.flops * settings.utilisation)
    return max(reading * batches / settings.cost.updates, computing)
