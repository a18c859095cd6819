"""Memory of one device through a step: the moments at which it may peak, each as a sum of parts.

Gradients grow while activations shrink, so the peak is not the sum of the largest values of all parts. With Trainer's
``zero_grad(set_to_none=True)`` a step without accumulation starts without gradients; with accumulation they stay.
"""

from dataclasses import dataclass

from negpo.plan.activations import head_bytes, layer_scratch, saved_by_final_norm, saved_per_layer
from negpo.plan.settings import DTYPES, Settings
from negpo.plan.shapes import Shape
from negpo.plan.strategies import buffers, gathered_weights, host_bytes, state_bytes, state_on_device, trainable

# In the order in which a run needs them: the first one that exceeds what is left does not fit.
PARTS = (
    "weights",
    "optimiser",
    "reference",
    "rollout engine",
    "buffers",
    "gradients",
    "activations",
    "log-prob tiles",
    "KV cache",
)
ENGINE_ROWS = 256  # most completions that negpo's engines decode together (max_rows)


@dataclass(frozen=True)
class Moment:
    """Bytes of each part at one point of the step."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """All moments of a step on one device; ``host`` is what offloading keeps in host memory, per device."""

    moments: list[Moment]
    host: int = 0

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    def first_that_does_not_fit(self, limit: int) -> str | None:
        """The part whose addition to those before it in PARTS exceeds ``limit`` at the peak; None if all fit."""
        used = 0
        for part in PARTS:
            used += self.peak.parts.get(part, 0)
            if used > limit:
                return part
        return None


def memory_of(shape: Shape, settings: Settings) -> Memory:
    """Moments of a rollout (policy methods), of forward and backward, and of the optimiser step."""
    base = _always_there(shape, settings)
    steps = [*_forward_and_backward(shape, settings), _optimiser_step(shape, settings)]
    if settings.cost.updates:
        steps.insert(0, _rollout(shape, settings))
    moments = [
        Moment(step.name, {part: base.get(part, 0) + step.parts.get(part, 0) for part in PARTS}) for step in steps
    ]
    return Memory(moments, host_bytes(shape, settings))


def kv_cache_bytes(shape: Shape, tokens: int, dtype: str) -> int:
    """Keys and values of every layer: 2 L K w bytes per token (K: key/value width)."""
    return 2 * shape.layers * shape.key_value * DTYPES[dtype] * tokens


def _always_there(shape: Shape, settings: Settings) -> dict[str, int]:
    states = state_on_device(shape, settings)
    parts = {"weights": states["weights"], "optimiser": states["optimiser"], "buffers": buffers(shape, settings)}
    if settings.reference_in_steps == "model":
        shards = settings.devices if settings.strategy.startswith("zero3") else 1  # elsewhere every rank has all of it
        offloaded = settings.strategy == "zero3_offload"
        parts["reference"] = 0 if offloaded else DTYPES[settings.dtype] * shape.parameters // shards
    if settings.cost.updates and settings.engine == "vllm":  # in the same process, with weights of its own
        parts["rollout engine"] = DTYPES[settings.dtype] * shape.parameters
        parts["KV cache"] = _rollout_cache(shape, settings)
    return parts


def _rollout_cache(shape: Shape, settings: Settings) -> int:
    """Completions in flight at full length; vLLM keeps the prompt of a group once (arXiv 2309.06180, section 4.4)."""
    rows, prompt = min(settings.rollout_rows, ENGINE_ROWS), settings.sequence_length - settings.max_new_tokens
    prompts = rows // settings.samples if settings.engine == "vllm" else rows
    return kv_cache_bytes(shape, rows * settings.max_new_tokens + prompts * prompt, settings.dtype)


def _rollout(shape: Shape, settings: Settings) -> Moment:
    """transformers' generation runs on the policy, whole on every device; a server draws on devices of its own."""
    parts = {}
    if settings.engine == "transformers":
        parts["KV cache"] = _rollout_cache(shape, settings)
        if settings.strategy in ("zero3", "zero3_offload", "fsdp2"):
            parts["buffers"] = DTYPES[settings.dtype] * shape.parameters
    return Moment("rollout", parts)


