"""Problems with checked golds: MATH, MATH-500, AIME, AMC, HMMT, BRUMO, GSM8K, AQuA, Minerva Math, OlympiadBench, or
one's own file.

Every gold answer is parsed once at load time by the grader that will judge with it, so a gold nobody can match is an
error that names file, row and field, not a lost point. Known faults of the published files are mended here and noted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negpo.data.rows import Row, load_rows
from negpo.errors import ConfigError, DataError


@dataclass(frozen=True)
class Problem:
    """One question. `id` is unique within its benchmark and stable over runs: it keys seeds and resumed samples."""

    id: str
    question: str
    gold: str
    level: str | None = None
    subject: str | None = None
    choices: tuple[str, ...] = ()  # of a multiple-choice question: a value that equals one stands for its letter


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lives and how its rows are read.

    `notes` say which faults of the data are mended; they are copied into every result.
    """

    name: str
    hub_id: str | None
    split: str
    read: Callable[[Row], Mapping[str, Any]]
    configs: tuple[str | None, ...] = (None,)
    size: int | None = None
    kind: str | None = None
    notes: tuple[str, ...] = ()


def last_box(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` or ``\\fbox{...}`` with balanced braces; None without one."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[match.end() : position]
    return None


def _math(row: Row) -> Mapping[str, Any]:
    gold = row.get("answer")
    gold = last_box(row.get("solution") or "") if gold is None or gold == "" else str(gold)
    return {
        "id": row.get("unique_id"),
        "question": row.get("problem"),
        "gold": gold,
        "level": str(row["level"]).removeprefix("Level ") if row.get("level") is not None else None,
        "subject": row.get("subject") or row.get("type"),
    }


def _competition(row: Row) -> Mapping[str, Any]:
    identity = row.get("id")
    return {
        "id": None if identity is None else str(identity),
        "question": row.get("problem"),
        "gold": _integer_gold(row),
    }


def _integer_gold(row: Row) -> str | None:
    """Golds of AIME and AMC: `025`, `27.0` and `336^\\circ` all stand for an integer."""
    gold = row.get("answer")
    if gold is None:
        return None
    text = str(gold).strip().removesuffix(r"^\circ").removesuffix(".0")
    return str(int(text)) if re.fullmatch(r"-?\d+", text) else text


def _gsm8k(row: Row) -> Mapping[str, Any]:
    gold = (row.get("answer") or "").rpartition("####")[2].strip().replace(",", "")
    return {"id": None, "question": row.get("question"), "gold": gold or None}


def _matharena(row: Row) -> Mapping[str, Any]:
    identity, gold = row.get("problem_idx"), row.get("answer")
    return {
        "id": None if identity is None else str(identity),
        "question": row.get("problem"),
        "gold": None if gold is None else str(gold),
    }


_MINERVA_FAULTS = {"np.arcsin(10/13)": r"\arcsin(10/13)", "-1./3": "-1/3", "-3./2": "-3/2"}


def _minerva(row: Row) -> Mapping[str, Any]:
    gold = row.get("answer", row.get("gold"))
    if gold is None or gold == "":
        gold = last_box(row.get("solution") or "")
    question = row.get("question") or row.get("problem")
    gold = None if gold is None else _MINERVA_FAULTS.get(str(gold).strip(), str(gold))
    return {"id": None, "question": question, "gold": gold, "subject": row.get("type")}


_OLYMPIAD_FAULTS = {"$t(0,4]$": r"$t \in (0,4]$", "$221,$8$": "$221, 8$"}


def _olympiad(row: Row) -> Mapping[str, Any]:
    """``final_answer`` is a list of one text, which may hold several answers."""
    gold = row.get("final_answer", row.get("answer"))
    gold = ", ".join(map(str, gold)) if isinstance(gold, list) else gold
    identity = row.get("id")
    return {
        "id": None if identity is None else str(identity),
        "question": row.get("question"),
        "gold": None if gold is None else _OLYMPIAD_FAULTS.get(str(gold).strip(), str(gold)),
        "subject": row.get("subfield"),
    }


def _aqua(row: Row) -> Mapping[str, Any]:
    choices = tuple(map(str, row.get("options") or ()))
    question = row.get("question")
    if isinstance(question, str) and choices:
        question = question + "\nAnswer Choices: " + " ".join(choices)
    return {"id": None, "question": question, "gold": row.get("correct"), "choices": choices}


_MATH_CONFIGS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

BENCHMARKS: dict[str, Benchmark] = {
    bench.name: bench
    for bench in (
        Benchmark("math500", "HuggingFaceH4/MATH-500", "test", _math, size=500),
        Benchmark("math", "EleutherAI/hendrycks_math", "test", _math, _MATH_CONFIGS, size=5000),
        Benchmark(
            "aime24",
            "HuggingFaceH4/aime_2024",
            "train",
            _competition,
            size=30,
            kind="integer",
            notes=("zero-padded golds such as '025' are read as integers",),
        ),
        Benchmark(
            "aime25",
            "math-ai/aime25",
            "test",
            _competition,
            size=30,
            kind="integer",
            notes=(r"row 19 reads '336^\circ' in some copies; its gold is 336",),
        ),
        Benchmark(
            "amc23",
            "math-ai/amc23",
            "test",
            _competition,
            size=40,
            notes=("the 40 problems of 2023; results on the 83-problem set are named amc83",),
        ),
        Benchmark(
            "amc83",
            None,
            "test",
            _competition,
            size=83,
            notes=("43 problems of 2022 and 40 of 2023, called 'AMC23' by DeepScaleR and REDI",),
        ),
        Benchmark("gsm8k", "openai/gsm8k", "test", _gsm8k, ("main",), size=1319, kind="integer"),
        Benchmark("hmmt25", "MathArena/hmmt_feb_2025", "train", _matharena, size=30),
        Benchmark("brumo25", "MathArena/brumo_2025", "train", _matharena, size=30),
        Benchmark(
            "minerva_math",
            "math-ai/minervamath",
            "test",
            _minerva,
            size=272,
            notes=(
                "Qwen2.5-Math's 272 problems; lm-eval's minerva_math is another set (MATH with the Minerva prompt)",
                "three golds in program notation are mended: np.arcsin(10/13), -1./3, -3./2",
                "golds have two or three digits; graded exactly unless a tolerance is asked for",
            ),
        ),
        Benchmark(
            "olympiadbench",
            "Hothan/OlympiadBench",
            "train",
            _olympiad,
            ("OE_TO_maths_en_COMP",),
            notes=(
                "the 675 open problems in English (OE_TO_maths_en_COMP)",
                "two golds with a stray sign are mended: 't(0,4]' is t in (0,4], '221,$8' is 221, 8",
            ),
        ),
        Benchmark(
            "aqua",
            "deepmind/aqua_rat",
            "test",
            _aqua,
            ("raw",),
            size=254,
            kind="choice",
            notes=("a value that equals exactly one option stands for its letter",),
        ),
    )
}


def load_problems(benchmark: str, source: str | Path | None = None, *, limit: int | None = None) -> list[Problem]:
    """Problems of a known benchmark from the Hub, or from a local file or folder given as `source`.

    Raises:
        ConfigError: an unknown benchmark, or one that has no Hub id and no `source`.
        DataError: a row without question or gold, a gold the grader cannot parse, or two rows with one id.
    """
    bench = BENCHMARKS.get(benchmark)
    if bench is None:
        raise ConfigError(
            f"unknown benchmark '{benchmark}'; known are {', '.join(BENCHMARKS)}, or a YAML file of your own"
        )
    source = source or bench.hub_id
    if source is None:
        raise ConfigError(
            f"{benchmark} has no Hub id of its own: give its file with --data (JSON, JSON lines or parquet)"
        )
    problems = read_problems(str(source), bench)
    if bench.size is not None and len(problems) != bench.size:
        raise DataError(f"{benchmark} has {bench.size} problems, found {len(problems)}", file=str(source))
    return problems[:limit]


def read_problems(source: str, bench: Benchmark) -> list[Problem]:
    """All problems of `bench` found at `source`, every gold checked."""
    configs = bench.configs if not Path(source).is_file() else (None,)
    rows = [row for name in configs for row in load_rows(source, name=name, split=bench.split, required=())]
    problems = [_problem(bench, row, index, source) for index, row in enumerate(rows)]
    repeated = [identity for identity, count in Counter(p.id for p in problems).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:3])
        raise DataError(
            f"{len(repeated)} ids stand on several rows (first: {shown}); ids must be unique", file=source, field="id"
        )
    check_golds(problems, source, bench.kind)
    return problems


def _problem(bench: Benchmark, row: Row, index: int, source: str) -> Problem:
    values = dict(bench.read(row))
    for name in ("question", "gold"):
        if not isinstance(values.get(name), str) or not values[name].strip():
            found = ", ".join(map(str, row))
            raise DataError(f"no {name} in this row (fields: {found})", file=source, row=index, field=name)
    identity = values.get("id") or f"{bench.name}-{index}"
    return Problem(**{**values, "id": identity})


def check_golds(problems: Sequence[Problem], source: str, kind: str | None = None) -> None:
    """Raise DataError for the first gold that the grader cannot read."""
    from negpo.rewards import validate_gold

    for index, problem in enumerate(problems):
        try:
            validate_gold(problem.gold, kind)
        except DataError as error:
            raise DataError(
                f"the gold {problem.gold!r} cannot be graded ({error})", file=source, row=index, field="answer"
            ) from error


def custom_benchmark(path: str | Path) -> tuple[Benchmark, str]:
    """A benchmark described by a YAML file: `name`, `data`, and optionally `split`, `kind` and `fields`.

    `fields` maps `question`, `gold`, `id`, `level` and `subject` to column names of the data; `data` may be relative to
    the YAML file. Returns the benchmark and its data source.
    """
    from negpo.data.io import read_yaml

    spec = read_yaml(path)
    known = {"name", "data", "split", "kind", "fields"}
    if unknown := sorted(set(spec) - known):
        raise ConfigError(f"{path}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    if missing := [key for key in ("name", "data") if not spec.get(key)]:
        raise ConfigError(f"{path}: the key '{missing[0]}' is missing")
    columns = {"question": "question", "gold": "answer", "id": "id", "level": "level", "subject": "subject"}
    fields = spec.get("fields") or {}
    for name in ("name", "data", "split", "kind"):
        if not isinstance(spec.get(name), str | None):
            raise ConfigError(f"{path}: {name} is {spec[name]!r}; it must be text")
    if not isinstance(fields, dict) or not all(isinstance(column, str) for column in fields.values()):
        raise ConfigError(f"{path}: fields is {fields!r}; it maps {', '.join(columns)} to names of columns")
    if unknown := [name for name in fields if name not in columns]:
        raise ConfigError(f"{path}: fields has the unknown key {unknown[0]!r}; known are {', '.join(columns)}")
    columns |= fields
    beside = Path(path).parent / str(spec["data"])
    source = str(beside) if beside.exists() else str(spec["data"])

    def read(row: Row) -> Mapping[str, Any]:
        values = {name: row.get(column) for name, column in columns.items()}
        return {name: None if value is None else str(value) for name, value in values.items()}

    return Benchmark(str(spec["name"]), None, spec.get("split") or "test", read, kind=spec.get("kind")), source
