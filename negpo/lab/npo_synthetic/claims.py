"""The claims of arXiv 2404.05868 about its synthetic experiment, each with a measured value and a verdict.

Every claim is decided for each instance (seed) on its own; the verdict says in how many of them it held. Where the
paper gives no number, the criterion is ours and stands in the claim's text.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from negpo.lab.claims import Claim, Counted
from negpo.lab.npo_synthetic.simulate import (
    METHODS,
    SyntheticSettings,
    Trajectory,
    World,
    descend,
    logits,
    method_loss,
)
from negpo.objectives import ga_loss, npo_loss

Paths = dict[str, Trajectory]
CLOSE = 0.005  # forget distance that the paper calls small
WITHIN = 1200  # steps in which it is reached
FRONT_LEVELS = (0.05, 0.1, 0.2, 0.35)  # forget distances at which fronts are compared: the range drawn in figure 4 (a3)
THEOREM_ROWS, THEOREM_SQUARED_NORM = 32, 16.0  # forget rows are orthogonal with ||x||^2 = 16: theorem 2's regime


def counted(source: str, statement: str, measured: str, holds: Tensor) -> Claim:
    """``holds (S,)`` bool: per instance."""
    return Claim(statement, [Counted(measured, holds.tolist())], source=source)


@dataclass(frozen=True)
class Growth:
    """Theorem 2: ``||X (theta_t - theta_0)||`` of GA and NPO, ``(E, S)`` at ``steps (E,)``."""

    steps: Tensor
    ga: Tensor
    npo: Tensor
    beta: float


def check_claims(world: World, gap: Paths, overlap: Paths, growth: Growth, settings: SyntheticSettings) -> list[Claim]:
    """All claims. ``gap``: the paths at alpha = 1 (in ``world``), ``overlap``: at alpha = 0."""
    return [
        _starting_point(gap),
        *(_forgets_in_time(method, gap[method]) for method in METHODS),
        *(_collapses(method, gap[method]) for method in ("GA", "GA+RT")),
        *(_stabilises(method, gap) for method in ("NPO+RT", "DPO+RT")),
        _best_average_front("NPO+RT", METHODS, gap),
        _best_average_front("NPO", ("GA", "NPO"), gap),
        _best_front("NPO+RT", METHODS, gap),
        _best_front("NPO", ("GA", "NPO"), gap),
        _distances_coincide(overlap),
        _smallest_distance(overlap),
        _ga_grows_linearly(growth),
        _npo_grows_logarithmically(growth),
        _starts_as_ga(world),
        _small_beta_is_ga(world, settings),
    ]


def explain_floor(world: World, gap: Paths) -> str:
    """Why some instances miss the small forget distance whatever the method: the target itself is soft there."""
    target = torch.sigmoid(logits(world.eval_forget.z, world.retrained)).mean(dim=1)
    floor = torch.stack([gap[method].forget for method in ("GA", "NPO", "NPO+RT", "DPO+RT")]).amin(dim=(0, 1))
    ranks = torch.stack([floor.argsort().argsort(), target.argsort().argsort()]).double()
    pairs = ", ".join(f"({d:.2g}, {p:.2g})" for d, p in zip(floor.tolist(), target.tolist(), strict=True))
    return (
        "Smallest forget distance of any method and the retrained model's mean p(y=1) on forget points, by instance: "
        f"{pairs}; rank correlation {torch.corrcoef(ranks)[0, 1].item():.2f}. Where the retrained model is unsure, "
        "every method stops at the same distance."
    )


def spread(values: Tensor, digits: int = 3) -> str:
    """``mean ± standard deviation`` over instances."""
    if values.isinf().any():
        return "not reached"
    mean = f"{values.mean().item():.{digits}g}"
    return f"{mean} ± {values.std().item():.2g}" if len(values) > 1 else mean


def _starting_point(paths: Paths) -> Claim:
    path = next(iter(paths.values()))
    forget, retain = path.forget[0], path.retain[0]
    # Two means over equally many instances: their difference has sqrt(2) times the standard error of one.
    near = (forget.mean() - 1.70).abs() <= 2 * math.sqrt(2 / len(forget)) * forget.std()
    rounds = round(retain.mean().item(), 2) == 0.02
    return counted(
        "fig. 3",
        "paths start at (forget, retain) = (1.70, 0.02); ours within two standard errors",
        f"({spread(forget)}, {spread(retain, 2)})",
        torch.full_like(forget, bool(near) and rounds, dtype=torch.bool),
    )


def _forgets_in_time(method: str, path: Trajectory) -> Claim:
    best = path.forget[path.steps <= WITHIN].min(dim=0).values
    if method == "IDK+RT":
        statement = f"IDK+RT does not reach forget distance {CLOSE} in {WITHIN} steps"
        return counted("4.2", statement, spread(best), best >= CLOSE)
    statement = f"{method} reaches forget distance < {CLOSE} within {WITHIN} steps"
    return counted("4.2", statement, spread(best), best < CLOSE)


def _last_quarter(path: Trajectory) -> tuple[Tensor, Tensor]:
    """Retain distance (S,) at three quarters of the run and at its end."""
    return path.retain[3 * (len(path.steps) - 1) // 4], path.retain[-1]


def _collapses(method: str, path: Trajectory) -> Claim:
    before, end = _last_quarter(path)
    growth = end / path.retain[0]
    return counted(
        "4.2",
        f"{method}: retain distance diverges (end > 5x start and > 1.1x its value at 3/4 of the run)",
        f"{spread(growth)} x start, {spread(end / before)} x 3/4",
        (growth > 5) & (end > 1.1 * before),
    )


def _stabilises(method: str, paths: Paths) -> Claim:
    before, end = _last_quarter(paths[method])
    return counted(
        "4.2",
        f"{method}: retain distance stabilises (end < 1.2x its value at 3/4 of the run, and below GA+RT)",
        f"{spread(end / before)} x 3/4, end {spread(end)}",
        (end < 1.2 * before) & (end < paths["GA+RT"].retain[-1]),
    )


def front_height(forget: Tensor, retain: Tensor) -> Tensor:
    """Pareto front as one number a column: lowest retain distance at forget distance <= level, mean over the levels.

    ``(E, S)`` -> ``(S,)``; infinite where a level is never reached.
    """
    lowest = [torch.where(forget <= level, retain, math.inf).min(dim=0).values for level in FRONT_LEVELS]
    return torch.stack(lowest).mean(dim=0)


def _best_front(winner: str, among: tuple[str, ...], paths: Paths) -> Claim:
    heights = {method: front_height(paths[method].forget, paths[method].retain) for method in among}
    return counted(
        "4.2",
        f"{winner}: best Pareto front of {', '.join(among)}, instance by instance",
        ", ".join(f"{method} {spread(height)}" for method, height in heights.items()),
        heights[winner] == torch.stack(list(heights.values())).min(dim=0).values,
    )


def _best_average_front(winner: str, among: tuple[str, ...], paths: Paths) -> Claim:
    """The paper averages both distances over instances step by step. That flatters a method whose instances arrive at
    the same time: the mean of GA's curves never comes as low as each curve does."""
    heights = {
        method: front_height(paths[method].forget.mean(1, keepdim=True), paths[method].retain.mean(1, keepdim=True))
        for method in among
    }
    levels = ", ".join(map(str, FRONT_LEVELS))
    return counted(
        "4.2, fig. 4 (a3)",
        f"{winner}: best Pareto front of {', '.join(among)} on curves averaged over instances, as drawn there "
        f"(lowest retain distance at forget distance {levels}, mean)",
        ", ".join(f"{method} {spread(height)}" for method, height in heights.items()),
        (heights[winner] == torch.stack(list(heights.values())).min()).expand(paths[winner].forget.shape[1]),
    )


