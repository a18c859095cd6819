"""Runs both settings of the experiment and writes what came out: results.json, a figure and an HTML page."""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from negpo import __version__
from negpo.data.io import atomic_write, atomic_write_json
from negpo.lab.claims import Claim, Counted
from negpo.lab.npo_synthetic.claims import Growth, Paths, check_claims, explain_floor, measure_growth
from negpo.lab.npo_synthetic.simulate import METHODS, TABLE_1, SyntheticSettings, run_table_1
from negpo.report._base import Cell, Picture, Section, Table, Text, as_picture, render_sections

COLOURS = dict(zip(METHODS, ("0.65", "0.3", "#8c6d31", "#d62728", "#ff7f0e", "#1f77b4"), strict=True))
NOTE = (
    "Distances are KL(retrained || unlearned), averaged over 1000 fresh points of the forget or retain distribution. "
    "Values are mean ± standard deviation over instances; the verdict counts instances."
)


@dataclass(frozen=True)
class SyntheticResult:
    """Everything measured. ``gap``: alpha = 1, ``overlap``: alpha = 0; ``seconds`` is wall-clock time."""

    settings: SyntheticSettings
    gap: Paths
    overlap: Paths
    growth: Growth
    claims: list[Claim]
    remark: str
    seconds: float


def run_experiment(settings: SyntheticSettings, tell: Callable[[str], None] = lambda what: None) -> SyntheticResult:
    """The paper's Table 1 at alpha = 1 and alpha = 0, theorem 2, and every claim. ``tell`` hears what comes next."""
    start = time.perf_counter()
    tell("alpha = 1: reference and retrained models, then six methods")
    world, gap = run_table_1(1, settings)
    tell("alpha = 0: the same")
    _, overlap = run_table_1(0, settings)
    tell("theorem 2 and proposition 1")
    growth = measure_growth(settings)
    claims = check_claims(world, gap, overlap, growth, settings)
    remark = explain_floor(world, gap)
    return SyntheticResult(settings, gap, overlap, growth, claims, remark, time.perf_counter() - start)


def claims_table(result: SyntheticResult) -> Any:
    """Rich table: source, claim, measured value, verdict."""
    from rich.table import Table as RichTable

    title = f"NPO paper, synthetic experiment: {result.settings.seeds} instances, {result.seconds:.0f} s"
    claims = _claims(result)
    table = RichTable(*claims.header, title=title, caption=claims.caption, show_lines=True)
    for row in claims.rows:
        table.add_row(*(cell.text for cell in row))
    return table


def _claims(result: SyntheticResult) -> Table:
    tones = {"holds": "good", "fails": "bad"}
    rows = [
        [
            Cell(claim.source),
            Cell(claim.title),
            Cell(part.measured),
            Cell(part.verdict, tone=tones.get(part.verdict, "warn")),
        ]
        for claim in result.claims
        for part in claim.parts
    ]
    return Table(("source", "claim", "measured", "verdict"), rows, f"{NOTE} {result.remark}")


def write_outputs(result: SyntheticResult, out_dir: str | Path) -> list[Path]:
    """Writes results.json, curves.png and a self-contained report.html; returns their paths."""
    out = Path(out_dir)
    figure = draw(result)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return [
        atomic_write_json(out / "results.json", as_dict(result)),
        atomic_write(out / "curves.png", png.getvalue()),
        _write_page(result, as_picture(figure, "distances against steps and against each other"), out / "report.html"),
    ]


def _write_page(result: SyntheticResult, curves: Picture, path: Path) -> Path:
    settings = [
        [Cell(method), *(Cell(f"{lr:g}" + (f", {beta:g}" if beta else "")) for lr, beta in pairs)]
        for method, *pairs in ((method, TABLE_1[1][method], TABLE_1[0][method]) for method in METHODS)
    ]
    sizes = result.settings
    command = f"negpo reproduce npo-synthetic --seeds {sizes.seeds} --steps {sizes.steps} "
    command += f"--pretrain-steps {sizes.pretrain_steps}"
    header = ("method", "lr, beta at alpha = 1", "lr, beta at alpha = 0")
    sections = [
        Section("Claims of the paper", "claims", [_claims(result)]),
        Section("Curves", "curves", [curves]),
        Section("Settings", "settings", [Table(header, settings, "Table 1 of the paper."), Text("pre", command)]),
    ]
    subtitle = f"arXiv 2404.05868, section 4: logistic models on random features, {sizes.seeds} instances, "
    subtitle += f"{result.seconds:.0f} s"
    footer = f"negpo {__version__}, torch {torch.__version__}"
    return render_sections(path, "The NPO paper's synthetic experiment", subtitle, sections, footer)


