"""One flat layout for preference data, and the readers of everything else.

A ``PreferenceRow`` is one completion of one prompt: its group (rows of a group answer the same prompt), its sign (+1
preferred, -1 dispreferred, 0 neither) and perhaps a score. Readable: rows with

* ``chosen`` and ``rejected``, with or without ``prompt`` (TRL); each may also be a list of K alternatives
* ``rejected`` alone, perhaps with ``samples``: K neutral completions (D²O)
* ``completion`` and ``label`` (TRL, unpaired): rows with the same prompt become one group
* ``completions`` with ``labels`` (K booleans) and/or ``scores`` (K numbers)
* ``completion``, ``group``, ``sign`` and optionally ``score``, ``complete``: this layout itself
* for fine-tuning (``answers_only``): ``prompt`` and ``completion`` without a label, ``messages`` (every assistant
  message answers what stands in front of it), ``question`` and ``answer`` (in the template of evaluations), ``text``

``tools`` and ``chat_template_kwargs`` reach the chat template; other columns that TRL reads are refused by name. Texts
are strings or lists of chat messages, as in TRL. Whatever cannot be used is a DataError that names file, row and field,
or is dropped and counted (``Problems``).
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from negpo.data.chat import row_tools, template_options
from negpo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Text = str | list[dict[str, Any]]
Row = dict[str, Any]
BAD_ROWS = ("error", "drop")
UNREAD = {  # columns that TRL's trainers read and these do not: an error, never left out without a word
    "images": "only text is read",
    "image": "only text is read",
    "videos": "only text is read",
    "ref_chosen_logps": "reference log-probs are computed, and cached, by the trainer",
    "ref_rejected_logps": "reference log-probs are computed, and cached, by the trainer",
    "input_ids": "texts are tokenised here",
    "completion_mask": "labels follow from prompt and completion",
    "assistant_masks": "labels follow from prompt and completion",
    "seq_lengths": "rows are not packed",
    "conversations": "rename it to messages, with role and content",
}


@dataclass(frozen=True)
class Question:
    """A prompt that the question-answer template of evaluations stands around."""

    text: str


@dataclass(frozen=True)
class PreferenceRow:
    """One completion. ``source`` is the row of the file it came from; ``complete`` is False for a cut prefix, which
    gets no end token."""

    prompt: Text | Question
    completion: Text
    group: int
    sign: int
    source: int
    score: float | None = None
    complete: bool = True
    tools: list[Any] | None = None  # for the chat template, as in TRL
    options: dict[str, Any] | None = None  # the row's chat_template_kwargs


@dataclass
class Problems:
    """Rows that cannot be used: raised as DataError, or counted under a short name and left out."""

    file: str
    mode: str = "error"
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.mode not in BAD_ROWS:
            raise ConfigError(f"bad_rows is {self.mode!r}; choose one of {', '.join(BAD_ROWS)}")

    def add(self, kind: str, message: str, row: int, field: str | None = None) -> None:
        """Count the row, or raise. ``kind`` is the name in the report."""
        if self.mode == "error":
            raise DataError(f"{message}, or set bad_rows=drop", file=self.file, row=row, field=field)
        self.counts[kind] += 1

    def tell(self, total: int) -> None:
        if self.counts:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
            logger.warning("%s: of %d rows dropped: %s", self.file, total, listed)


class _Unusable(Exception):
    """Ends the reading of one row; caught by ``read_preferences``."""

    def __init__(self, kind: str, message: str, field: str | None = None):
        super().__init__(message)
        self.kind, self.field = kind, field


def read_preferences(rows: Sequence[Row], problems: Problems, *, answers_only: bool = False) -> list[PreferenceRow]:
    """All rows in the flat layout, group by group. A row with one bad completion is left out as a whole.

    ``answers_only`` also reads rows of answers without a judgement, all preferred.
    """
    rows = list(rows)
    if not rows:
        raise DataError("there are no rows", file=problems.file)
    found: list[PreferenceRow] = []
    groups: dict[str, int] = {}
    signs: dict[tuple[int, str], int] = {}
    for index, row in enumerate(rows):
        try:
            items = _read_answers(row, index, groups) if answers_only else None
            items = _with_options(_read(row, index, groups) if items is None else items, row)
            _note_signs(items, signs)
            found += items
        except _Unusable as bad:
            problems.add(bad.kind, str(bad), index, bad.field)
    problems.tell(len(rows))
    if not found:
        raise DataError("no row is left", file=problems.file)
    return sorted(found, key=lambda item: item.group)  # stable: completions keep their order


def _note_signs(items: Sequence[PreferenceRow], signs: dict[tuple[int, str], int]) -> None:
    """Remember which answers of a group are preferred and which are not; without scores the same one cannot be both."""
    found: dict[tuple[int, str], int] = {}
    for item in items:
        if not item.sign or item.score is not None:
            continue
        key = (item.group, json.dumps(item.completion, sort_keys=True))
        if signs.get(key, found.get(key, item.sign)) != item.sign:
            message = "the same answer to the same prompt is labelled both true and false; remove one of the two"
            raise _Unusable("answers labelled true and false", message)
        found[key] = item.sign
    signs.update(found)


def _read(row: Any, index: int, groups: dict[str, int]) -> list[PreferenceRow]:
    if not isinstance(row, dict):
        raise _Unusable("not an object", f"expected an object with fields, found {type(row).__name__}")
    if "completions" in row:
        prompt, listed = _prompt(row), _listed(row)
        own = _group(groups, f"row {index}")
        return [PreferenceRow(prompt, text, own, sign, index, score) for text, sign, score in listed]
    if "completion" in row:
        return [_single(row, index, groups)]
    if "chosen" in row or "rejected" in row:
        return _sides(row, index, _group(groups, f"row {index}"))
    raise _Unusable(
        "unknown format",
        f"found fields {sorted(row)}; a row needs chosen and rejected, completion and label, or completions with "
        "labels or scores. Rename the fields",
    )


def _read_answers(row: Any, index: int, groups: dict[str, int]) -> list[PreferenceRow] | None:
    """Rows for fine-tuning; None for a row in another layout."""
    if not isinstance(row, dict):
        return None
    own = f"row {index}"
    if "messages" in row:
        return _assistant_turns(row["messages"], index, groups)
    if "question" in row and "answer" in row:
        question, answer = (_plain(row, name) for name in ("question", "answer"))
        return [PreferenceRow(Question(question), answer, _group(groups, own), 1, index)]
    if "text" in row:
        return [PreferenceRow("", _plain(row, "text"), _group(groups, own), 1, index, complete=False)]
    if "completion" in row and "label" not in row and "group" not in row:
        return [
            PreferenceRow(_prompt(row), _completion(row["completion"], "completion"), _group(groups, own), 1, index)
        ]
    return None


def _assistant_turns(messages: Any, index: int, groups: dict[str, int]) -> list[PreferenceRow]:
    if not is_messages(messages):
        raise _Unusable("no text", f"expected messages with role and content, found {messages!r:.80}", "messages")
    _check_messages(messages, "messages")
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
    if not places or messages[-1]["role"] != "assistant":
        _completion(messages, "messages")  # says what is wrong with the end
        raise _Unusable("no prompt", "nothing stands in front of the assistant's message", "messages")
    return [
        PreferenceRow(
            messages[:place],
            _completion([messages[place]], "messages"),
            _group(groups, f"row {index}, message {place}"),
            1,
            index,
        )
        for place in places
    ]


def _plain(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise _Unusable("no text", f"expected text, found {value!r:.80}; fill it in or remove the row", name)
    return value


def _with_options(items: list[PreferenceRow], row: Row) -> list[PreferenceRow]:
    """The items with the row's ``tools`` and ``chat_template_kwargs``; columns that would be dropped are refused."""
    for name in UNREAD.keys() & row.keys():
        if row[name] is not None:
            raise _Unusable(f"column {name}", f"the column would not be used ({UNREAD[name]}); remove it", name)
    given = {name: row[name] for name in ("tools", "chat_template_kwargs") if row.get(name) not in (None, [], {}, "")}
    if not given:
        return items
    if any(isinstance(item.prompt, str | Question) for item in items):
        raise _Unusable("template options", "they belong to conversations, and the prompt is text", next(iter(given)))
    try:
        return [
            replace(
                item, tools=row_tools(given.get("tools")), options=template_options(given.get("chat_template_kwargs"))
            )
            for item in items
        ]
    except DataError as error:
        raise _Unusable("template options", str(error).split(": ", 1)[1], error.field) from error


