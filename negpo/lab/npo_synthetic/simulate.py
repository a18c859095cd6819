"""The NPO paper's synthetic experiment (arXiv 2404.05868, section 4), driven by ``negpo.objectives``.

A logistic model on fixed random features, ``pi(y=1 | x) = sigmoid(theta . relu(W x))``, learns forget and retain data
together (the *reference*) or retain data alone (*retrained*); unlearning starts at the reference and should end at the
retrained model. Each answer is one token, so every objective sees log-probs ``(rows, 1)``.

All seeds run in one batch: ``theta`` is ``(S, F)``. Every loss here is a mean over rows and each seed has equally many
rows, so S times the loss over all rows has exactly each seed's own gradient.

Distances are ``E KL(retrained || current)`` over 1000 fresh points of the forget or retain distribution, as in the
caption of the paper's figure 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from negpo.objectives import dpo_loss, ga_loss, nll_loss, npo_loss

DIM, FEATURES = 16, 128
FORGET_ROWS, RETAIN_ROWS, EVAL_ROWS = 200, 1000, 1000
METHODS = ("GA", "GA+RT", "IDK+RT", "NPO", "NPO+RT", "DPO+RT")
# Table 1 of the paper: {alpha: {method: (learning rate, beta)}}; alpha is the gap between the Gaussian means.
TABLE_1: dict[int, dict[str, tuple[float, float | None]]] = {
    1: {"GA": (5e-4, None), "GA+RT": (5e-4, None), "IDK+RT": (5e-4, None)}
    | {"NPO": (5e-3, 1.0), "NPO+RT": (5e-3, 1.0), "DPO+RT": (5e-3, 0.1)},
    0: {"GA": (1e-4, None), "GA+RT": (1e-4, None), "IDK+RT": (1e-4, None)}
    | {"NPO": (5e-2, 10.0), "NPO+RT": (5e-2, 10.0), "DPO+RT": (5e-2, 5.0)},
}


@dataclass(frozen=True)
class SyntheticSettings:
    """Sizes of the run; the defaults are the paper's."""

    seeds: int = 5
    steps: int = 2000
    pretrain_steps: int = 20000
    pretrain_lr: float = 0.05
    eval_every: int = 10


@dataclass(frozen=True)
class Rows:
    """Random features ``z (S, N, F)`` float64 and labels as signs ``(S, N)``: +1 for y = 1, -1 for y = 0."""

    z: Tensor
    sign: Tensor

    def logps(self, theta: Tensor) -> Tensor:
        """log pi(y | x) as one-token sequences ``(S * N, 1)``."""
        return logsigmoid(self.sign * logits(self.z, theta)).reshape(-1, 1)


@dataclass(frozen=True)
class World:
    """Data of all seeds, the two pretrained models ``(S, F)`` and fresh points to measure on."""

    forget: Rows
    retain: Rows
    idk: Rows  # the forget points with labels drawn from Bernoulli(1/2)
    eval_forget: Rows
    eval_retain: Rows
    reference: Tensor
    retrained: Tensor


@dataclass(frozen=True)
class Trajectory:
    """One method's path: ``steps (E,)``, distances ``(E, S)``, final parameters ``(S, F)``."""

    steps: Tensor
    forget: Tensor
    retain: Tensor
    theta: Tensor


def logits(z: Tensor, theta: Tensor) -> Tensor:
    """``z (S, N, F)``, ``theta (S, F)`` -> ``(S, N)``."""
    return torch.bmm(z, theta.unsqueeze(-1)).squeeze(-1)


def build_world(alpha: float, settings: SyntheticSettings) -> World:
    """Draw data for every seed and pretrain both models by full-batch gradient descent in float64."""
    drawn = [_draw_seed(alpha, seed) for seed in range(settings.seeds)]
    forget, retain, idk, eval_forget, eval_retain = (
        Rows(torch.stack([z for z, _ in part]), torch.stack([sign for _, sign in part]))
        for part in zip(*drawn, strict=True)
    )
    everything = Rows(torch.cat([forget.z, retain.z], dim=1), torch.cat([forget.sign, retain.sign], dim=1))
    reference, retrained = pretrain(everything, settings), pretrain(retain, settings)
    return World(forget, retain, idk, eval_forget, eval_retain, reference, retrained)