def _distances_coincide(paths: Paths) -> Claim:
    forget, retain = (torch.cat([getattr(path, name) for path in paths.values()]) for name in ("forget", "retain"))
    difference = (2 * (forget - retain).abs() / (forget + retain)).mean(dim=0)
    statement = "alpha = 0: forget and retain distance are equal (up to 15 % on 1000 points)"
    return counted("4.2", statement, spread(difference), difference < 0.15)


def _smallest_distance(paths: Paths) -> Claim:
    totals = {method: (path.forget + path.retain).min(dim=0).values for method, path in paths.items()}
    best = torch.stack(list(totals.values())).min(dim=0).values
    measured = ", ".join(f"{method} {spread(total)}" for method, total in totals.items())
    statement = "alpha = 0: NPO+RT attains the smallest forget + retain distance"
    return counted("4.2, fig. 4 (b)", statement, measured, totals["NPO+RT"] == best)


def measure_growth(settings: SyntheticSettings, beta: float = 1.0) -> Growth:
    """GA and NPO in theorem 2's regime: fewer rows than parameters, orthogonal rows, step size 1."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.seeds, THEOREM_ROWS)
    sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
    gram = THEOREM_SQUARED_NORM * torch.eye(THEOREM_ROWS, dtype=torch.float64)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)  # logits of the initial model
    mask = torch.ones(sign.numel(), 1, dtype=torch.bool)

    def logps(logit: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(sign * logit).reshape(-1, 1)

    reference = logps(start)
    losses = {
        "ga": lambda logit: settings.seeds * ga_loss(logps(logit), mask)[0],
        "npo": lambda logit: settings.seeds * npo_loss(logps(logit), reference, mask, beta=beta)[0],
    }
    marks = torch.logspace(1, math.log10(5 * settings.steps), 25).long().unique()
    wanted = set(marks.tolist())
    paths = {}
    for name, loss in losses.items():
        # With u = X theta, gradient descent on theta is u <- u - X X^T dL/du; X X^T is a multiple of the identity.
        walk = enumerate(descend(loss, start, gram[0, 0].item(), 5 * settings.steps))
        paths[name] = torch.stack([(logit - start).norm(dim=1) for step, logit in walk if step in wanted])
    return Growth(marks, paths["ga"], paths["npo"], beta)


def fit_line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares per column: slope (S,) and R squared (S,); ``x (E,)``, ``y (E, S)``."""
    dx, dy = (x.double() - x.double().mean())[:, None], y - y.mean(dim=0)
    slope = (dx * dy).sum(dim=0) / (dx**2).sum()
    return slope, 1 - ((dy - slope * dx) ** 2).sum(dim=0) / (dy**2).sum(dim=0)