def _single(row: Row, index: int, groups: dict[str, int]) -> PreferenceRow:
    prompt, completion = _prompt(row), _completion(row["completion"], "completion")
    if "group" not in row:
        asked = [prompt, row.get("tools"), row.get("chat_template_kwargs")]
        key = json.dumps(asked, sort_keys=True, ensure_ascii=False, default=str)
        return PreferenceRow(prompt, completion, _group(groups, key), _sign(row, "label"), index)
    if row.get("sign") not in (-1, 0, 1) or isinstance(row["sign"], bool):
        raise _Unusable("sign is not -1, 0 or 1", f"sign is {row.get('sign')!r}; use 1, -1 or 0", "sign")
    score = None if row.get("score") is None else _number(row["score"], "score")
    group = _group(groups, f"group {row['group']}")
    return PreferenceRow(prompt, completion, group, row["sign"], index, score, bool(row.get("complete", True)))


def _sides(row: Row, index: int, group: int) -> list[PreferenceRow]:
    if "prompt" not in row:
        row = _with_extracted_prompt(row)
    prompt, out = _prompt(row), []
    for name, sign in (("samples", 0), ("chosen", 1), ("rejected", -1)):
        texts = [_completion(value, name) for value in _alternatives(row[name], name)] if name in row else []
        out += [PreferenceRow(prompt, text, group, sign, index) for text in texts]
    bad = [item.completion for item in out if item.sign < 0]
    if any(item.completion in bad for item in out if item.sign > 0):
        raise _Unusable(
            "identical chosen and rejected", "chosen and rejected are identical; remove the row", "rejected"
        )
    return out


