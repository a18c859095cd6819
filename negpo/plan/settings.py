"""What a plan is asked about, and the units it is written in."""

import re
from dataclasses import dataclass

from negpo.errors import ConfigError
from negpo.methods import StepCost
from negpo.plan.methods import cost_of

GIB = 2**30
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
REFERENCES = ("auto", "cache", "model", "adapter")
ENGINES = ("transformers", "vllm", "vllm-server")
DTYPES = {"bf16": 2, "fp32": 4}  # bytes of a weight
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": GIB}


@dataclass(frozen=True)
class Device:
    """Usable bytes, dense bf16 operations per second, bytes per second of its memory (vendors' data sheets, SXM)."""

    memory: int
    flops: float
    bandwidth: float


DEVICES = {
    "a100": Device(80 * GIB, 312e12, 2.04e12),
    "h100": Device(80 * GIB, 989e12, 3.35e12),
    "h200": Device(141 * 10**9, 989e12, 4.8e12),
    "cpu": Device(16 * GIB, 1e11, 2e10),
}


@dataclass(frozen=True)
class Settings:
    """One question. Lengths in tokens, memory in bytes, ``flops`` per second and device.

    micro_batch: ``per_device_train_batch_size``. sequence_length: prompt plus answer of every row; padding counts.
    answer_share: share of the tokens that the loss scores. reference "auto" is the cache where that is enough.
    utilisation: share of ``flops`` that the executed operations reach (without recomputation this is the MFU).
    samples: completions per prompt; max_new_tokens: longest completion (for methods with rollouts).
    device_type "cpu" plans with the tiles used there.
    """

    method: str = "npo"
    strategy: str = "single"
    devices: int = 1
    micro_batch: int = 4
    gradient_accumulation: int = 1
    sequence_length: int = 2048
    answer_share: float = 1.0
    dtype: str = "bf16"
    lora_r: int = 0
    gradient_checkpointing: bool = False
    reference: str = "auto"
    engine: str = "transformers"
    samples: int = 8
    max_new_tokens: int = 1024
    device_type: str = "cuda"
    memory: int = DEVICES["h100"].memory
    flops: float = DEVICES["h100"].flops
    bandwidth: float = DEVICES["h100"].bandwidth
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        choices = {"strategy": STRATEGIES, "reference": REFERENCES, "engine": ENGINES, "dtype": tuple(DTYPES)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name in ("devices", "micro_batch", "gradient_accumulation", "sequence_length", "samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("memory", "flops", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        for name in ("answer_share", "utilisation"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is a share, above 0 and at most 1")
        if self.lora_r < 0:
            raise ConfigError(f"lora_r is {self.lora_r}; use 0 to train all weights")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.strategy == "single" and self.devices != 1:
            raise ConfigError(
                f"strategy=single runs on one device, not {self.devices}; choose ddp, zero2, zero3 or fsdp2"
            )
        if self.reference == "adapter" and not self.lora_r:
            raise ConfigError("reference=adapter switches the adapter off; it needs lora_r above 0")
        if self.reference != "auto" and self.cost.reference == "none":
            raise ConfigError(
                f"reference={self.reference} would be ignored: {self.method} reads no reference; leave it out"
            )
        if self.reference == "cache" and self.cost.reference == "model":
            raise ConfigError(f"{self.method} needs a reference model in every step; reference=cache is not enough")
        if self.cost.updates and self.max_new_tokens >= self.sequence_length:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in sequence_length="
                f"{self.sequence_length}: that is prompt plus completion"
            )
        if self.cost.updates and self.micro_batch * self.gradient_accumulation % self.samples:
            raise ConfigError(
                f"micro_batch x gradient_accumulation = {self.micro_batch * self.gradient_accumulation} rows would "
                f"split groups of samples={self.samples}. Make it a multiple"
            )

    @property
    def cost(self) -> StepCost:
        return cost_of(self.method)

    @property
    def rows(self) -> int:
        """Rows of one forward on one device."""
        return self.micro_batch * self.cost.rows

    @property
    def tokens(self) -> int:
        """Positions of one forward on one device."""
        return self.rows * self.sequence_length

    @property
    def answer_tokens(self) -> int:
        """Positions that the head sees; the first token of a row has nothing before it."""
        return max(1, round(self.rows * min(self.sequence_length * self.answer_share, self.sequence_length - 1)))

    @property
    def reference_in_steps(self) -> str:
        """What a step runs besides the policy: "none", "adapter" (the policy itself) or "model" (a second one)."""
        if self.cost.reference == "none":
            return "none"
        if self.cost.reference == "model":
            return "adapter" if self.lora_r and self.reference in ("auto", "adapter") else "model"
        return "none" if self.reference in ("auto", "cache") else self.reference

    @property
    def rollout_rows(self) -> int:
        """Completions that one device draws for one rollout batch; 0 for methods on stored rows."""
        return self.micro_batch * self.gradient_accumulation * self.cost.updates


def parse_bytes(text: str) -> int:
    """``80GiB``, ``24 GB`` or plain bytes. Raises ConfigError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", text, re.IGNORECASE)
    if not found or found.group(2).upper() not in _UNITS:
        raise ConfigError(f"{text!r} is not an amount of memory; write 80GiB, 24GB or a number of bytes")
    return int(float(found.group(1)) * _UNITS[found.group(2).upper()])
