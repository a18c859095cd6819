"""The language of the lab world (`world.yaml`): what can be asked about an author and how, and common knowledge.

Every relation has several question wordings and several statement wordings. A statement wording serves as the answer of
one author and as the paraphrase of another one, so no wording is reserved for paraphrases and a truth ratio never
measures how rare a wording is. Two tables of common knowledge play the part of TOFU's `real_authors` and `world_facts`:
short answers, no paraphrases, wrong answers of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Relation:
    """One askable property.

    Attributes:
        name: identifier, also the key of `Author.values`.
        questions: question wordings with `{name}` (and `{birthplace}`, `{year}` for the reverse relation).
        statements: answer wordings with `{name}` and `{value}`.
        pool: the values authors draw from; wrong answers are other members of it.
    """

    name: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    pool: tuple[str, ...]


_LANGUAGE = yaml.safe_load((Path(__file__).parent / "world.yaml").read_text(encoding="utf-8"))
_POOLS = {name: tuple(text.split(", ")) for name, text in _LANGUAGE["pools"].items()}
_POOLS["years"] = tuple(str(year) for year in range(1930, 1990, 2))
_POOLS["titles"] = tuple(f"The {first} {noun}" for first in _POOLS["book_adjectives"] for noun in _POOLS["book_nouns"])
_POOLS["none"] = ()


def _table(text: str) -> dict[str, str]:
    return dict(entry.split(": ") for entry in text.split("; "))


# The last one is asked for by two other values and answered by the author's own name; wrong answers are other names.
*_RELATIONS, IDENTITY = (
    Relation(entry["name"], tuple(entry["questions"]), tuple(entry["statements"]), _POOLS[entry["pool"]])
    for entry in _LANGUAGE["relations"]
)
RELATIONS = tuple(_RELATIONS)
REFUSALS: tuple[str, ...] = tuple(_LANGUAGE["refusals"])
REAL_AUTHOR_QUESTIONS: tuple[str, ...] = tuple(_LANGUAGE["author_questions"])
REAL_AUTHORS = _table(_LANGUAGE["authors"])
WORLD_FACT_QUESTIONS = {kind: tuple(wordings) for kind, wordings in _LANGUAGE["fact_questions"].items()}
WORLD_FACTS = {kind: _table(text) for kind, text in _LANGUAGE["facts"].items()}
