"""``grade``: one response against one gold answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from negpo.errors import ConfigError, DataError
from negpo.rewards.answers import KINDS, Answer, Collection, Reading, answer_kind, readable
from negpo.rewards.compare import Comparison, Engine
from negpo.rewards.extract import Extraction, extract_answer
from negpo.rewards.latex import AnswerError
from negpo.rewards.reading import parse_answer
from negpo.rewards.verdict import DEFAULT_GRADER, Status, Verdict

logger = logging.getLogger(__name__)

MODES = ("default", "qwen", "nsr", "nsr_math", "hendrycks", "prm800k", "math_verify")
DEFAULT_TIMEOUT = 1.8  # seconds: with the overhead of killing a worker a verdict still comes within two

Gold = str | int | float


def grade(
    response: str,
    gold: Gold,
    *,
    kind: str | None = None,
    mode: str = "default",
    timeout: float = DEFAULT_TIMEOUT,
    pool=None,
) -> Verdict:
    """Grades one response. Never hangs: whatever may be slow runs in a worker process that is killed after ``timeout``.

    Args:
        response: text of the model, with or without a thinking section. gold: the reference answer, LaTeX or plain;
        numbers are accepted (AMC files store 27.0). kind: one of ``negpo.rewards.answers.KINDS`` to force how the
        gold answer is read; found out when None. mode: ``"default"`` or a reference grader: ``qwen``, ``nsr``,
        ``nsr_math``, ``hendrycks``, ``prm800k``, ``math_verify``. timeout: wall-clock seconds for the part that runs
        in a worker. pool: a :class:`~negpo.rewards.pool.VerifierPool`; the shared default pool when None.

    Returns:
        A :class:`Verdict`; ``unknown`` after a timeout, a crash or beyond the size limits.

    Raises:
        DataError: the gold answer cannot be read. ConfigError: unknown mode or kind.
    """
    verdict = grade_here(response, gold, kind=kind, mode=mode)
    if verdict is not None:
        return verdict
    if pool is None:
        from negpo.rewards.pool import default_pool

        pool = default_pool()
    return pool.submit(response, gold, kind=kind, mode=mode, timeout=timeout).result()


def grade_here(
    response: str, gold: Gold, *, kind: str | None = None, mode: str = "default", engine: Engine | None = None
) -> Verdict | None:
    """The verdict as far as it can be reached in this process in bounded time, else None.

    With ``engine`` (in a worker) nothing is left open.
    """
    check_mode(kind, mode)
    if not isinstance(response, str):
        raise DataError(f"a response must be text, got {type(response).__name__}", field="response")
    started = time.perf_counter()
    if mode != "default":
        return _reference(response, gold, mode, started, may_be_slow=engine is not None)
    golds = _gold_readings(gold_text(gold), kind)
    if response.strip() == gold_text(gold).strip():
        return _verdict(
            "correct", "identical to the gold answer", Extraction(response, "whole response"), golds, started
        )
    extraction = extract_answer(response)
    if extraction.text is None:
        return _verdict("wrong", extraction.reason, extraction, golds, started)
    listed = extraction.joined is not None and isinstance(golds[0].answer, Collection)
    extraction = replace(extraction, text=extraction.joined) if listed else extraction
    outcome = (
        _compare(golds, extraction.text or "", kind, engine)
        if engine
        else _compare_here(gold_text(gold), extraction.text or "", kind)
    )
    return None if outcome is None else _verdict(*outcome, extraction, golds, started)


def _compare(
    golds: tuple[Reading, ...], text: str, kind: str | None, engine: Engine | None
) -> tuple[Status, str] | None:
    """Status and reason, None where only the engine could tell and there is none."""
    comparison = Comparison(engine)
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
def _compare_here(gold: str, text: str, kind: str | None) -> tuple[Status, str] | None:
    """:func:`_compare` in this process; samples of one question often give the same answer."""
    return _compare(_gold_readings(gold, kind), text, kind, None)


def _verdict(
    status: Status, reason: str, extraction: Extraction, golds: tuple[Reading, ...], started: float
) -> Verdict:
    return Verdict(
        status, reason, extraction.text, extraction.source, answer_kind(golds[0].answer), "default", DEFAULT_GRADER,
        time.perf_counter() - started,
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


def check_mode(kind: str | None, mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f"unknown grading mode '{mode}'; choose one of {', '.join(MODES)}")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown answer kind '{kind}'; choose one of {', '.join(KINDS)} or None")


def gold_text(gold: Gold) -> str:
    """The gold answer as text; 27.0 becomes "27"."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise DataError(f"a gold answer must be text or a number, got {gold!r}", field="answer")
    if isinstance(gold, float):
        return str(int(gold)) if gold.is_integer() else repr(gold)
    return str(gold)


@lru_cache(maxsize=65_536)
def _gold_readings(gold: str, kind: str | None) -> tuple[Reading, ...]:
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


def validate_gold(gold: Gold, kind: str | None = None, *, is_readable: Callable[[str], bool] | None = None) -> str:
    """Checks a gold answer once, at load time, and returns its kind.

    ``is_readable(latex)`` decides about values the small parser does not know; by default a worker asks math-verify.

    Raises:
        DataError: naming the gold answer that cannot be read.
    """
    check_mode(kind, "default")
    readings = _gold_readings(gold_text(gold), kind)
    answer = readings[0].answer
    if not readable(answer):
        if is_readable is None:
            from negpo.rewards.pool import default_pool

            is_readable = default_pool().is_readable
        if not is_readable(gold_text(gold)):
            raise DataError(f"the gold answer {gold_text(gold)[:80]!r} cannot be read as LaTeX", field="answer")
    return answer_kind(answer)


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