def _ga_grows_linearly(growth: Growth) -> Claim:
    _, fit = fit_line(growth.steps, growth.ga)
    statement = "GA: ||X(theta_t - theta_0)|| grows linearly in t (R² > 0.999)"
    return counted("theorem 2", statement, f"R² {spread(fit, 6)}", fit > 0.999)


def _npo_grows_logarithmically(growth: Growth) -> Claim:
    late = growth.steps >= 100  # the +1 inside the logarithm no longer matters
    slope, fit = fit_line(growth.steps[late].double().log(), growth.npo[late])
    relative = slope * growth.beta / math.sqrt(THEOREM_ROWS)
    return counted(
        "theorem 2",
        "NPO: it grows as sqrt(n_f)/beta log t (R² > 0.999 and slope within 5 %)",
        f"R² {spread(fit, 6)}, slope {spread(relative)} x sqrt(n_f)/beta",
        (fit > 0.999) & ((relative - 1).abs() < 0.05),
    )


def _gradient(loss, theta: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_(True)
    return torch.autograd.grad(loss(theta), theta)[0]


def _starts_as_ga(world: World) -> Claim:
    ga = _gradient(method_loss("GA", world, None), world.reference)
    npo = _gradient(method_loss("NPO", world, 1.0), world.reference)
    weight = (npo * ga).sum(dim=1) / (ga**2).sum(dim=1)
    error = (npo - ga).norm(dim=1) / ga.norm(dim=1)
    statement = "NPO's weight at the reference model is 1: its gradient there is GA's"
    return counted("eq. 4", statement, f"weight {spread(weight, 6)}", error < 1e-12)


def _small_beta_is_ga(world: World, settings: SyntheticSettings) -> Claim:
    """Proposition 1 along whole paths, at GA's learning rate (as in figure 3)."""
    lr, steps = 5e-4, settings.steps // 2
    ends = {}
    for beta in (None, 1.0, 0.1, 0.01):
        loss = method_loss("NPO" if beta else "GA", world, beta)
        *_, ends[beta] = descend(loss, world.reference, lr, steps)
    moved = (ends[None] - world.reference).norm(dim=1)
    gaps = [(ends[beta] - ends[None]).norm(dim=1) / moved for beta in (1.0, 0.1, 0.01)]
    return counted(
        "prop. 1, fig. 3",
        f"NPO's path tends to GA's as beta -> 0 (parameters after {steps} steps, relative to how far GA moved)",
        "; ".join(f"beta {beta}: {spread(gap, 2)}" for beta, gap in zip((1.0, 0.1, 0.01), gaps, strict=True)),
        (gaps[0] > gaps[1]) & (gaps[1] > gaps[2]),
    )
