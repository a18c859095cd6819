r"""The value that an unboxed sentence states: ``Therefore the area is $\frac34$.``, "It would take 180 days."

The last resort of the extraction ladder, so it is strict: the last sentence of the text counts, it must be finished,
must not deny, hedge or suppose, and the *whole* expression at its end is the answer, never the last number of it.
"""

from __future__ import annotations

import re

from negpo.rewards.boxes import Extraction
from negpo.rewards.cues import CHOSEN, TRAILING_COPULA, doubts
from negpo.rewards.number_words import FRACTION_WORDS, SCALES
from negpo.rewards.unit_table import AFTER, NOT_UNITS, SQUARED
from negpo.rewards.units import is_unit_text
from negpo.rewards.vocabulary import FUNCTION_WORDS
from negpo.rewards.wordlist import words

MATH = re.compile(r"\$\$(.{1,2000}?)\$\$|\$([^$\n]{1,2000}?)\$|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[^\s.])(?:[.?]|(?<![\d)}])!)(?=\s+[\"'(*_]*[A-Z\\$<(「]|\s*$)|[。！？]|\n+")
_UNFINISHED = re.compile(r"[=+*/^_<>(\[{,;:&\\-]\s*$|\\(?:text|frac|le|ge|cdot|times)\s*$")
_CLOSING = re.compile(r"(?:\\blacksquare|\\square|\\qed|∎|□|■|QED|Q\.E\.D\.|\$\s*\$|\*\*|[*_`]|</?\w+>)\s*$")
_CHUNK = re.compile(
    r"(?P<math>\$[^$\n]{1,500}\$|\\\(.{1,500}?\\\))|(?P<command>\\[A-Za-z]+|\\.)|(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"|(?P<word>[^\W\d_]+)|(?P<sign>[^\w\s]|_)",
    re.DOTALL,
)
_TAIL = 4000  # characters at the end of the text that are looked at
_TRAILING = 3  # words that may stand behind the value: "1,234 dogs left"
_MODIFIERS = NOT_UNITS | AFTER.keys() | FRACTION_WORDS.keys() | SCALES.keys() | {"squares", "cubes", "powers"}
_BEFORE = frozenset(words("""
    twice double triple thrice half third quarter minus negative plus times root roots cube base mod modulo than least
    most over under above below beyond before after until past by into about around
"""))  # fmt: skip
_NUMBERED = frozenset(words("""
    step case part question problem exercise example figure section chapter equation page lemma theorem line item
    method way attempt approach table note option number hint 第
"""))  # fmt: skip
_STATES = re.compile(r"^(?:.{0,160}\s)?(?:is|are|was|were)\s+(?P<what>[^.,;:]{1,60})$", re.DOTALL)
_THEREFORE = re.compile(r"^\W*(?:therefore|thus|hence|so|consequently|in conclusion|finally)\b", re.IGNORECASE)
_LEADING = re.compile(
    r"^(?:(?:an?|the|facing|heading|called|named|known\s+as|always|simply|just|clearly)\s+)+", re.IGNORECASE
)


def stated_value(text: str) -> Extraction | None:
    """The value or the words that the last sentence of a text states, None if it states nothing."""
    whole = len(text) <= _TAIL
    text = text[-_TAIL:].rstrip()
    for _ in range(4):
        closing = _CLOSING.search(text[-40:])
        text = text[: len(text) - len(closing[0])].rstrip() if closing else text
    sentences = [piece for piece in _SENTENCE_END.split(text) if piece.strip(" \t*_`#-")]
    if not sentences or _UNFINISHED.search(text[-40:]):
        return None
    sentence = TRAILING_COPULA.sub("", sentences[-1].replace("**", "").strip())
    chosen = CHOSEN.search(sentence)
    if doubts(sentence):
        return None
    if chosen:
        return Extraction(chosen["letter"], "statement")
    cut_off = len(sentences) == 1 and not whole
    return _trailing_value(sentence, cut_off) or _stated_words(sentence, alone=len(sentences) == 1)


