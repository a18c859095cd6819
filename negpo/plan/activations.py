"""What the forward keeps for the backward, and what the log-prob head needs beside it.

Per token and layer of a decoder with RMSNorm, rotary positions, fused attention and a gated MLP, counted from the
tensors that autograd saves in transformers' code (w: bytes of a weight; H hidden, Q query, K key/value width, I
intermediate):

    two norms   2 (4 + w + w) H + 8           input in float32, normalised input, output, 1 / RMS
    attention   w (2 Q + 2 K) + 4 heads       queries, keys, values, result; log-sum-exp of every head in float32
    q/k norms   (4 + w) (Q + K) + 4 per head  Qwen3 only
    MLP         4 w I                         gate, up, activated gate, product

Korthikanti et al. (arXiv 2205.05198, eq. 2) count 34 H + 5 a s bytes for GPT with eager attention and dropout; fused
attention (arXiv 2205.14135) has no s^2 term, dropout is 0 here. With gradient checkpointing (arXiv 1604.06174) a layer
keeps its input, w H, and one layer at a time is computed again.

The head of ``negpo.logprobs`` holds one tile of logits on a CPU, and on CUDA what its plan says that a sixteenth of the
device's memory permits (``negpo.logprobs.row_plan``); n answer tokens cost their states and a gradient of them as well.
"""

from dataclasses import dataclass

from negpo.plan.settings import DTYPES, Settings
from negpo.plan.shapes import Shape


def saved_per_layer(shape: Shape, settings: Settings) -> int:
    """Bytes that one layer saves for one token; see the module docstring.

    A frozen norm (LoRA) has no weight gradient and does not keep its normalised input. LoRA keeps the r projections of
    every map in float32 and, where the base is bf16 and the adapter is not, a cast input per map.
    """
    w, lora = DTYPES[settings.dtype], settings.lora_r
    norms = 2 * (shape.hidden * (4 + (0 if lora else w) + w) + 4)
    attention = w * (2 * shape.query + 2 * shape.key_value) + 4 * shape.heads
    if shape.query_norm:
        key_heads = shape.heads * shape.key_value // shape.query
        attention += (4 + (0 if lora else w)) * (shape.query + shape.key_value) + 4 * (shape.heads + key_heads)
    adapters = 0
    if lora:
        adapters = 4 * lora * shape.linear_maps
        if w == 2 and settings.strategy in ("single", "ddp"):
            adapters += w * (5 * shape.hidden + shape.query + shape.intermediate)
    return norms + attention + 4 * w * shape.intermediate + adapters


def saved_by_final_norm(shape: Shape, settings: Settings) -> int:
    """Bytes per token: its input in float32 and the normalised input."""
    return shape.hidden * (4 + (0 if settings.lora_r else DTYPES[settings.dtype]))


def layer_scratch(shape: Shape, settings: Settings) -> int:
    """Bytes per token at the worst moment of one layer's backward, beyond what it saved.

    In the MLP: gradients of product, gate and up while the product is gone, and the gradient of the residual stream.
    """
    return DTYPES[settings.dtype] * (2 * shape.intermediate + shape.hidden)


@dataclass(frozen=True)
class HeadBytes:
    """Of the log-prob head in one forward: saved until its backward, and beyond that in forward and backward."""

    saved: int
    forward: int
    backward: int


def head_bytes(shape: Shape, settings: Settings) -> HeadBytes:
    """Bytes for ``settings.answer_tokens`` states of H numbers.

    Policy methods log the entropy: on the CPU its forward holds exponentials and their products beside the logits (and
    those of the tile before), its backward one tile more.
    """
    n, h, w = settings.answer_tokens, shape.hidden, DTYPES[settings.dtype]
    if settings.device_type == "cuda":
        from negpo.logprobs.row_plan import BUDGET_SHARE, Problem, choose_plan  # imports torch

        plan = choose_plan(
            Problem(n, h, shape.vocab, w, not settings.lora_r, True), int(settings.memory * BUDGET_SHARE)
        )
        kept, passing = (0, w * n * h) if plan.name == "direct" else (w * n * h, 0)  # the states of answer tokens
        return HeadBytes(plan.held + kept, plan.forward_bytes + passing, plan.backward_bytes + w * n * h)
    tokens, width = _cpu_tile(n, shape.vocab)
    only_one = tokens >= n and width >= shape.vocab
    entropy = bool(settings.cost.updates)
    tiles, tiles_back = (3 if only_one else 4, 2) if entropy else (1, 1)
    tile, row = 4 * tokens * width, 4 * width * h if w == 2 else 0  # a bf16 head is upcast one tile at a time
    cast = 4 if w == 2 else 0
    if settings.lora_r:  # the forward makes the gradient's direction, the backward one product
        kept = 4 * n * h + (w * n * h if entropy else 0)
        return HeadBytes(kept, tiles * tile + row + (w + cast) * n * h, 4 * n * h)
    return HeadBytes(w * n * h, tiles * tile + row, tiles_back * tile + 2 * row + (4 + w + 2 * cast) * n * h)


def _cpu_tile(tokens: int, vocab: int) -> tuple[int, int]:
    import torch

    from negpo.logprobs.tiles import tile_shape

    return tile_shape(tokens, vocab, torch.device("cpu"), None)
