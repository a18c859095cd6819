"""Flat preference rows to token ids: prompts once per group, limits, and what was lost to them.

Templates, end tokens and the border between prompt and completion follow TRL 1.16: a completion starts where the
tokens of prompt and prompt+completion part, the smallest such place over the group. Plain text gets the end token as
text unless it has one; conversations end as their template ends them.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from negpo.data.preference import PreferenceRow, Problems, Text
from negpo.data.qa import IGNORE
from negpo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TRUNCATION = ("keep_start", "keep_end")
OVERLONG = ("drop", "truncate")


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
    rows: Sequence[PreferenceRow], tokenizer: Any, limits: Limits, problems: Problems, *, append_eos: bool = False
) -> tuple[list[Group], EncodingReport]:
    """Token ids of all groups, and a report. Groups that lost all completions are gone.

    ``append_eos`` adds the end token to conversations whose template does not end with it, as TRL 0.17 did.
    Raises DataError for a prompt that fills ``max_length`` (unless ``problems`` drops it) and when nothing is left.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos token; answers could not end. Set tokenizer.eos_token")
    report, groups = EncodingReport(), []
    for _, members in groupby(rows, key=lambda row: row.group):
        group = _limit(_encode(list(members), tokenizer, append_eos, report), limits, problems, report)
        if group is not None and len(group):
            groups.append(group)
    report.groups, report.completions = len(groups), sum(map(len, groups))
    report.counts.update(problems.counts)
    if report.counts:
        logger.warning("%s: %s", problems.file, "; ".join(report.lines()))
    if not groups:
        raise DataError(f"no completion is left ({'; '.join(report.lines())})", file=problems.file)
    return groups, report


def _encode(members: list[PreferenceRow], tokenizer: Any, append_eos: bool, report: EncodingReport) -> Group:
    prompt = members[0].prompt
    prompt_ids = _ids(tokenizer, prompt, add_generation_prompt=True)
    whole = [_whole_ids(tokenizer, prompt, member, append_eos) for member in members]
    border = min(_common(prompt_ids, ids) for ids in whole)
    report.counts["prompts whose last tokens merge with the answer"] += border < len(prompt_ids)
    open_ended = sum(
        member.complete and tokenizer.eos_token_id not in ids[border:]
        for member, ids in zip(members, whole, strict=True)
    )
    report.counts["completions without the tokenizer's end token (chat template)"] += open_ended
    report.counts = +report.counts  # without zeros
    return Group(
        prompt_ids[:border],
        [ids[border:] for ids in whole],
        [member.sign for member in members],
        [member.score for member in members],
        [0] * len(members),
        members[0].source,
        prompt,
    )


def _whole_ids(tokenizer: Any, prompt: Text, row: PreferenceRow, append_eos: bool) -> list[int]:
    completion = row.completion
    if isinstance(prompt, str) and isinstance(completion, str):
        ends = not row.complete or completion.endswith(tokenizer.eos_token)
        return _ids(tokenizer, prompt + completion + ("" if ends else tokenizer.eos_token))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError(
            "prompt and completion must both be texts or both be conversations", row=row.source, field="completion"
        )
    if not row.complete:
        return _ids(tokenizer, [*prompt, *completion], continue_final_message=True)
    ids = _ids(tokenizer, [*prompt, *completion])
    return [*ids, tokenizer.eos_token_id] if append_eos and ids[-1] != tokenizer.eos_token_id else ids


def _ids(tokenizer: Any, text: Text, **options: Any) -> list[int]:
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"])
    if tokenizer.chat_template is None:
        raise ConfigError("the rows are conversations but the tokenizer has no chat template; set one or pass texts")
    return list(tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **options)["input_ids"])


def prefixed_prompt_ids(tokenizer: Any, prompt: Text, prefix: str) -> list[int]:
    """Ids of the prompt behind an instruction: text in front of a text, a system message in front of messages."""
    if isinstance(prompt, str):
        return _ids(tokenizer, prefix + prompt)
    head, rest = (prompt[0]["content"] + "\n\n", prompt[1:]) if prompt[0]["role"] == "system" else ("", prompt)
    return _ids(tokenizer, [{"role": "system", "content": head + prefix}, *rest], add_generation_prompt=True)


def continuation_ids(tokenizer: Any, prompt: Text, prefix: str) -> list[int]:
    """Ids from which a model continues an answer that begins with ``prefix``."""
    if isinstance(prompt, str):
        return _ids(tokenizer, prompt + prefix)
    return _ids(tokenizer, [*prompt, {"role": "assistant", "content": prefix}], continue_final_message=True)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