def _trailing_value(sentence: str, cut_off: bool) -> Extraction | None:
    """The last expression of a sentence as a whole, with few words behind it."""
    chunks = [match for match in _CHUNK.finditer(sentence) if not _is_stop(sentence, match)]
    flags = _mathematical(chunks)
    end = next((i for i in range(len(chunks) - 1, -1, -1) if flags[i]), -1)
    start = end
    while start > 0 and flags[start - 1] and not _apart(chunks, start):
        start -= 1
    if end < 0 or not _has_value(chunks[start : end + 1]) or (cut_off and chunks[start].start() == 0):
        return None
    behind = [chunk[0].lower() for chunk in chunks[end + 1 :] if chunk["word"]]
    before = chunks[start - 1][0].lower() if start else ""
    if len(behind) > _TRAILING or before in _BEFORE | _NUMBERED:
        return None
    modified = any(word in _MODIFIERS for word in behind)
    text = sentence[chunks[start].start() : chunks[-1].end() if modified else chunks[end].end()]
    return _named_source(text.strip(" ,;"))


def _apart(chunks: list[re.Match[str]], index: int) -> bool:
    """Whether two numbers only stand side by side: "7 7", but not "1 4/5" and "10 000"."""
    left, right = chunks[index - 1], chunks[index]
    if not (left["number"] and right["number"]) or left.end() == right.start():
        return False
    mixed = index + 1 < len(chunks) and chunks[index + 1][0] == "/"
    return not mixed and len(right[0]) != 3


def _named_source(text: str) -> Extraction:
    math = MATH.fullmatch(text)
    if math:
        return Extraction(next(group for group in math.groups() if group is not None), "last formula")
    plain = re.fullmatch(r"[-+]?[\d,]*\.?\d+(?:\s*/\s*\d+)?\s*\\?%?", text)
    return Extraction(text, "last number" if plain else "statement")


def _is_stop(sentence: str, chunk: re.Match[str]) -> bool:
    """Punctuation at the end of the sentence; behind a number an exclamation mark is a factorial."""
    if chunk[0] == "!" and re.search(r"[\d)}]!$", sentence):
        return False
    return chunk[0] in {".", "!", '"'} and chunk.end() == len(sentence)


def _mathematical(chunks: list[re.Match[str]]) -> list[bool]:
    """Which chunks belong to an expression: formulas, numbers, signs, lone letters, function names, units behind a
    number, and "and", "or" or a comma between two such.
    """
    flags = [_is_math(chunk) for chunk in chunks]
    for index, chunk in enumerate(chunks):
        if chunk["word"] and index and flags[index - 1]:
            word = chunk[0]
            after_unit = chunks[index - 1]["word"] and flags[index - 1] and word.lower() == "per"
            flags[index] = flags[index] or is_unit_text(word) or word.lower() in SQUARED or bool(after_unit)
    for index in range(1, len(chunks) - 1):
        if chunks[index][0] == ":" and chunks[index - 1]["number"] and chunks[index + 1]["number"]:
            flags[index] = True
        if chunks[index][0].lower() in {"and", "or", "和", "或", "と"} and flags[index - 1] and flags[index + 1]:
            flags[index] = True
    return flags


def _is_math(chunk: re.Match[str]) -> bool:
    if chunk["word"]:
        return (len(chunk[0]) == 1 and chunk[0].isascii() and chunk[0] not in "aAI") or chunk[0] in FUNCTION_WORDS - {
            "and",
            "or",
        }
    if chunk["math"]:
        return len(re.findall(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])", chunk[0])) < 3
    return chunk[0] not in {'"', "'", "?", ":", ";", "—", "“", "”", "#", "&", "~", "、"}


def _has_value(chunks: list[re.Match[str]]) -> bool:
    return any(chunk["math"] or chunk["number"] or chunk["command"] for chunk in chunks) or (
        len(chunks) > 1 and any(chunk["word"] for chunk in chunks) and any(chunk[0] in "=<>" for chunk in chunks)
    )


def _stated_words(sentence: str, *, alone: bool) -> Extraction | None:
    """ "The graph is an ellipse." states an ellipse: in the only sentence, or in one that concludes."""
    match = _STATES.match(sentence.rstrip(". "))
    if match is None or not (alone or _THEREFORE.match(sentence)) or re.search(r"\d|\\|\$", sentence):
        return None
    what = _LEADING.sub("", match["what"].strip())
    return Extraction(what, "statement") if 0 < len(what.split()) <= 3 else None
