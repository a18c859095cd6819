"""NF4 exactly as bitsandbytes rounds it (QLoRA, arXiv 2305.14314), in plain torch.

A weight is flattened into blocks of 64 (the last may be shorter); each is divided by its largest absolute value and
rounded to the nearest of 16 levels, which are quantiles of a normal distribution. Double quantisation stores the
blocks' scales, less their mean, in 8-bit dynamic codes per 256 scales. Rounding twice changes nothing.
"""

import torch
from torch import Tensor

BLOCK, SCALE_BLOCK = 64, 256
# the published code book (float32 values of bitsandbytes)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def round_to_nf4(weight: Tensor, *, double_quant: bool = False) -> Tensor:
    """``weight`` after quantisation to NF4 and back, in its own shape and dtype; computed in float32."""
    codes, scales = nf4_codes(weight)
    if double_quant:
        scales = rounded_scales(scales)
    level = torch.tensor(NF4, dtype=torch.float32, device=weight.device)[codes]  # (blocks, 64)
    flat = (level * scales.unsqueeze(1)).reshape(-1)[: weight.numel()]
    return flat.view(weight.shape).to(weight.dtype)


def nf4_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Level numbers (blocks, 64) int64 and scales (blocks,) float32 of the flattened weight, filled up with 0."""
    flat = weight.detach().float().reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1)
    inverse = torch.where(scales > 0, 1.0 / scales, 0.0)  # a block of zeros stays zero
    levels = torch.tensor(NF4, dtype=torch.float32, device=flat.device)
    return _nearest(flat * inverse.unsqueeze(1), levels), scales


def rounded_scales(scales: Tensor) -> Tensor:
    """Scales (n,) after double quantisation and back."""
    offset = scales.mean()
    centred = scales - offset
    padded = torch.nn.functional.pad(centred, (0, -len(centred) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    peak = padded.abs().amax(1, keepdim=True)
    code = dynamic_code().to(scales.device)
    shares = padded * torch.where(peak > 0, 1.0 / peak, 0.0)
    return (code[_nearest(shares, code)] * peak).reshape(-1)[: len(scales)] + offset


def dynamic_code() -> Tensor:
    """The 256 signed values of bitsandbytes' 8-bit dynamic code, ascending: 7 powers of ten, the larger the finer."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1, dtype=torch.float32)
        middles = (10.0 ** (exponent - 6)) * (edges[:-1] + edges[1:]) / 2
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Number of the nearest of ascending ``levels``; a value halfway takes the lower one."""
    middles = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(values.contiguous(), middles)
