"""Several completions of one prompt in one line of the network's input, so that the prompt is run once.

    prompt | completion 1 | completion 2 | ...        each completion sees the prompt and itself, never the others

Position ids continue from the prompt in every completion, and a (line, 1, C, C) mask says who sees whom: the same
numbers as with the prompt repeated, and one backward pass through it. It saves (K - 1) prompts and costs attention
scores between completions that are computed and masked out, so it is used where the estimate says it is cheaper. Needs
full attention by sdpa or eager; other models (sliding windows, recurrent layers, FlashAttention) repeat the prompt.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from negpo.logprobs.head import head_module, unwrap
from negpo.logprobs.layout import Layout, choose_lines, line_cost, padded_layout
from negpo.logprobs.model import accepts, eval_mode, run_with_head, supports_packing, unpack

SHARING = ("auto", "always", "never")
_SHAREABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def choose_shared_layout(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, group: Tensor, shared: Tensor, sharing: str = "auto"
) -> Layout | None:
    """A layout for rows (R, T) of which those with the same ``group`` (R,) begin with the same ``shared`` (R,) tokens.

    None where repeating the prompt is cheaper ("auto"), asked for ("never") or all the model can do. "always" raises
    ValueError for such a model. Rows are right-padded.
    """
    if sharing not in SHARING:
        raise ValueError(f"sharing must be one of {SHARING}, got {sharing!r}")
    if sharing == "never" or not bool((shared > 0).any()):
        return None
    lines = _lines(attention_mask, group, shared)
    if sharing == "auto" and not _is_cheaper(lines, attention_mask, model):
        return None
    if supports_sharing(model):
        return shared_layout(input_ids, lines, _mask_dtype(model))
    if sharing == "always":
        raise ValueError(f"{type(unwrap(model)).__name__} cannot share prompts; it needs full attention, sdpa or eager")
    return None


# one line: (tokens of the prompt, [(row, its length), ...])
Line = tuple[int, list[tuple[int, int]]]


def _lines(attention_mask: Tensor, group: Tensor, shared: Tensor) -> list[Line]:
    lengths, prompts = attention_mask.sum(1).tolist(), shared.tolist()
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, own in enumerate(group.tolist()):
        key = (own, -1 if prompts[row] else row)  # a row with its own beginning gets its own line
        members.setdefault(key, []).append((row, lengths[row]))
    return [(prompts[rows[0][0]], rows) for rows in members.values()]


def _width(line: Line) -> int:
    prompt, rows = line
    return prompt + sum(length - prompt for _, length in rows)


def _is_cheaper(lines: list[Line], attention_mask: Tensor, model: nn.Module) -> bool:
    hidden = unwrap(model).config.get_text_config().hidden_size
    lengths, (rows, width) = attention_mask.sum(1).tolist(), attention_mask.shape
    usual = line_cost(rows, width, hidden)
    if packed := choose_lines(lengths, width, hidden):
        usual = min(usual, line_cost(len(packed), max(sum(lengths[i] for i in line) for line in packed), hidden))
    return line_cost(len(lines), max(map(_width, lines)), hidden) < usual


def shared_layout(input_ids: Tensor, lines: list[Line], dtype: torch.dtype) -> Layout:
    """Layout of ``lines``; the mask is bool (sdpa) or additive in a floating ``dtype`` (eager)."""
    width, device = max(map(_width, lines)), input_ids.device
    ids = input_ids.new_zeros(len(lines), width)
    positions = torch.zeros_like(ids)
    block = torch.full_like(ids, -1)  # 0 prompt, k + 1 completion k, -1 behind the end
    place = torch.full_like(input_ids, -1)
    for number, (prompt, rows) in enumerate(lines):
        start = number * width
        ids[number, :prompt] = input_ids[rows[0][0], :prompt]
        positions[number, :prompt] = torch.arange(prompt, device=device)
        block[number, :prompt] = 0
        used = prompt
        for k, (row, length) in enumerate(rows):
            tail = slice(used, used + length - prompt)
            ids[number, tail] = input_ids[row, prompt:length]
            positions[number, tail] = torch.arange(prompt, length, device=device)
            block[number, tail] = k + 1
            place[row, :prompt] = torch.arange(start, start + prompt, device=device)
            place[row, prompt:length] = torch.arange(start + used, start + tail.stop, device=device)
            used = tail.stop
    mask = _mask(block)
    if dtype != torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, torch.finfo(dtype).min)
    return Layout(ids, mask, positions, place)


def _mask(block: Tensor) -> Tensor:
    """(L, 1, C, C) bool: query i sees key j when j is not later and in the prompt or in the same completion."""
    width = block.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=block.device).tril()
    visible = (block.unsqueeze(1) == 0) | (block.unsqueeze(1) == block.unsqueeze(2))  # [:, i, j]
    return (visible & causal).unsqueeze(1)  # what lies behind the end sees itself: no row is empty


def _mask_dtype(model: nn.Module) -> torch.dtype:
    eager = unwrap(model).config.get_text_config()._attn_implementation == "eager"
    return head_module(model).weight.dtype if eager else torch.bool


def supports_sharing(model: nn.Module) -> bool:
    """Whether completions behind one prompt give the states they have behind their own, found out once per model."""
    base = unwrap(model)
    if base not in _SHAREABLE:
        config = base.config.get_text_config()
        layers = getattr(config, "layer_types", None)
        if layers is None:
            full_attention = getattr(config, "sliding_window", None) is None
        else:
            full_attention = set(layers) == {"full_attention"}
        usable = str(config._attn_implementation) in ("sdpa", "eager") and accepts(model, "position_ids")
        # the packing probe also refuses models with a state of their own; both run under every rank
        _SHAREABLE[base] = full_attention and usable and supports_packing(model) and _probe(model)
    return _SHAREABLE[base]


def _probe(model: nn.Module) -> bool:
    device = head_module(model).weight.device
    vocab = unwrap(model).config.get_text_config().vocab_size
    ids = (torch.tensor([[1, 8, 15, 22, 29], [1, 8, 15, 36, 0]], device=device)) % vocab
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], device=device)
    shared = shared_layout(ids, [(3, [(0, 5), (1, 4)])], _mask_dtype(model))
    with eval_mode(model), torch.no_grad():
        layouts = padded_layout(ids, mask), shared
        one, other = (unpack(run_with_head(model, x, lambda h, _: (h,))[0], x)[mask.bool()] for x in layouts)
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((one - other).float().norm() <= tolerance * one.float().norm())
