r"""Reward functions in TRL's signature ``(prompts, completions, completion_ids, **columns) -> list[float | None]``.

Each factory returns a function for ``GRPOTrainer(reward_funcs=...)``; ``asynchronous=True`` returns a coroutine
function, which TRL runs beside the other asynchronous rewards. Completions are texts or message lists. ``None`` means
unknown (a timeout, a crash): TRL leaves such a completion out of the reward sum, and it must never become a negative
sample.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from negpo.errors import ConfigError, DataError
from negpo.rewards.decide import check_mode
from negpo.rewards.extract import extract_answer
from negpo.rewards.golds import GoldReport, validate_golds
from negpo.rewards.options import EXACT, GradeOptions
from negpo.rewards.outcome import Rewards, check_truncated, cut_flags, cut_verdict
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
    options: GradeOptions = EXACT,
    truncated: str | None = None,
    max_tokens: int | None = None,
    eos_token_id: int | Collection[int] = (),
    pool: VerifierPool | None = None,
    asynchronous: bool = False,
) -> RewardFunction:
    """Rewards ``correct`` or ``wrong`` by the verdict of :func:`negpo.rewards.grade`, ``None`` where it is unknown.

    The list that comes back is a :class:`~negpo.rewards.outcome.Rewards`: it carries verdicts, labels and masks, so
    that labels never depend on penalties that are added. The function itself has ``role = "verdict"`` (the rewards for
    form and length have ``"shaping"``) and ``validate(rows, skip_bad_golds=False)``, which checks all golds of a data
    set with this reward's columns and mode (:func:`negpo.rewards.validate_golds`): trainers call it with their data.

    Args:
        correct, wrong: +1 and -1 for signed methods (NSR, W-REINFORCE), 1 and 0 for group-normalised ones.
        answer_column: dataset column with the gold answers; ``kind_column`` one with answer kinds, if there is one.
        mode: grading mode, see :data:`negpo.rewards.grader.MODES`; ``options``: tolerances of the default mode.
        truncated: what becomes of a completion that the length limit cut; None: what the trainer says
            (``truncated_policy``), else ``"unknown"``. Its fragment is never graded.
            ``"unknown"``: no verdict, so no gradient and no part in the group's baseline.
            ``"wrong"``: a negative sample. ``"mask"``: wrong in its group's baseline, but its own tokens are not
            trained on (``Rewards.masked``; what TRL's ``mask_truncated_completions`` does). ``"soft"``: right or wrong
            by an answer that was finished before the cut, wrong without one; meant to be used with
            :func:`length_reward`, whose penalty shapes the reward and never the label.
        max_tokens, eos_token_id: find cut completions by their length where the trainer does not say which were cut
            (``completion_truncated``, one flag per completion).
        pool: workers to use; the shared default pool when None.

    Raises:
        ConfigError: unknown mode or ``truncated``, or ``correct`` does not exceed ``wrong``.
        DataError: (when called) the answer column is missing, has another length, or holds an unreadable gold answer;
            ``truncated`` was chosen but nothing tells which completions were cut.
    """
    check_mode(None, mode, options)
    check_truncated(truncated or "unknown")
    if not (math.isfinite(correct) and math.isfinite(wrong) and correct > wrong):
        raise ConfigError(f"correct={correct} must be larger than wrong={wrong}, both finite")

    def prepare(completions: Sequence[Any], ids: Any, columns: dict[str, Any]) -> _Batch:
        golds = column(columns, answer_column, len(completions))
        kinds = column(columns, kind_column, len(completions)) if kind_column else [None] * len(completions)
        policy = truncated or next(iter(columns.get("truncated_policy") or ["unknown"]))
        cut = cut_flags(columns, ids, len(completions), policy, max_tokens, eos_token_id)
        given = [cut_verdict(policy) if was_cut else None for was_cut in cut]
        texts = [completion_text(completion) for completion in completions]
        return _Batch(list(zip(texts, golds, strict=True)), kinds, cut, given, policy)

    def finish(batch: _Batch, graded: Sequence[Verdict], columns: dict[str, Any]) -> Rewards:
        rest = iter(graded)
        verdicts = [verdict or next(rest) for verdict in batch.given]
        _log(verdicts, batch.cut, columns)
        values = {"correct": correct, "wrong": wrong, "unknown": None}
        masked = [batch.policy == "mask" and was_cut for was_cut in batch.cut]
        return Rewards([values[verdict.status] for verdict in verdicts], verdicts, masked)

    def correctness(prompts=None, completions=(), completion_ids=None, **columns) -> Rewards:
        batch = prepare(completions, completion_ids, columns)
        graded = (pool or default_pool()).grade_many(**batch.open, mode=mode, options=options)
        return finish(batch, graded, columns)

    async def correctness_async(prompts=None, completions=(), completion_ids=None, **columns) -> Rewards:
        batch = prepare(completions, completion_ids, columns)
        graded = await (pool or default_pool()).grade_many_async(**batch.open, mode=mode, options=options)
        return finish(batch, graded, columns)

    def validate(rows: Iterable[Any], *, skip_bad_golds: bool = False, source: str | None = None) -> GoldReport:
        return validate_golds(
            rows, column=answer_column, kind_column=kind_column, mode=mode, skip_bad_golds=skip_bad_golds,
            source=source, pool=pool,
        )  # fmt: skip

    function = _named(correctness_async if asynchronous else correctness, "correctness_reward", role="verdict")
    function.validate = validate  # type: ignore[attr-defined]
    function.truncated = truncated  # type: ignore[attr-defined]  # trainers compare it with their own setting
    return function


@dataclass(frozen=True)
class _Batch:
    """One call: pairs and kinds of all completions, which were cut, and the verdicts that need no grading."""

    pairs: list[tuple[str, Any]]
    kinds: list[str | None]
    cut: list[bool]
    given: list[Verdict | None]
    policy: str

    @property
    def open(self) -> dict[str, Any]:
        """Arguments of ``grade_many`` for the completions that have to be graded."""
        left = [index for index, verdict in enumerate(self.given) if verdict is None]
        return {
            "pairs": [self.pairs[index] for index in left],
            "kinds": [self.kinds[index] for index in left],
            "truncated": [self.cut[index] for index in left],
        }


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

    return _named(_as_coroutine(format_) if asynchronous else format_, "format_reward", role="shaping")


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

    return _named(_as_coroutine(length) if asynchronous else length, "length_reward", role="shaping")


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


def _log(verdicts: Sequence[Verdict], cut: Sequence[bool], columns: dict[str, Any]) -> None:
    """Rates for TRL's metrics, extracted answers for its completions table, unknown verdicts for the log."""
    counts = Counter(verdict.status for verdict in verdicts)
    if callable(columns.get("log_metric")):
        for status in ("correct", "wrong", "unknown"):
            columns["log_metric"](f"verifier/{status}", counts[status] / max(1, len(verdicts)))
        columns["log_metric"]("verifier/truncated", sum(cut) / max(1, len(verdicts)))
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


def _named(function: RewardFunction, name: str, *, role: str) -> RewardFunction:
    """TRL logs rewards under the function's name. ``role`` says whether it judges ("verdict") or only shapes."""
    function.__name__ = function.__qualname__ = name
    function.role = role  # type: ignore[attr-defined]
    return function
