"""``grade``: one response against one gold answer, in this process where that is quick, else in a worker."""

from __future__ import annotations

from negpo.rewards.decide import MODES, Gold, check_mode, gold_text, grade_here
from negpo.rewards.golds import validate_gold
from negpo.rewards.options import EXACT, GradeOptions
from negpo.rewards.pool import DEFAULT_TIMEOUT, VerifierPool, default_pool
from negpo.rewards.verdict import Verdict

__all__ = ["DEFAULT_TIMEOUT", "MODES", "Gold", "check_mode", "gold_text", "grade", "grade_here", "validate_gold"]


def grade(
    response: str,
    gold: Gold,
    *,
    kind: str | None = None,
    mode: str = "default",
    options: GradeOptions = EXACT,
    truncated: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    pool: VerifierPool | None = None,
) -> Verdict:
    """Grades one response. Never hangs: whatever may be slow runs in a worker process that is killed after ``timeout``.

    Args:
        response: text of the model, with or without a thinking section. gold: the reference answer, LaTeX or plain;
        numbers are accepted (AMC files store 27.0). kind: one of ``negpo.rewards.answers.KINDS`` to force how the
        gold answer is read; found out when None. mode: ``"default"`` or a reference grader: ``qwen``, ``nsr``,
        ``nsr_math``, ``hendrycks``, ``prm800k``, ``math_verify``. options: tolerances and choices, none by default.
        truncated: the response was cut by a length limit; then only an answer that was finished before the cut counts
        (a closed box, a closed ``<answer>`` tag), and without one it has no answer. timeout: seconds of processor
        time for the part that runs in a worker. pool: a :class:`~negpo.rewards.pool.VerifierPool`; the shared default
        pool when None.

    Returns:
        A :class:`Verdict`; ``unknown`` after a timeout, a crash or beyond the size limits.

    Raises:
        DataError: the gold answer cannot be read. ConfigError: unknown mode or kind, or options with a reference mode.
    """
    verdict = grade_here(response, gold, kind=kind, mode=mode, options=options, truncated=truncated)
    if verdict is not None:
        return verdict
    future = (pool or default_pool()).submit(response, gold, kind=kind, mode=mode, options=options, timeout=timeout)
    return future.result()
