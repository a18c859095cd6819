"""Part a: the log-prob core against full logits, TRL, Liger and torch.compile; the constants of the cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from _gpu.common import Context, Skip
from torch import Tensor

from negpo.logprobs import row_plan, token_logprobs

VARIANTS = ("negpo", "negpo tiles", "negpo on TRL's kernel", "Liger", "full logits", "full logits, compiled")
# vocabulary, hidden, tokens, labelled share, head trained: ordered so that the first ones say most
CASES = [
    (151_936, 1536, 8192, 1.0, True),
    (151_936, 896, 8192, 1.0, True),
    (151_936, 3584, 8192, 1.0, True),
    (128_256, 4096, 8192, 1.0, True),
    (151_936, 1536, 8192, 0.3, True),
    (151_936, 1536, 8192, 1.0, False),
    (49_152, 896, 32_768, 1.0, True),
    (151_936, 1536, 32_768, 0.3, True),
    (128_256, 4096, 8192, 0.3, False),
    (151_936, 896, 16_384, 0.1, True),
]
TOYS = [(600, 32, 64, 0.3, True), (600, 32, 64, 1.0, False)]
COMPILED = 2  # cases for torch.compile, which takes seconds for each new shape
CHECKED = 32  # tokens compared with float64


@dataclass
class Inputs:
    hidden: Tensor
    weight: Tensor
    labels: Tensor
    mask: Tensor
    upstream: Tensor


def run(context: Context) -> None:
    constants(context)
    for place, (vocab, hidden, tokens, share, trained) in enumerate(TOYS if context.rehearse else CASES):
        case = {"vocab": vocab, "hidden": hidden, "tokens": tokens, "share": share, "head_trained": trained}
        inputs = make_inputs(context, **case)
        for name in VARIANTS if place < COMPILED else VARIANTS[:-1]:
            context.attempt({"part": "a", "variant": name, **case}, lambda n=name, i=inputs: one(context, n, i))


def make_inputs(context: Context, vocab: int, hidden: int, tokens: int, share: float, head_trained: bool) -> Inputs:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, device=context.device)
    mask = torch.rand(1, tokens, device=context.device) < share
    mask[0, 0] = True
    return Inputs(
        draw(1, tokens, hidden).to(context.dtype).requires_grad_(),
        (draw(vocab, hidden) * (3 / hidden**0.5)).to(context.dtype).requires_grad_(head_trained),
        torch.randint(vocab, (1, tokens), device=context.device),
        mask,
        draw(1, tokens) / tokens,
    )


def one(context: Context, name: str, inputs: Inputs) -> dict[str, Any]:
    function = variant(context, name)

    def step() -> tuple[Tensor, Tensor]:
        inputs.hidden.grad = inputs.weight.grad = None
        logps = function(inputs)
        (logps * inputs.upstream).sum().backward()
        return logps.detach(), inputs.hidden.grad

    measured = context.measure(step)
    return measured | errors(inputs, *step())


def variant(context: Context, name: str) -> Any:
    backends = {"negpo": "auto", "negpo tiles": "torch", "negpo on TRL's kernel": "trl"}
    if name in backends:
        return lambda i: token_logprobs(i.hidden, i.weight, i.labels, i.mask, backend=backends[name])
    if name == "Liger":
        return liger(context)
    if name.endswith("compiled"):
        if context.rehearse:
            raise Skip("compiled on a GPU only")
        return torch.compile(full_logits)
    return full_logits


def full_logits(i: Inputs) -> Tensor:
    logits = (i.hidden @ i.weight.t()).float()
    return logits.log_softmax(-1).gather(-1, i.labels.unsqueeze(-1)).squeeze(-1) * i.mask


def liger(context: Context) -> Any:
    """Its fused linear cross-entropy, per token."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise Skip("liger-kernel is not installed") from None
    if context.rehearse:
        raise Skip("Liger needs a GPU")
    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    ignored = lambda i: i.labels.masked_fill(~i.mask, -100).reshape(-1)
    return lambda i: -loss(i.weight, i.hidden.reshape(-1, i.hidden.shape[-1]), ignored(i)).view_as(i.labels)


def errors(inputs: Inputs, logps: Tensor, grad: Tensor) -> dict[str, float]:
    """Largest distance of log-probs (nats) and of hidden gradients (share of the largest entry) to float64."""
    index = inputs.mask.reshape(-1).nonzero().squeeze(1)[:CHECKED]
    states = inputs.hidden.detach().reshape(-1, inputs.hidden.shape[-1])[index].double().requires_grad_()
    exact = (states @ inputs.weight.detach().double().t()).log_softmax(-1)
    exact = exact.gather(1, inputs.labels.reshape(-1)[index].unsqueeze(1)).squeeze(1)
    (exact * inputs.upstream.reshape(-1)[index].double()).sum().backward()
    found = grad.reshape(-1, grad.shape[-1])[index].double()
    return {
        "logp_error": (logps.reshape(-1)[index].double() - exact.detach()).abs().max().item(),
        "grad_error": ((found - states.grad).abs().max() / states.grad.abs().max()).item(),
    }


def constants(context: Context) -> None:
    """What this device reaches, beside what negpo.logprobs.row_plan assumes."""
    size, device = (64, context.device) if context.rehearse else (8192, context.device)
    seconds = lambda run: context.measure(run, most=1.0)["seconds"]
    found = {}
    for name, dtype in (("HALF_FLOPS", torch.bfloat16), ("FLOAT_FLOPS", torch.float32)):
        a = torch.randn(size, size, device=device).to(dtype)
        found[name] = 2 * size**3 / seconds(lambda a=a: a @ a)
    block = torch.randn(size * size * (1 if context.rehearse else 8), device=device)
    target = torch.empty_like(block)
    found["BYTES_PER_SECOND"] = 2 * block.numel() * 4 / seconds(lambda: target.copy_(block))
    small = torch.zeros(1, device=device)
    found["SECONDS_PER_LAUNCH"] = seconds(lambda: [small.add_(1) for _ in range(100)]) / 100
    for name, value in found.items():
        context.record(part="a", constant=name, measured=value, assumed=getattr(row_plan, name))
