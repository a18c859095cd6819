r"""Finding the answer in a response: the extraction ladder.

1. thinking: only the text after the last ``</think>`` counts; thinking that never ends contains no answer
2. the last box (``\boxed``, ``\fbox``, ``boxed{`` without its backslash); empty boxes are skipped, a box inside a box
   belongs to it
3. the last ``<answer>`` tag, ``#### 7``, or phrase ("the final answer is", "answer:")
4. the whole response, where it is nothing but an answer
5. the last formula or number of the text

Every step is linear in the text and looks only at a window around the last box or at the tail, so 100 kB cost
milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW = 20_000  # characters around the last box or at the end that are looked at
_BEFORE_BOX = 4_000

_THINK_END = re.compile(r"</\s*think(?:ing)?\s*>", re.IGNORECASE)
_THINK_START = re.compile(r"<\s*think(?:ing)?\s*>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z_0-9]{1,30}\|>|</s>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b|\\(?:boxed|fbox)(?=\d)|(?<![A-Za-z\\])boxed(?=\s*\{)")
_ANSWER_TAG = re.compile(r"<answer>(.{0,4000}?)</answer>", re.IGNORECASE | re.DOTALL)
_CUE = re.compile(
    r"####[ \t]*"
    r"|\bfinal\s+(?:answer|result)\b[^\n.:=]{0,40}?(?:\bis\b|\bare\b|[:=])\s*:?"
    r"|\banswer\b(?:\s+(?:to|of|for)\b[^\n.:=]{0,60}?)?\**\s*(?:\bis\b|\bare\b|[:=])\s*:?"
    r"|\bfinal\s+answer\**\s*\n",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$(.{1,2000}?)\$\$|\$([^$\n]{1,2000}?)\$|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.\\{])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s*\\?%)?(?![A-Za-z0-9_])"
)
_ADVERBS = re.compile(
    r"^(?:(?:therefore|thus|hence|then|so|simply|just|clearly|exactly|indeed|equal to|given by|option|choice)"
    r"\b[\s,:]*)+",
    re.IGNORECASE,
)
_TEXT_ARGUMENT = re.compile(r"\\(?:text\w*|mbox|mathrm|begin|end)\s*\{[^{}]*\}")
_CONTINUES = re.compile(
    r"^\s*(?:,?\s*(?:or|and|but)\b|[,;/=<>+*^-]|\\(?:text|cup|or|pm|approx|le|ge|frac|times|cdot)\b|not\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Extraction:
    """``text`` is None when there is no answer and ``reason`` says why. ``joined`` lists several boxes given as one
    answer ("\\boxed{3}, \\boxed{4}"), which counts where a list is expected.
    """

    text: str | None
    source: str
    reason: str = ""
    joined: str | None = None


def extract_answer(response: str) -> Extraction:
    """The answer of a response, by the first step of the ladder that finds one."""
    if not response.strip():
        return Extraction(None, "none", "empty response")
    final, reason = final_part(response)
    if reason:
        return Extraction(None, "none", reason)
    boxed = last_box(final)
    if boxed is not None:
        return boxed
    tail = _SPECIAL.sub(" ", final[-WINDOW:])
    return (
        _from_tag(tail)
        or _from_cue(tail)
        or _whole(tail)
        or _last_value(tail)
        or Extraction(None, "none", "no answer found")
    )


def has_finished_answer(response: str) -> bool:
    """Whether a response that was cut by a length limit holds an answer that was finished before the cut: a closed box
    or a closed ``<answer>`` tag. A number at its end may have lost digits, a sentence its "not".
    """
    final, reason = final_part(response)
    if reason:
        return False
    boxed = last_box(final, forgiving=False)
    if boxed is not None:
        return boxed.text is not None
    return _from_tag(_SPECIAL.sub(" ", final[-WINDOW:])) is not None


def final_part(response: str) -> tuple[str, str]:
    """The text after the thinking section, and the reason why there is none."""
    ends = [match.end() for match in _THINK_END.finditer(response)]
    position = ends[-1] if ends else 0
    if _THINK_START.search(response, position):
        return "", "the thinking section is never closed"
    final = response[position:]
    return final, "" if final.strip() else "nothing follows the thinking section"


# -- boxes -------------------------------------------------------------------------------------------------------------


def last_box(text: str, *, forgiving: bool = True) -> Extraction | None:
    """The last non-empty box, None if the text has no box at all. ``forgiving``: the end of the formula closes a box
    whose brace was forgotten, and a box needs no braces.
    """
    position = max(text.rfind("boxed"), text.rfind("fbox"), text.rfind("framebox"))
    if position < 0:
        return None
    text = text[max(0, position - _BEFORE_BOX) : position + WINDOW]
    partners = _brace_partners(text)
    boxes: list[tuple[int, int, str | None]] = []  # start, end, content (None: never closed)
    for match in _BOX.finditer(text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # inside the previous box
        boxes.append((match.start(), *_box_content(text, match.end(), partners, forgiving)))
    if not boxes:
        return None
    filled = [box for box in boxes if box[2] is None or box[2].strip()]
    if not filled:
        return Extraction(None, "boxed", "no answer found: the box is empty")
    if filled[-1][2] is None:
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


def _box_content(text: str, position: int, partners: dict[int, int], forgiving: bool) -> tuple[int, str | None]:
    """End and content of the box whose command ends at ``position``; the content is None if it is never closed."""
    while position < len(text) and text[position] in " \t":
        position += 1
    if text[position : position + 1] != "{":
        match = re.compile(r"[^\s${}]{0,200}").match(text, position)
        assert match is not None
        return match.end(), match[0] if forgiving or match.end() < len(text) else None
    if position in partners:
        return partners[position] + 1, text[position + 1 : partners[position]]
    # A forgotten brace: the formula's own end closes the box. At the end of the text it is a truncated response.
    end = re.compile(r"\$|\\\)|\\\]|\n").search(text, position) if forgiving else None
    return (end.start(), text[position + 1 : end.start()]) if end else (len(text), None)


def _joined_boxes(text: str, boxes: list[tuple[int, int, str | None]]) -> Extraction:
    """The last box; together with the boxes before it where only "and", "or" or a comma stands between them."""
    contents = [boxes[-1][2] or ""]
    words = False
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = re.sub(r"[$\s]|\\[,;:()\[\]]|\\quad|\\text", "", text[before[1] : after[0]]).strip("{}").lower()
        if between not in {",", "and", "or", ",and", ",or", ";"} or before[2] is None:
            break
        words |= between.strip(",;") != ""
        contents.insert(0, before[2])
    if len(contents) == 1:
        return Extraction(contents[-1], "boxed")
    joined = ", ".join(contents)
    # "3 or 4" in two boxes is one hedged answer; after a comma the last box may also stand alone.
    return Extraction(joined if words else contents[-1], "boxed", joined=joined)


# -- phrases and tails -------------------------------------------------------------------------------------------------


def _from_tag(text: str) -> Extraction | None:
    contents = [match[1].strip() for match in _ANSWER_TAG.finditer(text)]
    if not contents or not contents[-1]:
        return None
    inner = _from_cue(contents[-1])
    return Extraction(inner.text if inner else contents[-1], "answer tag")


def _from_cue(text: str) -> Extraction | None:
    for cue in reversed(list(_CUE.finditer(text))):
        segment = _segment(text[cue.end() : cue.end() + 2000])
        if segment:
            return Extraction(segment, "phrase")
    return None


def _segment(text: str) -> str:
    """The answer at the start of the text behind a phrase."""
    text = _ADVERBS.sub("", text.lstrip(" \t\n:*_`=").replace("**", " "))
    math = _MATH.match(text)
    line = text if math and "\n" in math[0] else text.partition("\n")[0]
    sentence = re.split(r"(?<=[^\s.])\.(?=\s+[A-Z\\<]|\s*$)|\s+I hope\b", line)[0].strip()
    if not math:
        return _leading_value(sentence)
    rest = sentence[math.end() :] if len(sentence) >= math.end() else ""
    words = rest.split()
    if _CONTINUES.match(rest) or (words and len(words) <= 3 and not re.search(r"\d|\\", rest)):
        return sentence
    return next(group for group in math.groups() if group is not None)


def _leading_value(sentence: str) -> str:
    """A short sentence as it is; of a longer one the number it starts with, unless the sentence goes on listing."""
    number = _NUMBER.match(sentence)
    if (
        number
        and number[0]
        and len(sentence[number.end() :].split()) > 3
        and not _CONTINUES.match(sentence[number.end() :])
    ):
        return number[0]
    return sentence


def _whole(text: str) -> Extraction | None:
    """A response that is nothing but an answer: short, one paragraph, hardly any words."""
    text = text.strip()
    if len(text) > 2000 or "\n\n" in text:
        return None
    prose = re.findall(r"(?<!\\)\b[A-Za-z]{2,}\b", _TEXT_ARGUMENT.sub("", text))
    starts_as_sentence = re.match(r"[A-Za-z']{2,}\s|I\s", text) and re.search(r"\d", text)
    return None if len(prose) > 3 or (prose and starts_as_sentence) else Extraction(text, "whole response")


def _last_value(text: str) -> Extraction | None:
    """The last formula or number, whichever ends later."""
    tail = text[-4000:]
    best: tuple[int, str, str] | None = None
    for match in _MATH.finditer(tail):
        content = next(group for group in match.groups() if group is not None)
        best = (match.end(), content, "last formula")
    for match in _NUMBER.finditer(tail, best[0] if best else 0):
        cut_off = match.start() == 0 and len(text) > len(tail)
        if match[0] and not cut_off:
            best = (match.end(), match[0], "last number")
    return Extraction(best[1], best[2]) if best else None
