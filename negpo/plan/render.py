"""A plan as tables for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from negpo.plan import Plan
from negpo.plan.memory import PARTS
from negpo.plan.settings import GIB


def gib(size: float) -> str:
    """``12.3 GiB``; MiB below a tenth of one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def tables(plan: Plan) -> list[Any]:
    """Rich renderables: the model, memory by part, operations and time."""
    return [_model(plan), *_memory(plan), _work(plan)]


def verdict(plan: Plan) -> list[str]:
    """Whether it fits; if not, what is the first part too many, what was tried, and what helps."""
    peak, limit = plan.memory.peak, plan.settings.memory
    if plan.fits:
        lines = [f"fits: {gib(peak.total)} of {gib(limit)} per device at the peak ({peak.name})"]
    else:
        lines = [
            f"does not fit: {gib(peak.total)} of {gib(limit)} per device at the peak ({peak.name})",
            f"first part that does not fit: {plan.does_not_fit}",
            *_tried(plan, limit),
        ]
    if plan.memory.host:
        lines.append(f"host memory for offloading: {gib(plan.memory.host)} per device")
    return lines


def _tried(plan: Plan, limit: int) -> list[str]:
    lines = [f"  tried {' + '.join(t.changes)}: {gib(t.peak)}{', fits' if t.fits else ''}" for t in plan.trials]
    if plan.trials and plan.trials[-1].fits:
        return [*lines, f"smallest change that fits: {' + '.join(plan.trials[-1].changes)}"]
    return [*lines, f"nothing tried fits into {gib(limit)}; use a larger device or a smaller model"]


def _model(plan: Plan) -> Table:
    shape, s = plan.shape, plan.settings
    trained = plan.trained
    unused = "not needed" if s.cost.reference == "none" else "cache"
    reference = unused if s.reference_in_steps == "none" else s.reference_in_steps
    rows = [
        ("parameters", f"{shape.parameters:,}"),
        ("trained", f"{trained:,} ({trained / shape.parameters:.2%})"),
        ("layers, hidden, vocabulary", f"{shape.layers}, {shape.hidden}, {shape.vocab:,}"),
        ("method", f"{s.method}, reference: {reference}"),
        ("strategy", f"{s.strategy}, {s.devices} device(s) with {gib(s.memory)}, {s.dtype}"),
        ("a forward", f"{s.rows} rows of {s.sequence_length} tokens, {s.answer_tokens:,} of {s.tokens:,} scored"),
        ("gradient checkpointing", "on" if s.gradient_checkpointing else "off"),
    ]
    return _table(f"negpo plan {shape.name}", ("", ""), rows)


def _memory(plan: Plan) -> list[Table]:
    peak = plan.memory.peak
    most = {part: max(moment.parts[part] for moment in plan.memory.moments) for part in PARTS}
    rows = [(part, gib(peak.parts[part]), gib(most[part])) for part in PARTS if most[part]]
    rows += [("all", gib(peak.total), "")]
    parts = _table("memory per device", ("part", f"at the peak ({peak.name})", "at most"), rows)
    moments = [(moment.name, gib(moment.total)) for moment in plan.memory.moments]
    return [parts, _table("through the step", ("moment", "memory per device"), moments)]


def _work(plan: Plan) -> Table:
    work, speed, s = plan.operations, plan.speed, plan.settings
    parts = ("forward", "backward", "recomputation", "reference", "old_logps", "rollouts")
    rows = [(name.replace("_", " "), f"{getattr(work, name):.3g} FLOP") for name in parts if getattr(work, name)]
    rows.append(("training", f"{speed.training_seconds:.3g} s at {s.utilisation:.0%} of {s.flops / 1e12:g} TFLOP/s"))
    if speed.rollout_seconds:
        rows.append(("rollouts, if decoding were ideal", f"{speed.rollout_seconds:.3g} s"))
    rows.append(("tokens per second, all devices", f"{speed.tokens_per_second:,.0f}"))
    return _table("optimiser step, per device", ("", ""), rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*row)
    return table
