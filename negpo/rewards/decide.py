"""One response against one gold answer, as far as that can be decided in this process in bounded time."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import replace
from functools import lru_cache

from negpo.errors import ConfigError, DataError
from negpo.rewards import countdown
from negpo.rewards.answers import KINDS, TASK_KINDS, Answer, Choice, Collection, Reading, answer_kind
from negpo.rewards.compare import Comparison, Engine
from negpo.rewards.expression import MAX_DIGITS
from negpo.rewards.extract import Extraction, extract_answer, has_finished_answer
from negpo.rewards.options import EXACT, GradeOptions
from negpo.rewards.reading import parse_answer
from negpo.rewards.tokens import AnswerError
from negpo.rewards.verdict import DEFAULT_GRADER, Status, Verdict

logger = logging.getLogger(__name__)

MODES = ("default", "qwen", "nsr", "nsr_math", "hendrycks", "prm800k", "math_verify")

CUT_OFF = "no answer found: cut off by the length limit"
MAX_GOLD_BITS = int(MAX_DIGITS * 3.3)  # Python refuses to print much longer integers

Gold = str | int | float


def grade_here(
    response: str,
    gold: Gold,
    *,
    kind: str | None = None,
    mode: str = "default",
    options: GradeOptions = EXACT,
    truncated: bool = False,
    engine: Engine | None = None,
) -> Verdict | None:
    """The verdict as far as it can be reached in this process in bounded time, else None.

    With ``engine`` (in a worker) nothing is left open. The other arguments are those of :func:`negpo.rewards.grade`.
    """
    check_mode(kind, mode, options)
    if not isinstance(response, str):
        raise DataError(f"a response must be text, got {type(response).__name__}", field="response")
    started = time.perf_counter()
    if truncated and not has_finished_answer(response):
        extraction = Extraction(None, "none", CUT_OFF)
        if mode == "default" and is_task(gold, kind):
            return Verdict("wrong", CUT_OFF, source="none", kind=countdown.KIND)
        return _verdict("wrong", CUT_OFF, extraction, gold_readings(gold_text(gold), kind), started, mode)
    if mode != "default":
        return _reference(response, gold, mode, started, may_be_slow=engine is not None)
    if is_task(gold, kind):
        return countdown.grade_countdown(response, gold_text(gold))
    golds = gold_readings(gold_text(gold), kind)
    if response.strip() == gold_text(gold).strip():
        return _verdict(
            "correct", "identical to the gold answer", Extraction(response, "whole response"), golds, started
        )
    extraction = extract_answer(response)
    if extraction.text is None:
        return _verdict("wrong", extraction.reason, extraction, golds, started)
    listed = extraction.joined is not None and isinstance(golds[0].answer, Collection)
    extraction = replace(extraction, text=extraction.joined) if listed else extraction
    if options.choices:
        return _multiple_choice(golds, extraction, kind, options, engine, started)
    outcome = (
        _compare(golds, extraction.text or "", kind, options, engine)
        if engine
        else _compare_here(gold_text(gold), extraction.text or "", kind, options)
    )
    return None if outcome is None else _verdict(*outcome, extraction, golds, started)


def _multiple_choice(
    golds: tuple[Reading, ...],
    extraction: Extraction,
    kind: str | None,
    options: GradeOptions,
    engine: Engine | None,
    started: float,
) -> Verdict | None:
    """A letter by itself, or a value that equals exactly one option, which then stands for its letter."""
    exact = replace(options, choices=())
    outcome = _compare(golds, extraction.text or "", kind, exact, engine)
    if outcome is None or outcome[0] == "correct":
        return None if outcome is None else _verdict(*outcome, extraction, golds, started)
    equal: list[str] = []
    for label, value in map(_split_choice, options.choices):
        try:
            found = _compare(gold_readings(value, None), extraction.text or "", None, exact, engine)
        except DataError:  # an option in words that are no answer: nothing equals it
            continue
        if found is None:
            return None
        equal += [label] if found[0] == "correct" else []
    answer = golds[0].answer
    right = len(equal) == 1 and isinstance(answer, Choice) and equal[0] == answer.letter
    status: Status = "correct" if right else "wrong"
    reason = "equals the gold's option and no other" if right else f"equals the options {equal or 'none'}"
    return _verdict(status, reason, extraction, golds, started)


def _split_choice(choice: str) -> tuple[str, str]:
    """Letter and value of "A)5", "(B) 7" or "C. 9"."""
    match = re.match(r"\s*\(?([A-J])\s*[).:]\s*(.*)", choice, re.DOTALL)
    if match is None:
        raise DataError(f"the option {choice!r} does not begin with its letter, as in 'A) 5'", field="options")
    return match[1], match[2]


def _compare(
    golds: tuple[Reading, ...], text: str, kind: str | None, options: GradeOptions, engine: Engine | None
) -> tuple[Status, str] | None:
    """Status and reason, None where only the engine could tell and there is none."""
    comparison = Comparison(engine, options)
    try:
        equal = comparison.readings(golds, parse_answer(text, kind))
    except AnswerError as error:
        return "wrong", f"the answer cannot be read: {error}"
    except RecursionError:
        return "unknown", "nested too deeply to be compared"
    except MemoryError:
        raise  # the worker reports its limit
    except Exception as error:  # a response must never end a training run
        logger.warning("grading %r failed", text[:200], exc_info=True)
        return "unknown", f"internal error: {type(error).__name__}"
    if equal is None and comparison.needs_engine:
        return None
    if equal is None:
        return (
            "unknown",
            "too large to be compared exactly" if comparison.too_large else "the comparison could not be decided",
        )
    return ("correct", "equals the gold answer") if equal else ("wrong", "differs from the gold answer")


@lru_cache(maxsize=16_384)
def _compare_here(gold: str, text: str, kind: str | None, options: GradeOptions) -> tuple[Status, str] | None:
    """:func:`_compare` in this process; samples of one question often give the same answer."""
    return _compare(gold_readings(gold, kind), text, kind, options, None)


def _verdict(
    status: Status,
    reason: str,
    extraction: Extraction,
    golds: tuple[Reading, ...],
    started: float,
    mode: str = "default",
) -> Verdict:
    return Verdict(
        status, reason, extraction.text, extraction.source, answer_kind(golds[0].answer), mode,
        DEFAULT_GRADER if mode == "default" else mode, time.perf_counter() - started,
    )  # fmt: skip


def _reference(response: str, gold: Gold, mode: str, started: float, *, may_be_slow: bool) -> Verdict | None:
    from negpo.rewards.reference import REFERENCE_GRADERS

    grader = REFERENCE_GRADERS[mode]()
    if grader.slow and not may_be_slow:
        return None
    correct, extracted = grader.grade(response, gold_text(gold))
    reason = f"{grader.name} {'accepts' if correct else 'rejects'} the answer"
    status: Status = "correct" if correct else "wrong"
    return Verdict(status, reason, extracted, mode, None, mode, grader.name, time.perf_counter() - started)


# -- gold answers ------------------------------------------------------------------------------------------------------


def check_mode(kind: str | None, mode: str, options: GradeOptions = EXACT) -> None:
    """Raises ConfigError for an unknown mode or kind, and for options that a reference mode does not have."""
    if mode not in MODES:
        raise ConfigError(f"unknown grading mode '{mode}'; choose one of {', '.join(MODES)}")
    if kind is not None and kind not in (known := (*KINDS, *TASK_KINDS)):
        raise ConfigError(f"unknown answer kind '{kind}'; choose one of {', '.join(known)} or None")
    if mode != "default" and options != EXACT:
        raise ConfigError(f"mode '{mode}' repeats another grader and has no options, got {options}")


def is_task(gold: Gold, kind: str | None) -> bool:
    """Whether the gold names a Countdown task; said by its kind or, where that is open, seen from its form."""
    return kind == countdown.KIND or (kind is None and isinstance(gold, str) and countdown.is_gold(gold))


def gold_text(gold: Gold) -> str:
    """The gold answer as text; 27.0 becomes "27".

    Raises:
        DataError: neither text nor a finite number, or a number of more digits than can be printed.
    """
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise DataError(f"a gold answer must be text or a number, got {gold!r}", field="answer")
    if isinstance(gold, float):
        if not math.isfinite(gold):
            raise DataError(f"a gold answer must be text or a finite number, got {gold!r}", field="answer")
        return str(int(gold)) if gold.is_integer() else repr(gold)
    if isinstance(gold, int) and gold.bit_length() > MAX_GOLD_BITS:
        digits = round(gold.bit_length() * math.log10(2))
        raise DataError(f"the gold answer is a number of about {digits} digits, limit {MAX_DIGITS}", field="answer")
    return str(gold)


@lru_cache(maxsize=65_536)
def gold_readings(gold: str, kind: str | None) -> tuple[Reading, ...]:
    boxed = extract_answer(gold) if "\\boxed" in gold or "\\fbox" in gold else None
    try:
        readings = tuple(parse_answer(boxed.text if boxed and boxed.text else gold, kind))
    except (AnswerError, RecursionError) as error:
        raise DataError(
            f"the gold answer {gold[:80]!r} cannot be read: {error or 'nested too deeply'}", field="answer"
        ) from None
    found = answer_kind(readings[0].answer)
    if kind not in {None, found} and not _fits(kind, readings[0].answer):
        raise DataError(f"the gold answer {gold[:80]!r} is of kind '{found}', not '{kind}'", field="answer")
    return readings


def _fits(kind: str | None, answer: Answer) -> bool:
    """Whether a forced kind is compatible with what the gold answer is."""
    found = answer_kind(answer)
    wider = {
        "number": {"integer", "unit", "expression"}, "expression": {"integer", "number", "unit", "relation", "choice"},
        "unit": {"integer", "number", "expression"}, "interval": {"tuple", "relation", "set"},
        "tuple": {"interval", "matrix"},
        "set": {"integer", "number", "expression", "interval", "relation", "choice", "unit"}, "integer": {"unit"},
        "text": {found}, "relation": {"interval"},
    }  # fmt: skip
    return found in wider.get(kind or "", set())