def _listed(row: Row) -> list[tuple[Text, int, float | None]]:
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        raise _Unusable("no completions", f"completions is {completions!r}; give a list of texts", "completions")
    for name in ("labels", "scores"):
        if name in row and (not isinstance(row[name], list) or len(row[name]) != len(completions)):
            raise _Unusable(
                f"{name} of another length", f"{len(completions)} completions but {name} is {row[name]!r}", name
            )
    if "labels" not in row and "scores" not in row:
        raise _Unusable("no labels", "completions need labels (booleans) or scores (numbers)", "labels")
    scores = [_number(value, "scores") for value in row["scores"]] if "scores" in row else [None] * len(completions)
    signs = [_sign({"labels": value}, "labels") for value in row["labels"]] if "labels" in row else _ranked(scores)
    return [
        (_completion(text, "completions"), sign, score)
        for text, sign, score in zip(completions, signs, scores, strict=True)
    ]


def _ranked(scores: Sequence[Any]) -> list[int]:
    """Signs of scored completions: the best are +1, the worst -1, what lies between is 0."""
    best, worst = max(scores), min(scores)
    return [0 if best == worst else 1 if score == best else -1 if score == worst else 0 for score in scores]


def _group(groups: dict[str, int], key: str) -> int:
    return groups.setdefault(key, len(groups))


def _sign(row: Row, name: str) -> int:
    if not isinstance(row.get(name), bool):
        raise _Unusable("label is not boolean", f"expected true or false, found {row.get(name)!r}; convert it", name)
    return 1 if row[name] else -1


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Unusable("score is not a number", f"expected a finite number, found {value!r}; convert it", name)
    return float(value)


def is_messages(value: Any) -> bool:
    """Whether ``value`` is a conversation: a non-empty list of messages with a role."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _alternatives(value: Any, name: str) -> list[Any]:
    """One completion or K of them, as a list."""
    if isinstance(value, str) or is_messages(value):
        return [value]
    if isinstance(value, list) and value:
        return value
    raise _Unusable("no text", f"expected text, messages or a list of them, found {value!r}", name)


def _prompt(row: Row) -> Text:
    value = row.get("prompt")
    if isinstance(value, str):
        if not value:
            raise _Unusable("empty prompt", "the prompt is empty; fill it in or remove the row", "prompt")
        return value
    if value is None or not is_messages(value):
        raise _Unusable("no prompt", f"expected text or messages, found {value!r}", "prompt")
    _check_messages(value, "prompt")
    if value[-1]["role"] == "assistant":
        raise _Unusable(
            "prompt ends with the assistant",
            "the prompt ends with an assistant message; move it to the answer",
            "prompt",
        )
    return value


def _completion(value: Any, name: str) -> Text:
    if isinstance(value, str):
        if not value.strip():
            raise _Unusable("empty completion", "the text is empty; fill it in or remove the row", name)
        return value
    if not is_messages(value):
        raise _Unusable("no text", f"expected text or messages, found {value!r}", name)
    _check_messages(value, name)
    if value[-1]["role"] != "assistant":
        raise _Unusable(
            "conversation ends with the user",
            f"the conversation ends with a {value[-1]['role']} message; it must end with the assistant's",
            name,
        )
    if not (value[-1].get("content") or value[-1].get("tool_calls")):
        raise _Unusable("empty completion", "the assistant's message is empty; fill it in or remove the row", name)
    return value


def _check_messages(messages: list[Any], name: str) -> None:
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise _Unusable("no text", f"message {place} is {message!r}; it needs role and content", name)
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise _Unusable("no text", f"message {place} has content {type(content).__name__}; only text is read", name)


def _with_extracted_prompt(row: Row) -> Row:
    """A row whose chosen and rejected begin with the prompt, with the common beginning split off (TRL's implicit
    prompt). A space before the first difference stays with the answers."""
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    if not (isinstance(chosen, str) and isinstance(rejected, str)) and not (
        is_messages(chosen) and is_messages(rejected)
    ):
        raise _Unusable(
            "no prompt", "without a prompt, chosen and rejected must both be texts or conversations", "prompt"
        )
    if chosen == rejected:
        raise _Unusable(
            "identical chosen and rejected", "chosen and rejected are identical; remove the row", "rejected"
        )
    pairs = enumerate(zip(chosen, rejected, strict=False))
    border = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if border and isinstance(chosen, str) and chosen[border - 1] == " ":
        border -= 1
    return row | {"prompt": chosen[:border], "chosen": chosen[border:], "rejected": rejected[border:]}
