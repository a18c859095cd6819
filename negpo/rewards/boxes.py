r"""Boxes in a response: ``\boxed``, ``\fbox``, ``\framebox``, ``boxed{`` without its backslash."""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW = 20_000  # characters around the last box or at the end that are looked at
_BEFORE_BOX = 4_000

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b|\\(?:boxed|fbox)(?=\d)|(?<![A-Za-z\\])boxed(?=\s*\{)")
_JOINTS = {"", ",", "and", "or", ",and", ",or", ";", "&", "和", "或", "、", "，"}
_FORMULA_END = re.compile(r"\$|\\\)|\\\]|\n")


@dataclass(frozen=True)
class Extraction:
    """``text`` is None when there is no answer and ``reason`` says why. ``joined`` lists several boxes given as one
    answer ("\\boxed{3}, \\boxed{4}"), which counts where a list is expected.
    """

    text: str | None
    source: str
    reason: str = ""
    joined: str | None = None


@dataclass(frozen=True)
class _Box:
    start: int
    end: int
    content: str | None  # None: never closed


def last_box(text: str, *, forgiving: bool = True) -> Extraction | None:
    """The last non-empty box, None if the text has no box at all. ``forgiving``: the end of the formula closes a box
    whose brace was forgotten, and a box needs no braces.
    """
    position = max(text.rfind("boxed"), text.rfind("fbox"), text.rfind("framebox"))
    if position < 0:
        return None
    text = text[max(0, position - _BEFORE_BOX) : position + WINDOW]
    partners = _brace_partners(text)
    boxes: list[_Box] = []
    for match in _BOX.finditer(text):
        if boxes and match.start() < boxes[-1].end:
            continue  # inside the previous box
        box = _box_at(text, match, partners, forgiving)
        if box is not None:
            boxes.append(box)
    if not boxes:
        return None
    filled = [box for box in boxes if box.content is None or box.content.strip()]
    if not filled:
        return Extraction(None, "boxed", "no answer found: the box is empty")
    if filled[-1].content is None:
        return Extraction(None, "boxed", "no answer found: the last box is never closed")
    return _joined_boxes(text, filled)


def _brace_partners(text: str) -> dict[int, int]:
    """Index of the closing brace for every opening one that has it; escaped braces do not count."""
    partners: dict[int, int] = {}
    stack: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            partners[stack.pop()] = match.start()
    return partners


def _box_at(text: str, command: re.Match[str], partners: dict[int, int], forgiving: bool) -> _Box | None:
    r"""The box of a command; None where ``\boxed`` is only spoken of ("put it in \boxed.")."""
    position = command.end()
    while position < len(text) and text[position] in " \t":
        position += 1
    if text[position : position + 1] != "{":
        match = re.compile(r"[^\s${}]{0,200}").match(text, position)
        assert match is not None
        if match[0] and not re.search(r"[^\W_]", match[0]):
            return None
        open_ended = not forgiving and match.end() == len(text)
        return _Box(command.start(), match.end(), None if open_ended else match[0])
    if position in partners:
        return _Box(command.start(), partners[position] + 1, text[position + 1 : partners[position]])
    # A forgotten brace: the formula's own end closes the box. At the end of the text it is a truncated response.
    end = _FORMULA_END.search(text, position) if forgiving else None
    content = text[position + 1 : end.start()] if end else None
    return _Box(command.start(), end.start() if end else len(text), content)


def _joined_boxes(text: str, boxes: list[_Box]) -> Extraction:
    """The last box; together with the boxes before it where only blanks, "and", "or" or a comma stand between them."""
    contents = [boxes[-1].content or ""]
    words = False
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = re.sub(r"[$\s]|\\[,;:()\[\]]|\\quad|\\text", "", text[before.end : after.start]).strip("{}").lower()
        if between not in _JOINTS or before.content is None:
            break
        words |= between.strip(",;、，&") != ""
        contents.insert(0, before.content)
    if len(contents) == 1:
        return Extraction(contents[-1], "boxed")
    joined = ", ".join(contents)
    # "3 or 4" in two boxes is one hedged answer; after a comma the last box may also stand alone.
    return Extraction(joined if words else contents[-1], "boxed", joined=joined)