def _draw_seed(alpha: float, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(features, signs) of forget, retain, idk, fresh forget and fresh retain rows, in that order."""
    generator = torch.Generator().manual_seed(1000 * (seed + 1))
    first_layer = torch.randn(FEATURES, DIM, generator=generator, dtype=torch.float64) / DIM**0.5

    def draw(rows: int, side: int) -> tuple[Tensor, Tensor]:
        # side +1: forget, -1: retain. Mean, direction and intercept of the two distributions are mirror images.
        noise = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
        prob = torch.sigmoid(side * (noise.sum(1) / DIM**0.5 + 1.0))
        features = torch.relu((noise + side * alpha) @ first_layer.T)
        return features, 2 * torch.bernoulli(prob, generator=generator) - 1

    forget, retain = draw(FORGET_ROWS, +1), draw(RETAIN_ROWS, -1)
    coin = torch.bernoulli(torch.full((FORGET_ROWS,), 0.5, dtype=torch.float64), generator=generator)
    return [forget, retain, (forget[0], 2 * coin - 1), draw(EVAL_ROWS, +1), draw(EVAL_ROWS, -1)]


def pretrain(rows: Rows, settings: SyntheticSettings) -> Tensor:
    """Logistic regression from zero, ``(S, F)``. Closed-form gradient: these are most of the run's steps."""
    models = []
    for z, sign in zip(rows.z, rows.sign, strict=True):  # one seed at a time: its 1.2 MB of features stay in cache
        theta = torch.zeros(FEATURES, dtype=torch.float64)
        signed = z * sign.unsqueeze(-1)
        for _ in range(settings.pretrain_steps):
            residual = torch.sigmoid(-(signed @ theta))
            theta.addmv_(signed.T, residual, alpha=settings.pretrain_lr / len(z))
        models.append(theta)
    return torch.stack(models)


def method_loss(method: str, world: World, beta: float | None) -> Callable[[Tensor], Tensor]:
    """``theta (S, F) -> scalar``: the paper's loss of one method, S times the mean over the rows of all seeds."""
    seeds = len(world.reference)
    mask, retain_mask = (torch.ones(rows.sign.numel(), 1, dtype=torch.bool) for rows in (world.forget, world.retain))
    reference, idk_reference = world.forget.logps(world.reference), world.idk.logps(world.reference)

    def forget_term(theta: Tensor) -> Tensor:
        if method.startswith("IDK"):
            return nll_loss(world.idk.logps(theta), mask)[0]
        logps = world.forget.logps(theta)
        if method.startswith("GA"):
            return ga_loss(logps, mask)[0]
        assert beta is not None
        if method.startswith("NPO"):
            return npo_loss(logps, reference, mask, beta=beta)[0]
        idk = world.idk.logps(theta)
        return dpo_loss(idk, mask, logps, mask, idk_reference, reference, beta=beta, scale=2 / beta)[0]

    def loss(theta: Tensor) -> Tensor:
        total = forget_term(theta)
        if method.endswith("+RT"):
            total = total + nll_loss(world.retain.logps(theta), retain_mask)[0]
        return seeds * total

    return loss


def descend(loss: Callable[[Tensor], Tensor], theta: Tensor, lr: float, steps: int) -> Iterator[Tensor]:
    """Gradient descent; yields the parameters before step 1, then after each step."""
    yield theta
    for _ in range(steps):
        theta = theta.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(theta), theta)
        theta = theta.detach() - lr * gradient
        yield theta


def distance(world: World, rows: Rows, theta: Tensor) -> Tensor:
    """``E KL(retrained || theta)`` over ``rows``, per seed ``(S,)``; both are Bernoulli."""
    truth, guess = logits(rows.z, world.retrained), logits(rows.z, theta)
    terms = [torch.sigmoid(s * truth) * (logsigmoid(s * truth) - logsigmoid(s * guess)) for s in (1, -1)]
    return (terms[0] + terms[1]).mean(1)


def unlearn(method: str, world: World, lr: float, beta: float | None, settings: SyntheticSettings) -> Trajectory:
    """Run one method from the reference model and measure both distances along the way."""
    steps, forget, retain, theta = [], [], [], world.reference
    for step, theta in enumerate(descend(method_loss(method, world, beta), world.reference, lr, settings.steps)):
        if step % settings.eval_every == 0:
            steps.append(step)
            forget.append(distance(world, world.eval_forget, theta))
            retain.append(distance(world, world.eval_retain, theta))
    return Trajectory(torch.tensor(steps), torch.stack(forget), torch.stack(retain), theta)


def run_table_1(alpha: int, settings: SyntheticSettings) -> tuple[World, dict[str, Trajectory]]:
    """Every method of the paper at its own setting."""
    world = build_world(alpha, settings)
    return world, {method: unlearn(method, world, *TABLE_1[alpha][method], settings) for method in METHODS}
