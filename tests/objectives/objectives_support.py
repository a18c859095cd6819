"""Shared by the objective tests: batches, gradients, and the toy language model behind the reference numbers."""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = (6, 3, 1)


def batch(*names: str, lengths=LENGTHS, seed=0, dtype=torch.float64, shape=None) -> tuple[Tensor, ...]:
    """``len(names)`` tensors of log-probs (requiring grad) and one right-padded mask, ``lengths`` rows of tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + 1
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)
    if shape is not None:
        mask = mask.view(*shape, width)
    tensors = [
        torch.rand(mask.shape, generator=generator, dtype=torch.float64).mul(-2.5).sub(0.01).to(dtype) for _ in names
    ]
    return (*[tensor.requires_grad_() for tensor in tensors], mask)


def gradient(loss: Tensor, *tensors: Tensor):
    """Gradients of ``loss``; a tensor without influence gives zeros. One tensor in, one tensor out."""
    grads = torch.autograd.grad(loss, tensors, allow_unused=True, retain_graph=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]
    return grads[0] if len(grads) == 1 else grads


def close(actual, expected, rtol=1e-9, atol=1e-12) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


class ToyModel:
    """The look-up table of logits of fixtures/unlearning/inputs.json: 12 rows, 4 forget, 4 idk, 4 retain, float64."""

    def __init__(self, inputs: dict):
        self.rows = {name: slice(*bounds) for name, bounds in inputs["rows"].items()}
        self.labels = torch.tensor(inputs["labels"])
        self.input_ids = torch.tensor(inputs["input_ids"])
        self.policy_logits = torch.tensor(inputs["policy_logits"], dtype=torch.float64, requires_grad=True)
        self.ref_logits = torch.tensor(inputs["ref_logits"], dtype=torch.float64)
        self.full_labels = False

    def _labels(self, rows: str) -> Tensor:
        return (self.input_ids if self.full_labels else self.labels)[self.rows[rows], 1:]

    def mask(self, rows: str) -> Tensor:
        return self._labels(rows) != -100

    def logps(self, rows: str) -> Tensor:
        return self._gather(self.policy_logits, rows)

    def ref(self, rows: str) -> Tensor:
        return self._gather(self.ref_logits, rows)

    def full(self, rows: str) -> tuple[Tensor, Tensor]:
        """Log-softmaxed policy and reference over the vocabulary at every position, (B, T, V)."""
        return tuple(x[self.rows[rows]].log_softmax(-1) for x in (self.policy_logits, self.ref_logits))

    def _gather(self, logits: Tensor, rows: str) -> Tensor:
        labels = self._labels(rows).clamp(min=0)
        return logits[self.rows[rows], :-1].log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def assert_matches(self, loss: Tensor, case: dict) -> None:
        """Loss to 1e-9 relative and the gradient on all logits to 1e-7 absolute of the stored reference."""
        close(loss, case["loss"], rtol=1e-9, atol=1e-14)
        expected = torch.zeros_like(self.policy_logits)
        for row, values in case["grad"].items():
            expected[int(row)] = torch.tensor(values, dtype=torch.float64)
        grad = gradient(loss, self.policy_logits)
        assert (grad - expected).abs().max() < 1e-7
        assert (grad - expected).norm() <= 1e-7 * max(1.0, expected.norm().item())
