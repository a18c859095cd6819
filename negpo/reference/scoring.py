"""Scoring encoded rows with a frozen model, and the check that policy and reference agree before the first step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negpo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Largest and mean |log-prob difference| that different batch shapes of the same kernels explain.
TOLERANCE = {"float64": (1e-6, 1e-7), "float32": (1e-3, 1e-4), "bfloat16": (1.0, 0.05), "float16": (0.5, 0.02)}


def score_rows(
    model: Any,
    rows: Sequence[dict[str, list[int]]],
    *,
    pad_id: int,
    tokens_per_batch: int = 8192,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, "np.ndarray"]]:
    """Yield ``(row, log-probs of its labelled tokens)`` under ``no_grad`` and in eval mode, longest rows first.

    Longest first: a batch that does not fit in memory fails at once and not after an hour. ``share`` is (process,
    processes): each scores every so-many-th batch. All run the same number of forwards, as split weights demand; the
    rows of a forward that only keeps step come twice.
    """
    from negpo.data.collate import pad_batch
    from negpo.logprobs import model_token_logprobs
    from negpo.models import evaluating

    device = next(model.parameters()).device
    for batch in _share_of(list(_length_sorted(rows, tokens_per_batch)), *share):
        padded = pad_batch([rows[i] for i in batch], pad_id)
        inputs: dict[str, Any] = {name: value.to(device) for name, value in padded.items()}
        with evaluating(model):  # not around the loop: whoever takes these values may train in between
            out = model_token_logprobs(model, **inputs)
        logps, mask = out.logps.float().cpu(), out.mask.cpu()
        for i, row in enumerate(batch):
            yield row, logps[i][mask[i]].numpy()


def _share_of(batches: list[list[int]], process: int, processes: int) -> list[list[int]]:
    mine = batches[process::processes]
    return mine + batches[:1] * (-(-len(batches) // processes) - len(mine))


def _length_sorted(rows: Sequence[dict[str, list[int]]], tokens_per_batch: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])):
        longest = len(rows[batch[0] if batch else index]["input_ids"])
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class StepZeroCheck:
    """max and mean of |policy - reference| over the labelled tokens of the first batch."""

    largest: float
    mean: float

    @classmethod
    def measure(cls, logps: "torch.Tensor", ref_logps: "torch.Tensor", mask: "torch.Tensor") -> "StepZeroCheck":
        gap = (logps.detach().float() - ref_logps.float())[mask].abs()
        return cls(gap.max().item(), gap.mean().item())

    def enforce(self, precision: str) -> None:
        """Raise ConfigError when the two differ by more than the precision explains. NaN counts as different."""
        largest, mean = TOLERANCE.get(precision, TOLERANCE["float32"])
        if self.largest <= largest and self.mean <= mean:
            return
        raise ConfigError(
            f"before the first step the policy's log-probs differ from the reference's by up to {self.largest:.3g} "
            f"(mean {self.mean:.3g}; {precision} explains {largest:g} and {mean:g}). The log-ratio must start at 0. "
            "Usual causes: dropout is on (set attention_dropout and its like to 0 in the model config), the reference "
            "runs in another dtype or attention kernel, ref_model is not the model that training starts from, or a "
            "PEFT model already carries a trained adapter (merge it first). check_reference=False skips this check."
        )
