"""Flat preference rows to token ids: prompts once per group, limits, and what was lost to them.

End tokens and the border between prompt and completion follow TRL 1.16: a completion starts where the tokens of prompt
and prompt+completion part, the smallest such place over the group. Plain text gets the end token as text unless it has
one; conversations end as their template ends them. Unlike TRL, the texts of both sides are built so that the completion
holds all of its text (``negpo.data.chat``), and special tokens that a tokenizer appends never stand between the two.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, cast

from negpo.data.chat import Message, Turn, chat_ids, common_length, reasons, render, split_turn, text_ids
from negpo.data.preference import PreferenceRow, Problems, Question, Text
from negpo.data.qa import IGNORE, QATemplate, encode_qa
from negpo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TRUNCATION = ("keep_start", "keep_end")
OVERLONG = ("drop", "truncate")
UNCUT = 1 << 24  # encode_qa's own limit is lifted: Limits cut, and count


@dataclass(frozen=True)
class Limits:
    """Most tokens of prompt + completion, of the prompt, of a completion (None: no limit), and what happens beyond.

    ``overlong="truncate"`` cuts to ``max_length`` as TRL does: the start or the end of prompt + completion stays. A
    prompt is cut to ``max_prompt_length`` in the same way, a completion to its first ``max_completion_length`` tokens.
    ``overlong="drop"`` leaves the completion out; a prompt that is too long takes its whole group along.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    overlong: str = "truncate"
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        for name, allowed in (("overlong", OVERLONG), ("truncation_mode", TRUNCATION)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name in ("max_length", "max_prompt_length", "max_completion_length"):
            if getattr(self, name) is not None and getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 2, or null for no limit")


@dataclass
class Group:
    """One prompt and its completions. ``cuts[k]`` prompt tokens are missing at the front of row k (keep_end);
    ``lost`` says that length limits dropped a completion."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    signs: list[int]
    scores: list[float | None]
    cuts: list[int]
    source: int
    prompt: Text = ""
    lost: bool = False

    def __len__(self) -> int:
        return len(self.completion_ids)

    def row(self, k: int) -> dict[str, list[int]]:
        """Completion k behind its prompt: ``input_ids`` and ``labels`` (-100 on the prompt)."""
        prompt = self.prompt_ids[self.cuts[k] :]
        completion = self.completion_ids[k]
        return {"input_ids": prompt + completion, "labels": [IGNORE] * len(prompt) + completion}

    def select(self, places: Sequence[int]) -> "Group":
        """The same prompt with some of its completions."""
        return replace(
            self,
            completion_ids=[self.completion_ids[k] for k in places],
            signs=[self.signs[k] for k in places],
            scores=[self.scores[k] for k in places],
            cuts=[self.cuts[k] for k in places],
        )


@dataclass
class EncodingReport:
    """What happened on the way: counts by name. ``lines()`` is for people."""

    groups: int = 0
    completions: int = 0
    counts: Counter = field(default_factory=Counter)

    def lines(self) -> list[str]:
        kept = f"{self.groups} prompts with {self.completions} completions"
        return [kept, *(f"{count} {kind}" for kind, count in sorted(self.counts.items()))]


def encode_groups(
    rows: Sequence[PreferenceRow],
    tokenizer: Any,
    limits: Limits,
    problems: Problems,
    *,
    append_eos: bool = False,
    template: QATemplate | None = None,
) -> tuple[list[Group], EncodingReport]:
    """Token ids of all groups, and a report. Groups that lost all completions are gone.

    ``append_eos`` adds the end token to conversations whose template does not end with it, as TRL 0.17 did.
    ``template`` is around questions and answers.

    Raises DataError for a prompt that fills ``max_length`` or a conversation that the chat template cannot show whole
    (unless ``problems`` drops them) and when nothing is left.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos token; answers could not end. Set tokenizer.eos_token")
    report, groups = EncodingReport(), []
    for _, members in groupby(rows, key=lambda row: row.group):
        try:
            group = _encode(list(members), tokenizer, append_eos, report, template)
        except DataError as error:
            message = str(error).removeprefix(f"row {error.row}: ")
            problems.add("rows that the chat template cannot show whole", message, error.row or 0, error.field)
            continue
        kept = _limit(group, limits, problems, report)
        if kept:
            groups.append(kept)
    report.groups, report.completions = len(groups), sum(map(len, groups))
    report.counts.update(problems.counts)
    if report.counts:
        logger.warning("%s: %s", problems.file, "; ".join(report.lines()))
    if not groups:
        raise DataError(f"no completion is left ({'; '.join(report.lines())})", file=problems.file)
    return groups, report


def _encode(
    members: list[PreferenceRow],
    tokenizer: Any,
    append_eos: bool,
    report: EncodingReport,
    template: QATemplate | None,
) -> Group:
    prompt = members[0].prompt
    if isinstance(prompt, Question):
        prompt_ids, whole = _question_ids(tokenizer, prompt, members, template)
    elif isinstance(prompt, str):
        prompt_ids = _ids(tokenizer, prompt)
        whole = [_whole_ids(tokenizer, prompt, member) for member in members]
    else:
        prompt_ids, whole = _conversation_ids(tokenizer, prompt, members, append_eos, report)
    border = min(common_length(prompt_ids, ids) for ids in whole)
    border = max(border, 1) if prompt == "" else border  # a text's first token is predicted by nothing
    report.counts["prompts whose last tokens merge with the answer"] += border < len(prompt_ids)
    open_ended = sum(
        member.complete and tokenizer.eos_token_id not in ids[border:]
        for member, ids in zip(members, whole, strict=True)
    )
    report.counts["completions without the tokenizer's end token (chat template)"] += open_ended
    report.counts = +report.counts  # without zeros
    return Group(
        whole[0][:border],
        [ids[border:] for ids in whole],
        [member.sign for member in members],
        [member.score for member in members],
        [0] * len(members),
        members[0].source,
        prompt.text if isinstance(prompt, Question) else prompt,
    )


def _question_ids(
    tokenizer: Any, prompt: Question, members: list[PreferenceRow], template: QATemplate | None
) -> tuple[list[int], list[list[int]]]:
    """As evaluations ask: ``template`` around question and answer, nothing cut (limits come later)."""
    if template is None:
        raise ConfigError("the rows are questions and answers, which needs a template; pass template=QATemplate(...)")
    items = [
        encode_qa(tokenizer, template, prompt.text, str(member.completion), max_length=UNCUT) for member in members
    ]
    starts = [next(i for i, label in enumerate(item["labels"]) if label != IGNORE) for item in items]
    return items[0]["input_ids"][: min(starts)], [item["input_ids"] for item in items]


def _whole_ids(tokenizer: Any, prompt: str, row: PreferenceRow) -> list[int]:
    if not isinstance(row.completion, str):
        raise _different_kinds(row)
    ends = not row.complete or row.completion.endswith(tokenizer.eos_token)
    return _ids(tokenizer, prompt + row.completion + ("" if ends else tokenizer.eos_token))


def _conversation_ids(
    tokenizer: Any, prompt: list[Message], members: list[PreferenceRow], append_eos: bool, report: EncodingReport
) -> tuple[list[int], list[list[int]]]:
    """One prompt for all: it leaves thinking open where one of the answers reasons."""
    if mixed := next((member for member in members if not isinstance(member.completion, list)), None):
        raise _different_kinds(mixed)
    thinking = "on" if any(reasons(cast("list[Message]", member.completion)) for member in members) else "off"
    prompt_ids: list[int] = []
    whole = []
    for member in members:
        turn = _turn(tokenizer, prompt, member, thinking)
        report.counts["completions with text that the chat template would have dropped, kept"] += turn.kept
        answer = turn.answer if member.complete else turn.answer.removesuffix(turn.end)
        ids = chat_ids(tokenizer, turn.prompt + answer)
        ends = not append_eos or not member.complete or ids[-1] == tokenizer.eos_token_id
        whole.append(ids if ends else [*ids, tokenizer.eos_token_id])
        prompt_ids = prompt_ids or chat_ids(tokenizer, turn.prompt)
    return prompt_ids, whole


def _turn(tokenizer: Any, prompt: list[Message], member: PreferenceRow, thinking: str) -> Turn:
    try:
        return split_turn(
            tokenizer,
            prompt,
            cast("list[Message]", member.completion),
            thinking=thinking,
            tools=member.tools,
            **(member.options or {}),
        )
    except DataError as error:
        raise DataError(str(error), row=member.source) from error


def _different_kinds(row: PreferenceRow) -> DataError:
    return DataError(
        "prompt and completion must both be texts or both be conversations", row=row.source, field="completion"
    )


def _ids(tokenizer: Any, text: Text, **options: Any) -> list[int]:
    """Of plain text, or of a conversation; ``options`` are those of ``render``."""
    if isinstance(text, str):
        return text_ids(tokenizer, text)
    return chat_ids(tokenizer, render(tokenizer, text, **options))


def prefixed_prompt_ids(tokenizer: Any, prompt: Text, prefix: str) -> list[int]:
    """Ids of the prompt behind an instruction: text in front of a text, a system message in front of messages."""
    if isinstance(prompt, str):
        return _ids(tokenizer, prefix + prompt)
    head, rest = (prompt[0]["content"] + "\n\n", prompt[1:]) if prompt[0]["role"] == "system" else ("", prompt)
    return _ids(tokenizer, [{"role": "system", "content": head + prefix}, *rest], ask=True)


def continuation_ids(tokenizer: Any, prompt: Text, prefix: str) -> list[int]:
    """Ids from which a model continues an answer that begins with ``prefix``."""
    if isinstance(prompt, str):
        return _ids(tokenizer, prompt + prefix)
    turn = split_turn(tokenizer, prompt, [{"role": "assistant", "content": prefix}], thinking="off")
    return chat_ids(tokenizer, turn.prompt + turn.answer.removesuffix(turn.end))


def _limit(group: Group, limits: Limits, problems: Problems, report: EncodingReport) -> Group | None:
    """The group within the limits, or None where its prompt leaves no room."""
    prompt = group.prompt_ids
    if limits.max_prompt_length is not None and len(prompt) > limits.max_prompt_length:
        if limits.overlong == "drop":
            report.counts[f"prompts longer than max_prompt_length={limits.max_prompt_length}, dropped"] += 1
            return None
        report.counts[f"prompts cut to max_prompt_length={limits.max_prompt_length}"] += 1
        n = limits.max_prompt_length
        group.prompt_ids = prompt = prompt[-n:] if limits.truncation_mode == "keep_end" else prompt[:n]
    too_long = limits.max_length is not None and len(prompt) >= limits.max_length
    if too_long and (limits.overlong == "drop" or limits.truncation_mode == "keep_start"):
        message = (
            f"the prompt has {len(prompt)} tokens, max_length is {limits.max_length}: no token of an answer is left. "
            "Raise max_length or shorten it"
        )
        problems.add("prompts that fill max_length", message, group.source, "prompt")
        return None
    kept = [k for k in range(len(group)) if _limit_completion(group, k, limits, report)]
    group.lost = len(kept) < len(group)
    return group.select(kept)


def _limit_completion(group: Group, k: int, limits: Limits, report: EncodingReport) -> bool:
    """Cut completion k in place; False when it must go."""
    ids, n = group.completion_ids[k], limits.max_completion_length
    room = None if limits.max_length is None else limits.max_length - len(group.prompt_ids)
    over_own, over_total = n is not None and len(ids) > n, room is not None and len(ids) > room
    if not (over_own or over_total):
        return True
    if limits.overlong == "drop":
        report.counts["completions over the length limit, dropped"] += 1
        return False
    report.counts[f"completions cut ({limits.truncation_mode})"] += 1
    ids = ids[:n] if over_own else ids
    if room is not None and len(ids) > room:
        if limits.truncation_mode == "keep_start":
            ids = ids[:room]
        else:
            surplus = len(ids) - room
            group.cuts[k] = min(surplus, len(group.prompt_ids))
            ids = ids[surplus - group.cuts[k] :]
    group.completion_ids[k] = ids
    return True
