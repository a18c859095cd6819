"""The proof after every sync: the same few tokens are scored by engine and trainer, and the layers are compared.

Log-probs see everything an engine does wrong (a stale packed kernel, a wrong rope base), but only above rounding: a
bfloat16 engine one small step behind looks current. Where an engine shows its layers they are compared as well, which
catches the small step and names the layer.

Like is compared with like. A trainer under bfloat16 autocast rounds every product, a float32 engine with the same
weights does not: 0.05 nats apart and both right. So the trainer's weights are scored without autocast, in the dtype in
which they are stored, and the tolerance is that of the coarser side.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from negpo.logprobs.products import ignoring_autocast
from negpo.models import evaluating, unwrap
from negpo.rollout.base import RolloutEngine, StaleWeightsError, SyncReport

# Largest |engine - trainer| of a token's log-prob, in nats; the mean may reach a fifth of it. Unlikely random tokens
# have logits of -15 and more, of which bfloat16 keeps 8 bits.
TOLERANCE = {torch.float64: 5e-4, torch.float32: 5e-4, torch.float16: 5e-2, torch.bfloat16: 3e-1}


@dataclass(frozen=True)
class Probe:
    """Token sequences to score. They are drawn once from the vocabulary with a fixed seed."""

    sequences: tuple[tuple[int, ...], ...]

    @classmethod
    def for_model(cls, model: nn.Module, *, sequences: int = 4, length: int = 16) -> Probe:
        vocabulary = unwrap(model).config.get_text_config(decoder=True).vocab_size
        ids = torch.randint(vocabulary, (sequences, length), generator=torch.Generator().manual_seed(0))
        return cls(tuple(map(tuple, ids.tolist())))

    def verify(
        self, engine: RolloutEngine, model: nn.Module, *, started: float | None = None, bytes_sent: int = 0
    ) -> SyncReport:
        """Score on both sides, compare layers, and refuse when either differs.

        Args:
            started: `time.perf_counter()` at the beginning of the sync, so that the report covers all of it.
            bytes_sent: size of what was handed over, for the report.

        Raises:
            StaleWeightsError: a gap is above the tolerance of the coarser dtype, or a layer differs.
        """
        started = time.perf_counter() if started is None else started
        theirs = engine.score(self.sequences)
        with stored_precision(model):
            ours = score_tokens(model, self.sequences)
        gaps = _gaps(theirs, ours)
        layers = engine.stale_layers(model)
        tolerance = max(TOLERANCE[engine.dtype], TOLERANCE[unwrap(model).dtype])
        report = SyncReport(
            max_gap=float(gaps.max()),
            mean_gap=float(gaps.mean()),
            tolerance=tolerance,
            tokens=gaps.numel(),
            seconds=time.perf_counter() - started,
            bytes_sent=bytes_sent,
        )
        # Written so that a NaN gap fails.
        close = report.max_gap <= tolerance and report.mean_gap <= tolerance / 5
        if layers or not close:
            raise StaleWeightsError(_explain(engine.name, report, layers), layers=layers)
        return report


def _gaps(some: list[list[float]], others: list[list[float]]) -> torch.Tensor:
    return torch.tensor([abs(a - b) for x, y in zip(some, others, strict=True) for a, b in zip(x, y, strict=True)])


@contextlib.contextmanager
def stored_precision(model: nn.Module) -> Iterator[None]:
    """Switch off the autocast that accelerate has wrapped around the model's forward, for the duration.

    The wrapper itself stays, with its hooks (DDP, ZeRO, FSDP): only what runs inside the backbone and the head of
    negpo.logprobs changes.
    """
    backbone = unwrap(model).base_model
    inner, device = backbone.forward, next(model.parameters()).device.type
    own = "forward" in backbone.__dict__

    @functools.wraps(inner)  # transformers inspects the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return inner(*args, **kwargs)

    backbone.forward = forward
    try:
        with ignoring_autocast():
            yield
    finally:
        if own:
            backbone.forward = inner
        else:
            del backbone.forward


def _explain(engine: str, report: SyncReport, layers: Sequence[str]) -> str:
    head = (
        f"{engine} engine does not hold the trainer's weights: log-probs of {report.tokens} probe tokens differ by up "
        f"to {report.max_gap:.3g} nats, on average {report.mean_gap:.3g} (allowed {report.tolerance:g} and "
        f"{report.tolerance / 5:g})."
    )
    if layers:
        more = f" and {len(layers) - 8} more" if len(layers) > 8 else ""
        return f"{head} Layers that differ: {', '.join(layers[:8])}{more}. Restart the engine from a fresh checkpoint."
    return (
        f"{head} No layer stands out: check that both sides use the same checkpoint, dtype and rope settings, "
        "then restart the engine."
    )


def score_tokens(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probs at temperature 1 of tokens 1, 2, ... of every sequence under a torch model, as one padded batch."""
    from negpo.logprobs import model_token_logprobs

    device = next(model.parameters()).device
    longest = max(map(len, sequences))
    ids = torch.tensor([list(s) + [0] * (longest - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=device)
    with evaluating(model):
        scored = model_token_logprobs(model, ids, mask, ids.masked_fill(mask == 0, -100))
    return [row[: len(s) - 1].tolist() for row, s in zip(scored.logps, sequences, strict=True)]
