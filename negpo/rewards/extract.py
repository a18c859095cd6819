r"""Finding the answer in a response: the extraction ladder.

1. thinking: only the text after the last ``</think>`` counts; thinking that never ends contains no answer
2. the last box (:mod:`negpo.rewards.boxes`); empty boxes are skipped, a box inside a box belongs to it
3. the last ``<answer>`` tag, ``#### 7``, or phrase ("the final answer is", "答案是"; :mod:`negpo.rewards.cues`)
4. the whole response, where it is nothing but an answer
5. the value that the last, finished sentence states (:mod:`negpo.rewards.sentences`)

Every step is linear in the text and looks only at a window around the last box or at the tail, so 100 kB cost
milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import replace

from negpo.rewards.boxes import WINDOW, Extraction, last_box
from negpo.rewards.cues import CHOSEN, CUE, TRAILING_COPULA
from negpo.rewards.sentences import MATH, stated_value

__all__ = ["Extraction", "extract_answer", "final_part", "has_finished_answer", "last_box"]

_THINK_END = re.compile(r"</\s*think(?:ing)?\s*>", re.IGNORECASE)
_THINK_START = re.compile(r"<\s*think(?:ing)?\s*>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z_0-9]{1,30}\|>|</s>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.{0,4000}?)</answer>", re.IGNORECASE | re.DOTALL)
_ADVERBS = re.compile(
    r"^(?:(?:therefore|thus|hence|then|so|simply|just|clearly|exactly|indeed|finally|equal to|given by|we (?:get|have|"
    r"find|obtain)|因此|所以|故|则)(?![A-Za-z])[\s,:，]*)+",
    re.IGNORECASE,
)
_TEXT_ARGUMENT = re.compile(r"\\(?:text\w*|mbox|mathrm|begin|end)\s*\{[^{}]*\}")
_SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s+[A-Z\\<(]|\s*$)|[。！]|\s+I hope\b")
# What follows explains the answer and is no part of it.
_EXPLANATION = re.compile(
    r"[\s,;—–]+(?:because|since|as\s+(?=[a-z])|which|so\s+that|thus|hence|therefore|by\s+(?=[a-z])|using|obtained|according|"
    r"due\s+to|based\s+on|and\s+(?:we|this|that|it|so|the|is|thus|hence)\b|i\.e\.|that\s+is|namely|as\s*$|weil|porque|"
    r"car\b|perché|потому|因为|由于)",
    re.IGNORECASE,
)
_SO = re.compile(r",\s*so\b", re.IGNORECASE)
_ASIDE = re.compile(r"\s+\((?!\s*(?:base|mod)\b)[A-Za-z][^()]{0,200}\)\.?\s*$")
_DENIES = re.compile(
    r"n't\b|\b(?:not|never|no|doubt|whether|suppose|assume|if|wrong|incorrect|unlikely|guess|think|nicht|pas|non|não|"
    r"не|если)\b|不|没|如果|假设|是否|ない|もし|아니|만약",
    re.IGNORECASE,
)
_THINKS = re.compile(r"\b(?:I|we)\s+think\b(?!.*\bnot\b)", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\bwait\b|\bmistake\b|\bincorrect\b|\b(?:that|this|it)(?:'s| is| was)\s+(?:wrong|not|impossible)|"
    r"\bnot\s+(?:correct|right)\b|\bshould\s+(?:be|have\s+been)\b|\bcontradict|不对|错误|等等|間違|틀렸",
    re.IGNORECASE,
)


def extract_answer(response: str) -> Extraction:
    """The answer of a response, by the first step of the ladder that finds one."""
    if not response.strip():
        return Extraction(None, "none", "empty response")
    final, reason = final_part(response)
    if reason:
        return Extraction(None, "none", reason)
    boxed = last_box(final)
    if boxed is not None:
        return _without_phrase(boxed)
    tail = _SPECIAL.sub(" ", final[-WINDOW:])
    return (
        _from_tag(tail)
        or _from_cue(tail)
        or _whole(tail)
        or stated_value(tail)
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


def _without_phrase(boxed: Extraction) -> Extraction:
    r"""``\boxed{\text{The answer is }6}`` holds 6."""
    if boxed.text is None or len(boxed.text) > 300 or not CUE.search(boxed.text):
        return boxed
    inner = _from_cue(re.sub(r"\\text\w*\s*\{([^{}]*)\}", r"\1", boxed.text))
    return replace(boxed, text=inner.text) if inner and inner.text else boxed


# -- phrases -----------------------------------------------------------------------------------------------------------


def _from_tag(text: str) -> Extraction | None:
    contents = [match[1].strip() for match in _ANSWER_TAG.finditer(text)]
    if not contents or not contents[-1]:
        return None
    inner = _from_cue(contents[-1])
    return Extraction(inner.text if inner and inner.text else contents[-1], "answer tag")


def _from_cue(text: str) -> Extraction | None:
    for cue in reversed(list(CUE.finditer(text))):
        segment, rest = _segment(text[cue.end() : cue.end() + 2000])
        if not segment:
            continue
        clause = re.split(r"[.,;:!?，。；：\n]", text[max(0, cue.start() - 200) : cue.start()])[-1]
        if _DENIES.search(_THINKS.sub("", clause)):
            return Extraction(None, "phrase", "no answer found: the last phrase denies or supposes one")
        if _TAKEN_BACK.search(rest):
            return Extraction(None, "phrase", "no answer found: it is taken back")
        return Extraction(segment, "phrase")
    return None


def _segment(text: str) -> tuple[str, str]:
    """The answer at the start of the text behind a phrase, and the text behind it."""
    text = text.lstrip(" \t\n:：*_`=>")
    math = MATH.match(text)
    line_end = text.find("\n", math.end() if math else 0)
    line = text if line_end < 0 else text[:line_end]
    stop = _SENTENCE_END.search(line, math.end() if math else 0)
    sentence = line[: stop.start()] if stop else line
    rest = text[len(sentence) :]
    sentence = _ADVERBS.sub("", sentence.replace("**", " ").strip())
    explanation = _EXPLANATION.search(sentence, 1) or _SO.search(sentence, 1)
    if explanation:
        sentence = sentence[: explanation.start()]
    sentence = TRAILING_COPULA.sub("", _ASIDE.sub("", sentence)).strip(" \t*_`】。，")
    return _inside(sentence), rest


def _inside(text: str) -> str:
    """The formula itself where a text is exactly one formula."""
    math = MATH.fullmatch(text.strip().rstrip("."))
    return next(group for group in math.groups() if group is not None) if math else text


# -- whole responses ---------------------------------------------------------------------------------------------------


def _whole(text: str) -> Extraction | None:
    """A response that is nothing but an answer: short, one paragraph, hardly any words."""
    text = _ADVERBS.sub("", text.strip())
    if len(text) > 2000 or "\n\n" in text or not text or CHOSEN.search(text):
        return None
    prose = re.findall(r"(?<!\\)\b[^\W\d_]{2,}\b", _TEXT_ARGUMENT.sub("", text))
    starts_as_sentence = re.match(r"[A-Za-z']{2,}\s|I\s", text) and re.search(r"\d", text)
    unspaced = re.search(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3\u0e00-\u0e7f]{4,}", text)
    wordy = len(prose) > 3 or bool(prose and (starts_as_sentence or unspaced))
    return None if wordy else Extraction(_inside(text) if MATH.fullmatch(text.rstrip(". ")) else text, "whole response")
