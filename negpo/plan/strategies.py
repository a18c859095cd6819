"""Bytes per parameter under each way of splitting a model, and what is gathered or buffered beside them.

P parameters on N devices (ZeRO: arXiv 1910.02054, section 3.1; FSDP: arXiv 2304.11277, section 3):

                weights      gradients    optimiser
    single, ddp  w            w            2 w          Adam's moments have the weights' dtype
    zero1        w            w            12 / N       float32 copy, two moments; w + w + 12 = 16 bytes in bf16
    zero2        w            w / N        12 / N
    zero3        w / N        w / N        12 / N
    fsdp2        4 / N        4 / N        8 / N        accelerate turns bf16 weights into float32 before it shards

with w = 2 (bf16) or 4 (float32). DeepSpeed keeps the float32 copy in float32 runs as well. ZeRO 3 with offload leaves
only gathered layers on the device and needs the rest in host memory.
"""

from dataclasses import dataclass

from negpo.plan.settings import DTYPES, Settings
from negpo.plan.shapes import Shape

ZERO3_LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one parameter on one device, and whether gradients are whole until the step is over."""

    weight: float
    gradient: float
    optimiser: float
    gradients_sharded: bool

    @property
    def total(self) -> float:
        return self.weight + self.gradient + self.optimiser


def state_bytes(strategy: str, dtype: str, devices: int, *, trained: bool = True) -> StateBytes:
    """See the module docstring. ``trained=False`` is a frozen base under LoRA: weights only."""
    w, n = DTYPES[dtype], devices
    zero, sharded = strategy.startswith("zero"), strategy in ("zero3", "zero3_offload", "fsdp2")
    weight = w / (n if sharded else 1)
    if strategy == "fsdp2":
        weight, gradient, optimiser = (4 if trained else w) / n, 4 / n, 8 / n
    elif zero:
        gradient, optimiser = (w if strategy == "zero1" else w / n), 12 / n
    else:
        gradient, optimiser = w, 2 * w
    if strategy == "zero3_offload":
        weight = gradient = optimiser = 0.0
    if not trained:
        gradient = optimiser = 0.0
    return StateBytes(weight, gradient, optimiser, gradients_sharded=sharded or strategy == "zero2")


def trainable(shape: Shape, settings: Settings) -> int:
    """Trained parameters: all, or LoRA's r (inputs + outputs) of every linear map of every layer (arXiv 2106.09685)."""
    return settings.lora_r * shape.lora_width * shape.layers if settings.lora_r else shape.parameters


def state_on_device(shape: Shape, settings: Settings) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser states on one device."""
    dtype, devices = settings.dtype, settings.devices
    full = state_bytes(settings.strategy, dtype, devices)
    parts = [(full, shape.parameters)]
    if settings.lora_r:
        adapter_dtype = "fp32" if settings.strategy in ("single", "ddp") else dtype  # peft keeps adapters in float32
        frozen = state_bytes(settings.strategy, dtype, devices, trained=False)
        adapter = state_bytes(settings.strategy, adapter_dtype, devices)
        parts = [(frozen, shape.parameters), (adapter, trainable(shape, settings))]
    names = {"weights": "weight", "gradients": "gradient", "optimiser": "optimiser"}
    return {name: round(sum(getattr(s, field) * n for s, n in parts)) for name, field in names.items()}


def gathered_weights(shape: Shape, settings: Settings) -> int:
    """Whole weights that stand beside the shards while layers run.

    ZeRO 3 releases them once ``ZERO3_LIVE_PARAMETERS`` are alive; FSDP 2 holds the layer at work, the next one, and the
    embedding and head (its root group stays whole from the forward to the backward).
    """
    w = DTYPES[settings.dtype]
    if settings.strategy == "fsdp2":
        return w * (2 * shape.layer + shape.embedding + shape.head + shape.rest)
    if settings.strategy in ("zero3", "zero3_offload"):
        return w * min(shape.parameters, max(ZERO3_LIVE_PARAMETERS, 2 * shape.layer, shape.head_matrix))
    return 0


def buffers(shape: Shape, settings: Settings) -> int:
    """Communication buffers that live through the step: DDP's buckets are a second copy of all gradients
    (``gradient_as_bucket_view`` is off), DeepSpeed has two reduce buckets of H^2 elements (``overlap_comm``)."""
    if settings.devices == 1:
        return 0
    adapter = bool(settings.lora_r) and settings.strategy in ("single", "ddp")
    w = DTYPES["fp32" if adapter else settings.dtype]
    if settings.strategy == "ddp":
        return w * trainable(shape, settings)
    return 2 * w * shape.hidden**2 if settings.strategy.startswith("zero") else 0


def host_bytes(shape: Shape, settings: Settings) -> int:
    """Host memory per device that offloading needs: everything that zero3 would keep on the device."""
    if settings.strategy != "zero3_offload":
        return 0
    resident = state_bytes("zero3", settings.dtype, settings.devices)
    frozen = DTYPES[settings.dtype] / settings.devices * shape.parameters if settings.lora_r else 0
    return round(frozen + resident.total * trainable(shape, settings))
