"""Quantisation attack: unlearning moves weights by less than a quantisation step, so rounding them can undo it.

Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", arXiv 2410.16454. Weight-only
round-to-nearest, simulated: weights are rounded and scaled back in place, the arithmetic stays in the model's dtype.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError
from negpo.eval.attacks.base import AttackData, AttackResult, Stopwatch, Target, conclude, private_copy
from negpo.eval.attacks.measure import PROBABILITY, ROUGE, Asker, check, not_finite, recover, settings_of
from negpo.eval.attacks.nf4 import round_to_nf4
from negpo.eval.scoring import Batching, Report


@dataclass(frozen=True)
class Quantise:
    """Round every linear weight to ``bits`` bits.

    scheme: "uniform" steps, or "nf4" as bitsandbytes rounds (blocks of 64 over the flattened weight; ``bits`` must be 4
    and ``group`` None). double_quant: nf4 with 8-bit scales, QLoRA's default.
    group: input columns that share one scale; None is one scale per output channel. head: the output embeddings too,
    which common quantisers leave alone (where they are tied, the input embeddings change with them).
    """

    bits: int = 4
    group: int | None = 128
    head: bool = False
    scheme: str = "uniform"
    double_quant: bool = False
    max_new_tokens: int = 200
    batching: Batching = field(default_factory=Batching)

    def __post_init__(self) -> None:
        check(self.bits, lambda bits: 2 <= bits <= 8, "bits must be between 2 and 8")
        check(self.scheme, lambda scheme: scheme in ("uniform", "nf4"), "scheme must be uniform or nf4")
        if self.scheme == "nf4" and (self.bits != 4 or self.group is not None):
            raise ConfigError(f"scheme=nf4 has 4 bits and its own blocks, not bits={self.bits} and group={self.group}")
        if self.double_quant and self.scheme != "nf4":
            raise ConfigError("double_quant belongs to scheme=nf4 and would be ignored")
        check(self.group, lambda group: group is None or group >= 1, "group must be a positive number or None")

    @property
    def name(self) -> str:
        return "quantise_nf4" if self.scheme == "nf4" else f"quantise_{self.bits}bit"

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """Answers before and after rounding; the value is mean ROUGE-L recall after it.

        Raises:
            ConfigError: the model has no linear weight to round.
        """
        model, tokenizer, template = target
        watch = Stopwatch()
        asker = Asker.for_model(model, tokenizer, template, self.max_new_tokens)
        asks = [asker.ask(item) for item in data.forget]
        plain = recover(model, tokenizer, asks, batching=self.batching, stage=f"{self.name}: before", progress=progress)
        twin = private_copy(model)
        if self.scheme == "nf4":
            share = quantise_nf4_(twin, head=self.head, double_quant=self.double_quant)
        else:
            share = quantise_(twin, self.bits, self.group, head=self.head)
        rounded = recover(twin, tokenizer, asks, batching=self.batching, stage=self.name, progress=progress)
        measured = {
            **{key: [row[key] for row in rounded] for key in (ROUGE, PROBABILITY)},
            **{f"{key}_before": [row[key] for row in plain] for key in (ROUGE, PROBABILITY)},
        }
        notes = [f"{share:.1%} of all parameters were rounded", *not_finite(rounded)]
        per_item = [
            {**row, "value": row[ROUGE], "before": {key: old[key] for key in (ROUGE, PROBABILITY, "generation")}}
            for row, old in zip(rounded, plain, strict=True)
        ]
        return watch.stamp(
            conclude(self.name, settings_of(self, seed), ROUGE, measured, per_item=per_item, notes=notes)
        )


@torch.no_grad()
def quantise_(model: nn.Module, bits: int, group: int | None, *, head: bool = False) -> float:
    """Round the linear weights of ``model`` in place; returns the share of its parameters that were rounded.

    Raises:
        ConfigError: there is no linear weight.
    """
    return _round_all(model, lambda weight: round_to_nearest(weight, bits, group), head)


@torch.no_grad()
def quantise_nf4_(model: nn.Module, *, head: bool = False, double_quant: bool = False) -> float:
    """As ``quantise_``, to NF4: what loading the model with ``bnb_4bit_quant_type="nf4"`` would compute with."""
    return _round_all(model, lambda weight: round_to_nf4(weight, double_quant=double_quant), head)


def _round_all(model: nn.Module, rounded: Callable[[Tensor], Tensor], head: bool) -> float:
    done = {id(weight): weight for weight in _linear_weights(model, head)}
    if not done:
        raise ConfigError(f"{type(model).__name__} has no linear layer whose weight could be quantised")
    for weight in done.values():
        weight.copy_(rounded(weight))
    return sum(weight.numel() for weight in done.values()) / sum(p.numel() for p in model.parameters())


def _linear_weights(model: nn.Module, head: bool) -> Iterator[Tensor]:
    """Weights (out, in) of all linear layers; GPT-2 stores them transposed, there it is a view."""
    from transformers.pytorch_utils import Conv1D

    embeddings: Any = getattr(model, "get_output_embeddings", None)
    output = embeddings() if embeddings else None
    for module in model.modules():
        if module is output and not head:
            continue
        if isinstance(module, nn.Linear):
            yield module.weight
        elif isinstance(module, Conv1D):
            yield module.weight.t()


def round_to_nearest(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """``weight`` (out, in) on a symmetric grid of 2^bits − 1 levels: s · round(w / s), s = max|w| / (2^(bits−1) − 1).

    One scale s per row and ``group`` columns (None: per row); the last group of a row may be shorter. A group of zeros
    stays zero. Computed in float32, returned in the weight's dtype.
    """
    levels = 2 ** (bits - 1) - 1
    parts = weight.float().split(group or weight.shape[1], dim=1)
    rounded = []
    for part in parts:
        scale = part.abs().amax(dim=1, keepdim=True) / levels
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        rounded.append((part / scale).round().clamp(-levels, levels) * scale)
    return torch.cat(rounded, dim=1).to(weight.dtype)
