"""What every robustness attack takes and returns.

An attack asks how much of the forget answers a model still gives away when it is fine-tuned, quantised, prompted or
sampled from, or when its hidden states are read. It is never told which model it works on: the same attack on a model
that was never trained on the forget set is its control line. The caller's model is left bit for bit as it was.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from negpo.data.io import strict
from negpo.data.qa import QATemplate
from negpo.data.rows import Row
from negpo.errors import DataError
from negpo.eval.bootstrap import bootstrap_interval
from negpo.eval.scoring import Report
from negpo.eval.tofu_data import TofuData

RESAMPLES = 2000  # bootstrap draws per interval; a curve of thirty points stays below a second
Interval = tuple[float, float, float]  # mean, low, high
Curve = list[list[float]]  # rows of x, y, low, high


class Target(NamedTuple):
    """Whom an attack works on: a live causal LM, its tokenizer, and how it is asked."""

    model: Any
    tokenizer: Any
    template: QATemplate


@dataclass(frozen=True)
class AttackItem:
    """One question with its answer. ``index``: its row in the set.

    paraphrases: other wordings of the question. paraphrased_answer: another wording of the answer, "" where there is
    none. perturbed: wrong answers, worded like ``paraphrased_answer`` where that exists.
    """

    index: int
    question: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    paraphrased_answer: str = ""


@dataclass(frozen=True)
class AttackData:
    """Questions by set: to be forgotten, to be kept, and never learned by any model."""

    forget: tuple[AttackItem, ...]
    retain: tuple[AttackItem, ...]
    holdout: tuple[AttackItem, ...] = ()

    def __post_init__(self) -> None:
        if not self.forget:
            raise DataError("the forget set is empty: there is nothing that an attack could bring back")
        for name in ("forget", "retain", "holdout"):
            taken: set[int] = set()
            for item in getattr(self, name):
                if item.index in taken:
                    raise DataError("the index is taken by another item", file=name, row=item.index)
                taken.add(item.index)
                for key in ("question", "answer"):
                    if not getattr(item, key).strip():
                        raise DataError("the text is empty", file=name, row=item.index, field=key)

    def first(self, limit: int | None) -> "AttackData":
        """The first ``limit`` items of every set; None keeps all."""
        return AttackData(self.forget[:limit], self.retain[:limit], self.holdout[:limit])


def attack_data(data: TofuData) -> AttackData:
    """The forget, retain and holdout sets of ``data`` as attack items; a set that is absent is empty.

    Raises:
        DataError: the forget set is empty, or a text is; names set, row and field.
    """
    return AttackData(*(_items(data.sets.get(name, [])) for name in ("forget", "retain", "holdout")))


def _items(rows: Sequence[Row]) -> tuple[AttackItem, ...]:
    return tuple(
        AttackItem(
            index,
            row["question"],
            row["answer"],
            paraphrases=(row["paraphrased_question"],) if row.get("paraphrased_question") else (),
            perturbed=tuple(row.get("perturbed_answer") or ()),
            paraphrased_answer=row.get("paraphrased_answer") or "",
        )
        for index, row in enumerate(rows)
    )


@dataclass(frozen=True)
class AttackResult:
    """What an attack brought back.

    name: of the attack. settings: everything that decides the numbers, seed included. headline: the name of ``value``
    in ``measures``. value: recovered knowledge in [0, 1], larger = more leaked; low, high: its 95 % bootstrap interval
    over items. measures: all means by name as [mean, low, high]. curves: by name, rows of [x, y, low, high]. per_item:
    one row per item with its ``index``; ``value`` is the mean of the rows that have a ``value``. notes: what a reader
    must know before trusting the value.
    """

    name: str
    settings: dict[str, Any]
    headline: str
    value: float
    low: float
    high: float
    measures: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    per_item: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Strict JSON (NaN as a string)."""
        return strict(asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AttackResult":
        """The result that ``to_json`` wrote. DataError names a field that is missing or unknown."""
        known = {item.name for item in fields(cls)}
        if odd := known.symmetric_difference(content):
            raise DataError(f"not the result of an attack: field {sorted(odd)[0]!r} is missing or unknown")
        numbers = {name: float(content[name]) for name in ("value", "low", "high", "seconds")}
        measures = {name: [float(x) for x in row] for name, row in content["measures"].items()}
        curves = {name: [[float(x) for x in row] for row in rows] for name, rows in content["curves"].items()}
        return cls(**{**content, **numbers, "measures": measures, "curves": curves})


class Attack(Protocol):
    """One attack with its settings; running it twice with the same seed gives the same result."""

    @property
    def name(self) -> str: ...

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """Attack ``target``. ``progress`` is called with (stage, finished, all).

        Raises:
            DataError: the data lacks what the attack needs; names set, row and field.
            ConfigError: a setting does not fit the data or the model.
        """
        ...


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and its 95 % percentile bootstrap interval over items, seeded."""
    low, high = bootstrap_interval(values, resamples=RESAMPLES)
    return float(np.mean(values)), low, high


def curve(points: Mapping[int, Sequence[float]] | Mapping[float, Sequence[float]]) -> Curve:
    """Rows [x, mean, low, high] from the items' values at every x."""
    return [[float(x), *mean_interval(values)] for x, values in points.items()]


def conclude(
    name: str, settings: Mapping[str, Any], headline: str, measured: Mapping[str, Sequence[float]], **parts: Any
) -> AttackResult:
    """A result from items' values by measure (each (N,)), of which ``headline`` is the value."""
    measures = {key: list(mean_interval(values)) for key, values in measured.items()}
    value, low, high = measures[headline]
    return AttackResult(name, dict(settings), headline, value, low, high, measures=measures, **parts)


class Stopwatch:
    """Adds the seconds since it was made to a result."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def stamp(self, result: AttackResult) -> AttackResult:
        return replace(result, seconds=time.perf_counter() - self.start)


def private_copy(model: Any) -> Any:
    """A deep copy that an attack may change; adapters are merged into it, as whoever holds the weights would do."""
    twin = copy.deepcopy(model)
    return twin.merge_and_unload() if hasattr(twin, "merge_and_unload") else twin
