"""What a correctness reward returns, and what it makes of answers that were cut off by the length limit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, get_args

from negpo.errors import ConfigError, DataError
from negpo.rewards.verdict import Verdict

Truncated = Literal["unknown", "wrong", "mask", "soft"]
TRUNCATED: tuple[str, ...] = get_args(Truncated)
CUT_COLUMN = "completion_truncated"


class Rewards(list[float | None]):
    """A plain list of rewards, as TRL wants it, that also knows the verdicts behind them.

    ``verdicts``: one :class:`~negpo.rewards.Verdict` per completion. ``labels``: right (True), wrong (False) or unknown
    (None), *from the verdict*: a method that needs labels (NSR, TOPR, NFT) takes them from here and never from a sum
    with penalties. ``masked``: completions that count for their group's baseline but must not be trained on.
    """

    def __init__(self, values: Iterable[float | None], verdicts: Sequence[Verdict], masked: Sequence[bool]):
        super().__init__(values)
        self.verdicts, self.masked = list(verdicts), list(masked)

    @property
    def labels(self) -> list[bool | None]:
        return [verdict.correct if verdict.known else None for verdict in self.verdicts]


def check_truncated(policy: str) -> None:
    if policy not in TRUNCATED:
        raise ConfigError(f"unknown truncated='{policy}'; choose one of {', '.join(TRUNCATED)}")


def cut_off(
    completion_ids: Sequence[Sequence[int]], max_tokens: int, eos_token_ids: int | Collection[int] = ()
) -> list[bool]:
    """Which completions the length limit cut: as long as ``max_tokens``, and their last token is no end token."""
    ends = {eos_token_ids} if isinstance(eos_token_ids, int) else set(eos_token_ids)
    return [len(ids) >= max_tokens and not (len(ids) > 0 and int(ids[-1]) in ends) for ids in completion_ids]


def cut_flags(
    columns: dict[str, Any],
    completion_ids: Sequence[Sequence[int]] | None,
    count: int,
    policy: str,
    max_tokens: int | None,
    eos_token_ids: int | Collection[int],
) -> list[bool]:
    """Which completions were cut: as the trainer says in the column ``completion_truncated``, else by their length.

    Raises:
        DataError: the policy was chosen but nothing tells which completions were cut, or flags of another length.
    """
    flags = columns.get(CUT_COLUMN)
    if flags is None and max_tokens is not None:
        if completion_ids is None or len(completion_ids) != count:
            found = "none" if completion_ids is None else len(completion_ids)
            raise DataError(f"max_tokens needs one list of token ids per completion, got {found} for {count}")
        return cut_off(completion_ids, max_tokens, eos_token_ids)
    if flags is None:
        if policy == "unknown":
            return [False] * count
        raise DataError(
            f"truncated='{policy}' needs to know which completions were cut: pass max_tokens (and eos_token_id), or "
            f"have the trainer send '{CUT_COLUMN}'"
        )
    if len(flags) != count:
        raise DataError(f"'{CUT_COLUMN}' has {len(flags)} entries for {count} completions", field=CUT_COLUMN)
    return [bool(flag) for flag in flags]


def cut_verdict(policy: str) -> Verdict | None:
    """The verdict on a completion that was cut, without reading it; None where the policy has it graded."""
    if policy == "unknown":
        return Verdict("unknown", "cut off by the length limit", source="none")
    if policy in {"wrong", "mask"}:
        return Verdict("wrong", "cut off by the length limit", source="none")
    return None
