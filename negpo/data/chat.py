"""Where an answer begins and ends in a conversation, and token ids with one BOS and no end token inside.

Chat templates are made for asking. What they print for a finished conversation need not go on from what they print
when they ask: DeepSeek-R1's drops everything before ``</think>``, Nemotron's and Qwen3.5's open a think block in the
prompt that an answer without reasoning closes. Taking "the common beginning" as the prompt then loses answer tokens
without a word. Here both sides are built as texts from one frame, and prompt + answer is checked to hold the answer's
own text, all of it, before anything is tokenised.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from negpo.errors import ConfigError, DataError

Message = dict[str, Any]
DATE = "10 Apr 2025"  # fixed by open-unlearning for templates that print today's date
THINKING = ("off", "on")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MARK = "negpo answer"  # stands in for the answer while its frame is measured
_TAG = re.compile(r"<(/?)(?:seed:)?think(?:ing)?>|\[(/?)THINK\]|◁(/?)think▷")


@dataclass(frozen=True)
class Turn:
    """``prompt`` is what a model is given, ``answer`` what it has to write; ``end`` is the end of turn that ``answer``
    ends with. ``kept``: the template alone would have dropped or moved text of the answer."""

    prompt: str
    answer: str
    end: str = ""
    kept: bool = False


# ---- texts -----------------------------------------------------------------------------------------------------------


def render(tokenizer: Any, messages: Sequence[Message], *, ask: bool = False, **options: Any) -> str:
    """The conversation as the tokenizer's chat template prints it, dates fixed. ``ask``: with the opened answer.

    Raises:
        ConfigError: there is no chat template. DataError: it refuses the conversation (Gemma: a system message).
    """
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the rows are conversations but the tokenizer has no chat template; set one or pass texts")
    options = fixed_date(tokenizer) | {name: value for name, value in options.items() if value is not None}
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **options)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(
            f"the tokenizer's chat template refuses the conversation ({roles}): {error}. Change the roles, or give the "
            "tokenizer another chat_template"
        ) from error


def fixed_date(tokenizer: Any, date: str = DATE) -> dict[str, Any]:
    """Arguments that make a template print ``date`` instead of today: a run can be resumed, and compared, tomorrow.

    Raises ConfigError when ``date`` is not like "10 Apr 2025" and the template asks for the day itself.
    """
    text = template_text(tokenizer)
    found: dict[str, Any] = {"date_string": date} if "date_string" in text else {}
    if "strftime_now" in text:
        try:
            found["strftime_now"] = datetime.strptime(date, "%d %b %Y").strftime
        except ValueError as error:
            raise ConfigError(f"date_string is {date!r}; this chat template needs one like '{DATE}'") from error
    return found


def thinking_switch(tokenizer: Any, thinking: str) -> dict[str, bool]:
    """The template's own switches between answering at once and thinking first; none where it has none."""
    names = ("enable_thinking", "thinking")
    text = template_text(tokenizer)
    return {name: thinking == "on" for name in names if re.search(rf"(?<![.\w'\"]){name}(?![\w'\"])", text)}


