"""Token log-probabilities of a whole model: plain, PEFT-wrapped, or inside DDP, DeepSpeed or FSDP.

The wrapper's own forward is called, so that every hook runs (DDP's reducer, ZeRO-3's and FSDP's gathering, accelerate's
autocast). Only the ``forward`` of the head module is exchanged for the duration of the call: it receives the hidden
states, computes what is asked for inside the model's forward, where sharded parameters are whole, and returns a probe
of a few numbers instead of logits. Two things follow:

* What the model does to the probe (Gemma's soft cap, Granite's division) is compared with what we assumed. A model that
  does something unknown to its logits is refused, not scored wrongly. This costs nothing.
* The result is tied to the probe in the autograd graph: backward passes (with a zero gradient) through the wrapper's
  output and the head module's output first. The hooks that gather parameters for the backward, reduce and release them
  therefore fire exactly as they do for ordinary logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from negpo.logprobs.core import score_tokens
from negpo.logprobs.head import HeadSpec, head_module, head_of, unwrap
from negpo.logprobs.layout import Layout, can_repack, choose_lines, packed_layout, padded_layout
from negpo.logprobs.products import Products, autocast_dtype
from negpo.logprobs.tiles import full, gathered, no_autocast

_PROBE = (0.0, 1.0, -2.5, 7.0, 40.0, -90.0)
_PACKABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

# (hidden (R, C, H), head) -> tensors that carry the gradient
HeadFunction = Callable[[Tensor, HeadSpec], tuple[Tensor, ...]]


@dataclass(frozen=True)
class LogprobBatch:
    """Row t scores ``labels[:, t + 1]``.

    logps: (B, T-1) float32, 0 where mask is False. mask: (B, T-1) bool, ``labels[:, 1:] != -100``.
    entropy: (B, T-1) float32 in nats, or None. hidden: (B, T-1, H), the states that predict, or None.
    """

    logps: Tensor
    mask: Tensor
    entropy: Tensor | None = None
    hidden: Tensor | None = None


def model_token_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    return_entropy: bool = False,
    return_hidden: bool = False,
    packing: str = "auto",
    layout: Layout | None = None,
    tile_bytes: int | None = None,
    product_dtype: torch.dtype | None = None,
) -> LogprobBatch:
    """Log-probabilities of all labelled tokens of a batch, through any wrapper, differentiable unless under no_grad.

    input_ids, labels: (B, T) int64, -100 where a label does not count; attention_mask: (B, T), None for no padding.
    packing: "auto" (cheapest layout that the model supports), "padded" (the batch as it is) or "packed"; a ready
    ``layout`` (negpo.logprobs.shared) takes its place. tile_bytes, product_dtype: as in ``token_logprobs``.
    """
    labels = labels[:, 1:]
    mask = labels != -100
    if layout is None:
        layout = choose_layout(model, input_ids, attention_mask, nn.functional.pad(mask, (0, 1)), packing)
    flat, targets, order = sorted_targets(layout, labels, mask)

    def head_function(hidden: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
        check_vocabulary(targets, head)
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat)
        logit_map = head.logit_map(temperature)
        scores = score_tokens(
            states, head.weight, head.bias, targets, logit_map, return_entropy, tile_bytes, head.products
        )
        return (*scores, hidden) if return_hidden else scores

    scores = run_with_head(model, layout, head_function, product_dtype)
    logps = spread(scores[0], order, mask)
    entropy = spread(scores[1], order, mask) if return_entropy else None
    return LogprobBatch(logps, mask, entropy, unpack(scores[-1], layout)[:, :-1] if return_hidden else None)


def backbone_hidden(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, packing: str = "auto"
) -> Tensor:
    """The states (B, T, H) that the head sees; zeros on padding when the batch was packed."""
    needed = torch.zeros_like(input_ids, dtype=torch.bool)
    layout = choose_layout(model, input_ids, attention_mask, needed, packing)
    return unpack(run_with_head(model, layout, lambda hidden, _: (hidden,))[0], layout)


def choose_layout(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, needed: Tensor, packing: str
) -> Layout:
    """Layout for a batch; ``needed`` (B, T) marks the positions whose states will be read."""
    if packing not in ("auto", "padded", "packed"):
        raise ValueError(f"packing must be 'auto', 'padded' or 'packed', got {packing!r}")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if packing != "padded" and can_repack(attention_mask, needed) and supports_packing(model):
        config = unwrap(model).config.get_text_config()
        single = packing == "packed" or "flash" in str(config._attn_implementation)
        lengths = attention_mask.bool().sum(1).tolist()
        lines = choose_lines(lengths, input_ids.shape[1], config.hidden_size, single=single)
        if lines is not None:
            return packed_layout(input_ids, attention_mask, lines)
    return padded_layout(input_ids, attention_mask)


def run_with_head(
    model: nn.Module, layout: Layout, head_function: HeadFunction, product_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Runs the (wrapped) model on a layout with ``head_function`` in the place of its head; returns its tensors.

    The head it is given carries the precision of its products: ``product_dtype``, or what the model computes in.
    """
    inputs = {"input_ids": layout.input_ids, "use_cache": False}
    if layout.attention_mask is not None:
        inputs["attention_mask"] = layout.attention_mask
    if layout.position_ids is not None and accepts(model, "position_ids"):
        inputs["position_ids"] = layout.position_ids
    head = head_module(model)
    results: list[Tensor] = []

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        spec = head_of(model)
        products = Products.choose(hidden, autocast_dtype(hidden.device), product_dtype)
        with gathered(spec.weight, spec.bias), no_autocast(hidden.device):
            spec = replace(spec, weight=full(spec.weight), bias=full(spec.bias), products=products)
            results.extend(head_function(hidden.to(spec.weight.device), spec))
        probe = torch.tensor(_PROBE, device=hidden.device).view(1, 1, -1)
        return _Tie.apply(probe, *results)[0] if torch.is_grad_enabled() else probe

    with _exchanged(head, forward):
        logits = model(**inputs).logits
    if not results:
        raise ValueError(f"{type(unwrap(model)).__name__} never called its output embeddings; it cannot be scored")
    _check_probe(logits, model)
    return _Tie.apply(*results, logits)[:-1] if torch.is_grad_enabled() else tuple(results)


