"""``negpo plan``: what a run will need, before it is started. Formulas with sources, checked against measurements.

``make_plan(shape, settings)`` is the whole of it; see `negpo.plan.memory`, `negpo.plan.flops`, `negpo.plan.advice`.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from negpo.plan.advice import Trial, find_fit
from negpo.plan.flops import Operations, Speed, operations, speed
from negpo.plan.memory import Memory, memory_of
from negpo.plan.settings import Settings, parse_bytes
from negpo.plan.shapes import Shape, load_shape, shape_of
from negpo.plan.strategies import trainable

__all__ = ["Plan", "Settings", "Shape", "load_shape", "make_plan", "parse_bytes", "shape_of"]


@dataclass(frozen=True)
class Plan:
    """Answers to one question; bytes per device, operations per optimiser step and device."""

    shape: Shape
    settings: Settings
    trained: int
    memory: Memory
    operations: Operations
    speed: Speed
    trials: list[Trial] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.memory.peak.total <= self.settings.memory

    @property
    def does_not_fit(self) -> str | None:
        """The first part that exceeds the device's memory."""
        return self.memory.first_that_does_not_fit(self.settings.memory)

    def as_dict(self) -> dict[str, Any]:
        """The JSON output."""
        peak = self.memory.peak
        return {
            "model": asdict(self.shape),
            "settings": asdict(self.settings),
            "trained_parameters": self.trained,
            "memory": {
                "peak_bytes": peak.total,
                "peak_moment": peak.name,
                "peak_parts": peak.parts,
                "moments": {moment.name: moment.total for moment in self.memory.moments},
                "host_bytes": self.memory.host,
            },
            "fits": self.fits,
            "first_that_does_not_fit": self.does_not_fit,
            "operations": asdict(self.operations),
            "speed": asdict(self.speed) | {"step_seconds": self.speed.step_seconds},
            "changes_tried": [{"changes": t.changes, "peak_bytes": t.peak, "fits": t.fits} for t in self.trials],
        }


def make_plan(shape: Shape, settings: Settings) -> Plan:
    """Memory, operations and speed; with the changes that would make it fit if it does not."""
    memory = memory_of(shape, settings)
    trials = find_fit(shape, settings) if memory.peak.total > settings.memory else []
    return Plan(
        shape, settings, trainable(shape, settings), memory, operations(shape, settings), speed(shape, settings), trials
    )