def as_dict(result: SyntheticResult) -> dict[str, Any]:
    """The JSON form: claims per instance, and mean and standard deviation of each curve."""

    def curves(paths: Paths) -> dict[str, Any]:
        return {
            method: {"steps": path.steps.tolist()}
            | {f"{name}_mean": getattr(path, name).mean(1).tolist() for name in ("forget", "retain")}
            | {f"{name}_std": getattr(path, name).std(1, correction=0).tolist() for name in ("forget", "retain")}
            for method, path in paths.items()
        }

    growth = result.growth
    return {
        "paper": "arXiv 2404.05868, section 4",
        "note": NOTE,
        "remark": result.remark,
        "settings": asdict(result.settings),
        "table_1": TABLE_1,
        "versions": {"negpo": __version__, "torch": torch.__version__},
        "seconds": result.seconds,
        "claims": [
            {"source": claim.source, "claim": claim.title, "measured": part.measured, "holds": part.holds}
            for claim in result.claims
            for part in claim.parts
            if isinstance(part, Counted)
        ],
        "curves": {"alpha_1": curves(result.gap), "alpha_0": curves(result.overlap)},
        "growth": {"steps": growth.steps.tolist(), "ga": growth.ga.tolist(), "npo": growth.npo.tolist()},
    }


def draw(result: SyntheticResult) -> Any:
    """Matplotlib figure with the panels of the paper's figure 4, and theorem 2's growth."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    _draw_against_steps(axes[0, 0], result.gap, "forget", "alpha = 1: forget distance", top=1.8)
    _draw_against_steps(axes[0, 1], result.gap, "retain", "alpha = 1: retain distance", top=0.3)
    _draw_fronts(axes[0, 2], result.gap)
    _draw_against_steps(axes[1, 0], result.overlap, "forget", "alpha = 0: forget distance", top=0.2)
    _draw_against_steps(axes[1, 1], result.overlap, "retain", "alpha = 0: retain distance", top=0.2)
    _draw_growth(axes[1, 2], result.growth)
    axes[0, 0].legend()
    return figure


def _draw_against_steps(axis: Any, paths: Paths, name: str, title: str, top: float) -> None:
    for method, path in paths.items():
        values = getattr(path, name)
        mean, deviation = values.mean(1), values.std(1, correction=0)
        axis.plot(path.steps, mean, label=method, color=COLOURS[method])
        axis.fill_between(path.steps, mean - deviation, mean + deviation, color=COLOURS[method], alpha=0.15)
    axis.set(title=title, xlabel="unlearning steps", ylim=(0, top))


def _draw_fronts(axis: Any, paths: Paths) -> None:
    for method, path in paths.items():
        axis.plot(path.forget.mean(1), path.retain.mean(1), color=COLOURS[method])
        axis.plot(path.forget, path.retain, color=COLOURS[method], linewidth=0.5, alpha=0.5)
    title = "alpha = 1: retain against forget distance\n(thick: averaged step by step, thin: instances)"
    axis.set(title=title, xlabel="forget distance", ylabel="retain distance", xlim=(0, 0.4), ylim=(0, 0.15))


def _draw_growth(axis: Any, growth: Growth) -> None:
    for name, values in (("GA", growth.ga), ("NPO", growth.npo)):
        axis.loglog(growth.steps, values.mean(1), label=name, color=COLOURS[name])
    axis.set(title="theorem 2: distance from the initial model", xlabel="steps", ylabel="||X(theta - theta_0)||")
    axis.legend()
