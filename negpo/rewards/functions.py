r"""Reward functions in TRL's signature ``(prompts, completions, completion_ids, **columns) -> list[float | None]``.

Each factory returns a function for ``GRPOTrainer(reward_funcs=...)``; ``asynchronous=True`` returns a coroutine
function, which TRL runs beside the other asynchronous rewards. Completions are texts or message lists. ``None`` means
unknown (a timeout, a crash): TRL leaves such a completion out of the reward sum, and it must never become a negative
sample.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from negpo.errors import ConfigError, DataError
from negpo.rewards.extract import extract_answer
from negpo.rewards.grader import check_mode
from negpo.rewards.pool import VerifierPool, default_pool
from negpo.rewards.verdict import Verdict

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Any]


def correctness_reward(
    *,
    correct: float = 1.0,
    wrong: float = -1.0,
    answer_column: str = "answer",
    kind_column: str | None = None,
    mode: str = "default",
    pool: VerifierPool | None = None,
    asynchronous: bool = False,
) -> RewardFunction:
    """Rewards ``correct`` or ``wrong`` by the verdict of :func:`negpo.rewards.grade`, ``None`` where it is unknown.

    Args:
        correct, wrong: +1 and -1 for signed methods (NSR, W-REINFORCE), 1 and 0 for group-normalised ones.
        answer_column: dataset column with the gold answers; ``kind_column`` one with answer kinds, if there is one.
        mode: grading mode, see :data:`negpo.rewards.grader.MODES`.
        pool: workers to use; the shared default pool when None.

    Raises:
        ConfigError: unknown mode, or ``correct`` does not exceed ``wrong``.
        DataError: (when called) the answer column is missing, has another length, or holds an unreadable gold answer.
    """
    check_mode(None, mode)
    if not correct > wrong:
        raise ConfigError(f"correct={correct} must be larger than wrong={wrong}")

    def pairs_and_kinds(completions: Sequence[Any], columns: dict[str, Any]) -> tuple[list, list | None]:
        golds = column(columns, answer_column, len(completions))
        kinds = column(columns, kind_column, len(completions)) if kind_column else None
        return list(zip(map(completion_text, completions), golds, strict=True)), kinds

    def rewards(verdicts: Sequence[Verdict], columns: dict[str, Any]) -> list[float | None]:
        _log(verdicts, columns)
        values = {"correct": correct, "wrong": wrong, "unknown": None}
        return [values[verdict.status] for verdict in verdicts]

    def correctness(prompts=None, completions=(), completion_ids=None, **columns) -> list[float | None]:
        pairs, kinds = pairs_and_kinds(completions, columns)
        return rewards((pool or default_pool()).grade_many(pairs, kinds=kinds, mode=mode), columns)

    async def correctness_async(prompts=None, completions=(), completion_ids=None, **columns) -> list[float | None]:
        pairs, kinds = pairs_and_kinds(completions, columns)
        return rewards(await (pool or default_pool()).grade_many_async(pairs, kinds=kinds, mode=mode), columns)

    return _named(correctness_async if asynchronous else correctness, "correctness_reward")


def format_reward(
    *, boxed: bool = True, thinking: bool = False, reward: float = 1.0, penalty: float = 0.0, asynchronous: bool = False
) -> RewardFunction:
    r"""Rewards the wanted form: with ``boxed`` a non-empty ``\boxed{}`` after the thinking section; with ``thinking``
    exactly one thinking section, closed, with text behind it (its opening tag may stand in the prompt).

    Raises:
        ConfigError: nothing is asked for.
    """
    if not (boxed or thinking):
        raise ConfigError("format_reward(boxed=False, thinking=False) asks for nothing")

    def well_formed(text: str) -> bool:
        if thinking and not _thinks_once(text):
            return False
        extraction = extract_answer(text)
        return not boxed or (extraction.source == "boxed" and extraction.text is not None)

    def format_(prompts=None, completions=(), completion_ids=None, **columns) -> list[float | None]:
        return [reward if well_formed(completion_text(completion)) else penalty for completion in completions]

    return _named(_as_coroutine(format_) if asynchronous else format_, "format_reward")


def length_reward(*, max_tokens: int, soft_tokens: int, asynchronous: bool = False) -> RewardFunction:
    """Soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13): 0 up to ``max_tokens - soft_tokens`` tokens, then
    falling linearly to -1 at ``max_tokens`` and staying there. Lengths come from ``completion_ids``.

    Raises:
        ConfigError: not 0 < soft_tokens < max_tokens. DataError: (when called) no ``completion_ids``.
    """
    if not 0 < soft_tokens < max_tokens:
        raise ConfigError(f"need 0 < soft_tokens < max_tokens, got soft_tokens={soft_tokens}, max_tokens={max_tokens}")

    def length(prompts=None, completions=(), completion_ids=None, **columns) -> list[float | None]:
        if completion_ids is None or len(completion_ids) != len(completions):
            found = "none" if completion_ids is None else len(completion_ids)
            raise DataError(
                f"length_reward needs one list of token ids per completion, got {found} for {len(completions)}"
            )
        return [min(0.0, max(-1.0, (max_tokens - soft_tokens - len(ids)) / soft_tokens)) for ids in completion_ids]

    return _named(_as_coroutine(length) if asynchronous else length, "length_reward")


# -- shared pieces -----------------------------------------------------------------------------------------------------


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the assistant's messages with string or typed content.

    Raises:
        DataError: neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(
        isinstance(message, dict) and "content" in message for message in completion
    ):
        spoken = [message["content"] for message in completion if message.get("role", "assistant") == "assistant"]
        return "\n".join(_content_text(content) for content in spoken)
    raise DataError(
        f"a completion must be text or a list of messages, got {type(completion).__name__}", field="completion"
    )


def _content_text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def column(columns: dict[str, Any], name: str, length: int) -> list[Any]:
    """One dataset column, one entry per completion.

    Raises:
        DataError: missing, or of another length.
    """
    if name not in columns:
        known = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list))) or "none"
        raise DataError(f"the reward needs the dataset column '{name}'; columns seen: {known}", field=name)
    values = columns[name]
    if not isinstance(values, list | tuple) or len(values) != length:
        found = len(values) if isinstance(values, list | tuple) else type(values).__name__
        raise DataError(f"column '{name}' has {found} entries for {length} completions", field=name)
    return list(values)


def _thinks_once(text: str) -> bool:
    if text.count("</think>") != 1 or text.count("<think>") > 1:
        return False
    before, after = text.split("</think>")
    return (
        bool(after.strip())
        and "<think>" not in after
        and ("<think>" not in before or before.lstrip().startswith("<think>"))
    )


def _log(verdicts: Sequence[Verdict], columns: dict[str, Any]) -> None:
    """Rates for TRL's metrics, extracted answers for its completions table, unknown verdicts for the log."""
    counts = Counter(verdict.status for verdict in verdicts)
    if callable(columns.get("log_metric")):
        for status in ("correct", "wrong", "unknown"):
            columns["log_metric"](f"verifier/{status}", counts[status] / max(1, len(verdicts)))
    if callable(columns.get("log_extra")):
        columns["log_extra"]("extracted_answer", [verdict.extracted or "" for verdict in verdicts])
    if counts["unknown"]:
        reasons = Counter(
            re.sub(r"[\d.]+ s", "", verdict.reason) for verdict in verdicts if verdict.status == "unknown"
        )
        logger.warning("%d of %d verdicts unknown: %s", counts["unknown"], len(verdicts), dict(reasons))


def _as_coroutine(function: RewardFunction) -> RewardFunction:
    async def coroutine(prompts=None, completions=(), completion_ids=None, **columns) -> list[float | None]:
        return await asyncio.to_thread(function, prompts, completions, completion_ids, **columns)

    return coroutine


def _named(function: RewardFunction, name: str) -> RewardFunction:
    """TRL logs rewards under the function's name."""
    function.__name__ = function.__qualname__ = name
    return function
