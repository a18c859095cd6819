"""AdamW for bfloat16 weights: arithmetic and moments in float32, and three ways to put the result into 8 bits.

bfloat16 keeps 8 significant bits. A step smaller than 1/512 of a weight is lost when it is rounded to the nearest
value, and at the learning rates of unlearning and preference training most steps are that small. ``stochastic`` rounds
up or down with the probabilities that make the mean right (arXiv 2010.06192, section 3.1); ``kahan`` keeps what was
rounded away in a second bfloat16 tensor and adds it to the next step (same paper, section 3.2). Memory per weight,
gradient not counted: 10 bytes (kahan: 12) against 12 for float32 weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ROUNDINGS = ("nearest", "stochastic", "kahan")


class RoundedAdamW(torch.optim.Optimizer):
    """``torch.optim.AdamW`` in float32 arithmetic on weights of any dtype.

    ``drain()`` tells how much of the intended change arrived in the weights: the sum of the changes in the intended
    direction over the sum of the intended ones, since the last call. 1 in float32; the share that did not round away.

    Stochastic rounding draws from (seed, step): equal on all processes, and the same after a resume.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rounding: str = "nearest",
        seed: int = 0,
    ):
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding is {rounding!r}, expected one of {ROUNDINGS}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rounding, self.seed = rounding, seed
        self._arrived: Tensor | float = 0.0
        self._intended: Tensor | float = 0.0

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, group, 1_000_003 * number + place)
        return loss

    def drain(self) -> float | None:
        """See the class; None when nothing was to be changed."""
        arrived, intended = float(self._arrived), float(self._intended)
        self._arrived = self._intended = 0.0
        return arrived / intended if intended > 0 else None

    def _update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        weight, gradient = _local(parameter), _local(parameter.grad).float()  # type: ignore[arg-type]
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            if self.rounding == "kahan" and weight.dtype != torch.float32:
                state["lost"] = torch.zeros_like(weight)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5 + group["eps"]
        before = weight.float()
        change = -group["lr"] * (state["exp_avg"] / scale / (1 - beta1**step) + group["weight_decay"] * before)
        wanted = before + change
        if "lost" in state:
            wanted += state["lost"].float()
        after = self._round(wanted, weight.dtype, (self.seed + 7_919 * int(step)) * 2_000_003 + number)
        if "lost" in state:
            state["lost"].copy_(wanted - after.float())
        self._arrived = self._arrived + ((after.float() - before) * change.sign()).sum()
        self._intended = self._intended + change.abs().sum()
        weight.copy_(after)

    def _round(self, values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
        if self.rounding == "stochastic" and dtype == torch.bfloat16:
            return round_stochastically(values, seed)
        return values.to(dtype)


def round_stochastically(values: Tensor, seed: int) -> Tensor:
    """float32 to bfloat16, up or down with probabilities whose mean is the value. Infinities and NaN stay."""
    generator = torch.Generator(values.device).manual_seed(seed % 2**63)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    rounded = ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]
