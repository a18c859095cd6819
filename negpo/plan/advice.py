"""Changes to a run that does not fit, from the cheapest to the most expensive, and the first that makes it fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from negpo.plan.memory import memory_of
from negpo.plan.settings import Settings
from negpo.plan.shapes import Shape

Change = Callable[[Settings], Settings | None]  # None where the change does not apply
LORA_RANK = 16
MOST_DEVICES = 4096
DEGREE = {"single": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3, "zero3_offload": 4}


@dataclass(frozen=True)
class Trial:
    """A change or several, the peak they lead to (bytes per device), and whether that fits."""

    changes: list[str]
    settings: Settings
    peak: int
    fits: bool


def find_fit(shape: Shape, settings: Settings) -> list[Trial]:
    """Changes tried in order; the last one fits, or nothing does.

    First every change alone. If none is enough, they are taken together, one more at a time, then with more devices; of
    a set that fits, what it does not need is left out again, the most expensive change first.
    """
    alone = [trial for i in range(len(CHANGES)) if (trial := _try(shape, settings, [i])).changes]
    for end, trial in enumerate(alone, start=1):
        if trial.fits:
            return alone[:end]
    trials = alone
    chosen: list[int] = []
    for i in range(len(CHANGES)):
        trial = _try(shape, settings, [*chosen, i])
        if len(trial.changes) == len(chosen):
            continue  # does not apply on top of the others
        chosen.append(i)
        if len(chosen) > 1:
            trials = [*trials, trial]
        if trial.fits:
            return [*trials, *_pruned(shape, settings, chosen)]
    return [*trials, *_more_devices(shape, _try(shape, settings, chosen))]


def _pruned(shape: Shape, settings: Settings, chosen: list[int]) -> list[Trial]:
    """The changes without those that are not needed; empty if all are."""
    kept = list(chosen)
    for i in reversed(chosen):
        fewer = [j for j in kept if j != i]
        if _try(shape, settings, fewer).fits:
            kept = fewer
    return [_try(shape, settings, kept)] if kept != chosen else []


def _try(shape: Shape, settings: Settings, chosen: list[int]) -> Trial:
    """Those of the chosen changes that apply, one after another."""
    names: list[str] = []
    for name, change in (CHANGES[i] for i in chosen):
        if (changed := change(settings)) is not None:
            settings, names = changed, [*names, name.format(changed)]
    return _trial(shape, settings, names)


def _trial(shape: Shape, settings: Settings, names: list[str]) -> Trial:
    peak = memory_of(shape, settings).peak.total
    return Trial(names, settings, peak, peak <= settings.memory)


def _more_devices(shape: Shape, start: Trial) -> list[Trial]:
    """Twice as many devices until it fits or no longer helps."""
    trials: list[Trial] = []
    changed, names, peak = start.settings, start.changes, start.peak
    while changed.devices < MOST_DEVICES:
        changed = replace(changed, devices=2 * changed.devices)
        trial = _trial(shape, changed, [*names, f"{changed.devices} devices"])
        if trial.peak >= peak:
            break
        trials.append(trial)
        if trial.fits:
            break
        peak = trial.peak
    return trials


def _checkpointing(s: Settings) -> Settings | None:
    return None if s.gradient_checkpointing else replace(s, gradient_checkpointing=True)


def _micro_batch(s: Settings) -> Settings | None:
    """One example at a time; accumulation keeps the optimiser batch."""
    if s.micro_batch == 1:
        return None
    return replace(s, micro_batch=1, gradient_accumulation=s.gradient_accumulation * s.micro_batch)


def _strategy(name: str) -> Change:

    def change(s: Settings) -> Settings | None:
        if DEGREE[s.strategy] >= DEGREE[name] or (s.devices == 1 and name != "zero3_offload"):
            return None
        return replace(s, strategy=name)

    return change


def _cache(s: Settings) -> Settings | None:
    return replace(s, reference="cache") if s.reference_in_steps != "none" and s.cost.reference == "logprobs" else None


def _lora(s: Settings) -> Settings | None:
    return None if s.lora_r else replace(s, lora_r=LORA_RANK)


def _server(s: Settings) -> Settings | None:
    return replace(s, engine="vllm-server") if s.cost.updates and s.engine != "vllm-server" else None


CHANGES: list[tuple[str, Change]] = [
    ("gradient checkpointing", _checkpointing),
    ("micro-batch 1, gradient accumulation {0.gradient_accumulation}", _micro_batch),
    ("strategy zero2", _strategy("zero2")),
    ("strategy zero3", _strategy("zero3")),
    ("reference cache", _cache),
    ("rollouts on devices of their own (vllm-server)", _server),
    ("LoRA, rank {0.lora_r}", _lora),
    ("strategy zero3_offload", _strategy("zero3_offload")),
]