def _forward_and_backward(shape: Shape, settings: Settings) -> list[Moment]:
    tokens, w = settings.tokens, DTYPES[settings.dtype]
    full = saved_per_layer(shape, settings) * tokens
    kept = w * shape.hidden * tokens if settings.gradient_checkpointing else full
    again = full if settings.gradient_checkpointing else 0
    final = saved_by_final_norm(shape, settings) * tokens
    scratch = layer_scratch(shape, settings) * tokens
    head, gathered = head_bytes(shape, settings), gathered_weights(shape, settings)
    whole = _whole_gradients(shape, settings)
    stream = w * shape.hidden * tokens
    all_layers = shape.layers * kept + final

    def moment(name: str, layer: int, activations: int, tiles: int = 0, transient: int = 0) -> Moment:
        gradients = _gradients(shape, settings, layer)
        sizes = {"activations": activations, "log-prob tiles": tiles, "gradients": gradients}
        return Moment(name, sizes | {"buffers": gathered + transient})

    return [
        moment("head, forward", -1, all_layers, head.saved + head.forward),
        moment("head, backward", 0, all_layers, head.saved + head.backward + whole["head"]),
        moment("last layer, backward", 1, all_layers - final + again + scratch, transient=whole["layer"]),
        moment("first layer, backward", shape.layers, kept + again + scratch, transient=whole["layer"]),
        moment("embedding, backward", shape.layers + 1, stream, transient=whole["embedding"]),
    ]


def _gradients(shape: Shape, settings: Settings, layer: int) -> int:
    """Bytes of gradients in the MLP of the layer at work: those of the layers behind it and of its last matrix.

    ``layer``: -1 before the backward, 0 at the head, 1 in the last layer, L in the first, L + 1 at the embedding.
    """
    everything = state_on_device(shape, settings)["gradients"]
    if settings.gradient_accumulation > 1 or settings.lora_r or layer > shape.layers:
        return everything
    if layer < 0:
        return 0
    each = state_bytes(settings.strategy, settings.dtype, settings.devices).gradient
    done = (layer - 1) * shape.layer + shape.hidden * shape.intermediate if layer else 0
    return round(each * (shape.head_matrix + done))


def _whole_gradients(shape: Shape, settings: Settings) -> dict[str, int]:
    """Gradients that exist beside their place: whole before they are sharded, or new before they are added.

    A tied embedding adds its own (V, H) gradient to the head's, except for stored rows in float32 on one CPU process,
    where only its rows are added (``trainers._run.model.rows_of_tied_embedding``).
    """
    if settings.lora_r:
        return {"head": 0, "layer": 0, "embedding": 0}
    w = DTYPES[settings.dtype]
    sharded = (
        state_bytes(settings.strategy, settings.dtype, settings.devices).gradients_sharded and settings.devices > 1
    )
    apart = sharded or settings.gradient_accumulation > 1
    on_cpu = settings.device_type == "cpu" and settings.dtype == "fp32" and settings.strategy == "single"
    in_rows = on_cpu and not settings.cost.updates
    twice = not in_rows if shape.tied else apart
    return {
        "head": w * shape.head_matrix if apart else 0,
        "layer": w * shape.layer if sharded else 0,
        "embedding": w * shape.embedding if twice else 0,
    }


def _optimiser_step(shape: Shape, settings: Settings) -> Moment:
    """ZeRO 1 and 2 turn their share of the gradients into float32 at once; torch's fused AdamW needs nothing more."""
    gradients = state_on_device(shape, settings)["gradients"]
    as_float = 0
    if settings.strategy in ("zero1", "zero2") and settings.dtype != "fp32":
        as_float = 4 * trainable(shape, settings) // settings.devices
    return Moment("optimiser step", {"gradients": gradients, "buffers": as_float})