def template_text(tokenizer: Any) -> str:
    """The source of the chat template; of several named ones, all."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else str(template)


def reasons(messages: Sequence[Message]) -> bool:
    """Whether the last message holds reasoning, inside think tags or in a field of its own."""
    last = messages[-1]
    content = last.get("content")
    inside = isinstance(content, str) and any(_closes(match) for match in _TAG.finditer(content))
    return inside or any(last.get(key) for key in REASONING_KEYS)


def split_turn(
    tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message], *, thinking: str, **options: Any
) -> Turn:
    """The prompt's and the answer's text of ``completion`` behind ``prompt``.

    ``thinking="off"``: what the template prints in front of an answer without reasoning, an empty think block for
    instance, belongs to the prompt. ``"on"``: the prompt is what the template prints when it asks; reasoning is part of
    the answer, also where the template drops it from finished conversations; an answer without any closes the block.

    A row with reasoning is always read as ``"on"``. The template's own switch (``enable_thinking``) is set to agree,
    unless ``options`` sets it.

    Raises DataError when the answer's text cannot be shown to be in the turn, whole.
    """
    off = thinking == "off" and not reasons(completion)
    options = thinking_switch(tokenizer, "off" if off else "on") | options
    asked = render(tokenizer, prompt, ask=True, **options)
    whole = render(tokenizer, [*prompt, *completion], **options)
    last = completion[-1]
    if len(completion) > 1 or not isinstance(last.get("content"), str) or last.get("tool_calls"):
        return _several(asked, whole, completion)
    head, end = _frame(tokenizer, [*prompt], **options)
    if not _squeeze(_bare(head)).startswith(_squeeze(_bare(asked))):
        raise DataError(
            f"the chat template asks with {asked[-60:]!r} but shows the answer behind {head[-60:]!r}; prompt and "
            "answer do not fit together. Give the tokenizer another chat_template, or pass texts"
        )
    if any(last.get(key) for key in REASONING_KEYS) and not _TAG.search(template_text(tokenizer)):
        raise DataError(
            "the chat template knows no think tags, and would drop the message's reasoning; put it into the content as "
            "the model writes it"
        )
    if off:
        return _without_reasoning(head, end, whole, last["content"])
    return _with_reasoning(asked, head, end, whole, last)


def _frame(tokenizer: Any, prompt: Sequence[Message], **options: Any) -> tuple[str, str]:
    """What the template prints in front of an answer without reasoning, and behind it."""
    text = render(tokenizer, [*prompt, {"role": "assistant", "content": MARK}], **options)
    head, found, end = text.partition(MARK)
    if not found or MARK in end:
        raise DataError("the chat template does not print the answer once, as plain text; pass texts instead")
    return head, end


def _without_reasoning(head: str, end: str, whole: str, content: str) -> Turn:
    answer = whole[len(head) :]
    if not (whole.startswith(head) and _same(answer, content + end)):
        raise DataError(f"the chat template changes the answer: it prints {answer[:80]!r} for {content[:80]!r}")
    return Turn(head, answer, end)


def _with_reasoning(asked: str, head: str, end: str, whole: str, message: Message) -> Turn:
    body = _body(message, open_block=_opened(asked), required=_opened(asked) or bool(_TAG.search(head)))
    header = head[len(asked) :] if head.startswith(asked) else ""
    printed = whole[len(asked) :] if whole.startswith(asked) else None
    expected = body + end
    if printed is not None and any(_same(printed, text) for text in (expected, _outside(header) + expected)):
        return Turn(asked, printed, end)
    if not _TAG.search(header):  # a channel name, as gpt-oss has, is the model's to write
        expected = header + expected
    return Turn(asked, expected, end, kept=True)


def _body(message: Message, *, open_block: bool, required: bool) -> str:
    """Reasoning and answer as a model would write them behind a prompt that has, or has not, opened a think block."""
    content = message["content"]
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    if reasoning is not None:
        body = f"{reasoning.strip()}\n</think>\n\n{content}"
        return body if open_block else f"<think>\n{body}"
    if not any(_closes(match) for match in _TAG.finditer(content)):  # an empty block, where there is one to close
        if not required:
            return content
        return f"\n</think>\n\n{content}" if open_block else f"<think>\n\n</think>\n\n{content}"
    first = _TAG.match(content.lstrip())
    if open_block and first and not _closes(first):
        return content.lstrip()[first.end() :].lstrip("\n")
    return content


def _several(asked: str, whole: str, completion: Sequence[Message]) -> Turn:
    """Several messages, or calls of tools: the template's own text, which must go on from the prompt."""
    if not whole.startswith(asked):
        raise DataError(
            "the chat template does not go on from its own prompt, and the completion is more than one plain message; "
            "split it into rows of one answer each"
        )
    place, answer = 0, whole[len(asked) :]
    squeezed = _squeeze(answer)
    for message in completion:
        text = message.get("content")
        said = _squeeze(_bare(text)) if isinstance(text, str) else ""
        place = squeezed.find(said, place)
        if place < 0:
            raise DataError(f"the chat template drops text of the completion: {text!r:.80} is not printed")
        place += len(said)
    return Turn(asked, answer)


def _opened(text: str) -> bool:
    """Whether ``text`` ends inside a think block."""
    tags = list(_TAG.finditer(text))
    return bool(tags) and not _closes(tags[-1]) and not text[tags[-1].end() :].strip()


def _closes(tag: re.Match) -> bool:
    return any(tag.groups())


def _bare(text: str) -> str:
    """``text`` without think tags."""
    return _TAG.sub("", text)


def _outside(header: str) -> str:
    return "" if _TAG.search(header) else header


def _same(a: str, b: str) -> bool:
    """Equal but for white space, which templates trim and add."""
    return _squeeze(a) == _squeeze(b)


def _squeeze(text: str) -> str:
    return "".join(text.split())


# ---- ids -------------------------------------------------------------------------------------------------------------


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text behind the special tokens that the tokenizer puts in front, and without any that it appends.

    A text that spells the tokenizer's BOS itself gets no second one.
    """
    front = special_front(tokenizer)
    ids = chat_ids(tokenizer, text)
    return ids if front and ids[: len(front)] == front else [*front, *ids]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that spells its special tokens itself, as a rendered conversation does."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def special_front(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts in front of a text."""
    around = list(tokenizer("")["input_ids"])
    if around and around[-1] == getattr(tokenizer, "eos_token_id", None):
        bos = getattr(tokenizer, "bos_token_id", None)
        if len(around) > 1 or bos != around[-1]:  # OPT's BOS is its end token
            around.pop()
    return around


def turn_ids(tokenizer: Any, turn: Turn) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of prompt + answer, tokenised as one text."""
    return chat_ids(tokenizer, turn.prompt), chat_ids(tokenizer, turn.prompt + turn.answer)


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning: where answer tokens start once prompt and prompt + answer are tokenised."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def row_tools(value: Any) -> list[Any] | None:
    """A row's ``tools``: a list, or as TRL stores it the JSON text of one. DataError otherwise."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"not a list, and not JSON ({error})", field="tools") from error
    if value is not None and not isinstance(value, list):
        raise DataError(f"expected a list of functions, found {type(value).__name__}", field="tools")
    return value


def template_options(value: Any) -> dict[str, Any]:
    """A row's ``chat_template_kwargs``, or DataError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"not a mapping, and not JSON ({error})", field="chat_template_kwargs") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise DataError(
            f"expected a mapping of names to values, found {type(value).__name__}", field="chat_template_kwargs"
        )
    return {key: item for key, item in value.items() if item is not None}