@contextmanager
def _exchanged(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """``module.forward`` is ``forward`` inside the context, hooks stay; an instance attribute of before is put back."""
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]


class _Tie(torch.autograd.Function):
    """Identity on all arguments that makes each output depend on every input; missing gradients arrive as zeros."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


def _check_probe(logits: Tensor, model: nn.Module) -> None:
    """Raises ValueError when the model treats its logits differently from its :func:`logit_constants`."""
    spec = head_of(model)
    expected = spec.logit_map().apply_(torch.tensor(_PROBE, device=logits.device))
    found = logits.detach().float().reshape(-1)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"{type(unwrap(model)).__name__} changes its logits in a way that is not supported: expected "
            f"logit_scale = {spec.logit_scale} and softcap = {spec.softcap} to map {list(_PROBE)} to "
            f"{[round(x, 4) for x in expected.tolist()]}, the model gave {[round(x, 4) for x in found.tolist()]}"
        )


def supports_packing(model: nn.Module) -> bool:
    """Whether rows packed into one line stay independent, found out once per model with two short rows.

    Recurrent and hybrid models carry state across the border, ALiBi models have no position ids: those fall back. The
    test runs in eval mode without gradients, through the wrapper, so that all ranks take part and no random number is
    drawn.
    """
    base = unwrap(model)
    if base not in _PACKABLE:
        _PACKABLE[base] = accepts(model, "position_ids") and _packing_probe(model)
    return _PACKABLE[base]


def _packing_probe(model: nn.Module) -> bool:
    device = head_module(model).weight.device
    vocab = unwrap(model).config.get_text_config().vocab_size
    ids = (torch.arange(10, device=device).view(2, 5) * 7 + 1) % vocab
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device)
    with eval_mode(model), torch.no_grad():
        layouts = padded_layout(ids, mask), packed_layout(ids, mask, [[0, 1]])
        padded, packed = (unpack(run_with_head(model, x, lambda h, _: (h,))[0], x)[mask.bool()] for x in layouts)
    tolerance = 1e-4 if padded.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((padded - packed).float().norm() <= tolerance * padded.float().norm())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout inside the context; every module's mode of before is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(type(unwrap(model)).forward).parameters


def unpack(hidden: Tensor, layout: Layout) -> Tensor:
    """(R, C, H) to (B, T, H); zeros where nothing was computed."""
    if not layout.packed:
        return hidden
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = flat.index_select(0, layout.place.reshape(-1).clamp(min=0)).view(*layout.place.shape, -1)
    return rows.masked_fill((layout.place < 0).unsqueeze(-1), 0.0)


def sorted_targets(layout: Layout, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For the labelled tokens in ascending order of their label: (place in the network, label, place in (B, T-1))."""
    order = mask.reshape(-1).nonzero().squeeze(1)
    targets, by_label = labels.reshape(-1)[order].sort()
    order = order[by_label]
    return layout.place[:, :-1].reshape(-1)[order], targets, order


def spread(values: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    """(n,) values to their places in (B, T-1), zeros elsewhere."""
    return values.new_zeros(mask.numel()).index_copy(0, order, values).view(mask.shape)


def check_vocabulary(sorted_labels: Tensor, head: HeadSpec) -> None:
    """ValueError when a label lies outside the head's rows."""
    vocab = head.weight.shape[0]
    if sorted_labels.numel() and (sorted_labels[0] < 0 or sorted_labels[-1] >= vocab):
        raise ValueError(
            f"labels range from {sorted_labels[0].item()} to {sorted_labels[-1].item()}, the model's vocabulary has "
            f"{vocab} entries; check that tokenizer and model fit"
        )
