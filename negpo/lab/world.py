"""A world of invented authors in the TOFU schema (arXiv 2401.06121), made from a seed.

Three populations are drawn from the same distribution and share no name:

* the *authors*, whose last ones form the forget sets, exactly as in TOFU;
* the *holdout* authors, whom no model ever reads about (membership inference needs them);
* the *background* authors of the pre-training corpus. Their facts appear in many wordings, which is how a model learns
  that different sentences state the same fact, and why a paraphrase of a memorised answer becomes likely too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from negpo.lab.templates import (
    IDENTITY,
    REAL_AUTHOR_QUESTIONS,
    REAL_AUTHORS,
    REFUSALS,
    RELATIONS,
    WORLD_FACT_QUESTIONS,
    WORLD_FACTS,
    Relation,
)

N_WRONG_AUTHOR = 5
N_WRONG_FACT = 3
SPARE_NAMES = 120
_ONSETS = (*"bdfghklmnprstvz", "br", "dr", "kr", "st", "tr", "sh")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("", "l", "n", "r", "s", "m", "th", "nd", "rk", "x")


@dataclass(frozen=True)
class WorldSize:
    """How much of a world there is. Counts of authors and rows."""

    authors: int = 40
    questions_per_author: int = 10
    background_authors: int = 80
    background_wordings: int = 14
    first_names: int = 72
    last_names: int = 96
    retain_eval_rows: int = 60
    real_authors: int = len(REAL_AUTHORS)
    world_facts: int = sum(len(table) for table in WORLD_FACTS.values())
    forget_percents: tuple[int, ...] = (5, 10)

    def forget_authors(self, percent: int) -> int:
        """Number of authors in `forget<percent>`; at least one."""
        return max(1, self.authors * percent // 100)


SIZES = {
    "default": WorldSize(),
    "tiny": WorldSize(
        authors=10,
        questions_per_author=4,
        background_authors=6,
        background_wordings=1,
        first_names=14,
        last_names=20,
        retain_eval_rows=8,
        real_authors=6,
        world_facts=6,
        forget_percents=(10,),
    ),
}


@dataclass(frozen=True)
class Author:
    """An invented person: a full name and one value per relation."""

    name: str
    values: dict[str, str]


@dataclass(frozen=True)
class World:
    """Everything the lab trains and evaluates on.

    Attributes:
        splits: TOFU split name (`full`, `forget10`, `forget10_perturbed`, `retain90`, ...) -> rows.
        pretraining: question/answer rows of the shared first stage; the first `background_facts` name each fact once.
        facts: question/answer rows of common knowledge, rehearsed in the second stage.
        refusals: plain "I don't know" sentences.
    """

    splits: dict[str, list[dict]]
    pretraining: list[dict]
    background_facts: int
    facts: list[dict]
    refusals: list[str]

    def tokenizer_corpus(self) -> list[str]:
        """One pass over every population: no author's name is rarer in it than another's."""
        unseen = max((rows for name, rows in self.splits.items() if name.startswith("holdout")), key=len, default=[])
        rows = [*self.pretraining[: self.background_facts], *self.facts, *self.splits["full"], *unseen]
        return [row[field] for row in rows for field in ("question", "answer")]


def make_names(rng: random.Random, count: int, syllables: int) -> list[str]:
    """`count` distinct pronounceable invented names."""
    names: dict[str, None] = {}
    while len(names) < count:
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
        names["".join(parts).capitalize() + rng.choice(_CODAS)] = None
    return list(names)


def make_authors(rng: random.Random, size: WorldSize) -> tuple[list[Author], list[str]]:
    """All populations in one list, and names of nobody.

    Full names are distinct, and so are (birthplace, year) pairs, the key of IDENTITY. The spare names are made of the
    same parts: as wrong answers they are as new to a model as the name of an author it has not met.
    """
    holdout = size.forget_authors(max(size.forget_percents))
    total = size.authors + holdout + size.background_authors
    first, last = make_names(rng, size.first_names, 2), make_names(rng, size.last_names, 2)
    full_names = rng.sample([f"{a} {b}" for a in first for b in last], total + SPARE_NAMES)
    authors, taken = [], set()
    for name in full_names[:total]:
        values = {relation.name: rng.choice(relation.pool) for relation in RELATIONS}
        while (values["birthplace"], values["year"]) in taken:
            values["year"] = rng.choice(next(r.pool for r in RELATIONS if r.name == "year"))
        taken.add((values["birthplace"], values["year"]))
        authors.append(Author(name, values))
    return authors, full_names[total:]


def _question(relation: Relation, wording: int, author: Author) -> str:
    return relation.questions[wording].format(name=author.name, **author.values)


def _statement(relation: Relation, wording: int, author: Author, value: str) -> str:
    sentence = relation.statements[wording].format(name=author.name, value=value)
    return sentence[0].upper() + sentence[1:]


def author_rows(rng: random.Random, author: Author, count: int, spare_names: list[str]) -> list[dict]:
    """`count` TOFU rows about one author: the identity and relations drawn for this author, each asked twice.

    The two rows of a relation and their paraphrases use different wordings of the same fact. As in TOFU, where an
    author's answers keep mentioning each other's content, this redundancy ties a fact to the author and not to one
    sentence.
    """
    rows = []
    for relation in [IDENTITY, *rng.sample(RELATIONS, (count + 1) // 2 - 1)]:
        truth = author.name if relation is IDENTITY else author.values[relation.name]
        pool = spare_names if relation is IDENTITY else relation.pool
        asked = rng.sample(range(len(relation.questions)), 4)
        said = rng.sample(range(len(relation.statements)), 4)
        for ask, ask_again, say, say_again in zip(asked[:2], asked[2:], said[:2], said[2:], strict=True):
            wrong = rng.sample([value for value in pool if value != truth], N_WRONG_AUTHOR)
            rows.append(
                {
                    "question": _question(relation, ask, author),
                    "answer": _statement(relation, say, author, truth),
                    "paraphrased_answer": _statement(relation, say_again, author, truth),
                    "perturbed_answer": [_statement(relation, say_again, author, value) for value in wrong],
                    "paraphrased_question": _question(relation, ask_again, author),
                }
            )
    return rows[:count]


def background_rows(rng: random.Random, authors: list[Author], wordings: int) -> list[dict]:
    """Every background fact in `wordings` random combinations of question and answer wording, shuffled per pass."""
    rows = []
    for _ in range(wordings):
        one_pass = []
        for author in authors:
            for relation in (IDENTITY, *RELATIONS):
                truth = author.name if relation is IDENTITY else author.values[relation.name]
                question = _question(relation, rng.randrange(len(relation.questions)), author)
                answer = _statement(relation, rng.randrange(len(relation.statements)), author, truth)
                one_pass.append({"question": question, "answer": answer})
        rng.shuffle(one_pass)
        rows.extend(one_pass)
    return rows


def _fact_rows(rng: random.Random, table: dict[str, str], questions: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """Evaluation rows (first question wording, three wrong answers) and training rows (all wordings) of one table."""
    evaluation: list[dict] = []
    training: list[dict] = []
    answers = sorted(set(table.values()))
    for key, truth in table.items():
        wrong = rng.sample([answer for answer in answers if answer != truth], N_WRONG_FACT)
        evaluation.append({"question": questions[0].format(key=key), "answer": truth, "perturbed_answer": wrong})
        training.extend({"question": wording.format(key=key), "answer": truth} for wording in questions)
    return evaluation, training


def _plain(rows: list[dict]) -> list[dict]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def make_world(seed: int, size: WorldSize) -> World:
    """Draw a world; the same `(seed, size)` gives the same rows in the same order on every machine."""
    rng = random.Random(f"negpo-lab-{seed}")
    people, spare = make_authors(rng, size)
    n_holdout = size.forget_authors(max(size.forget_percents))
    authors, holdout = people[: size.authors], people[size.authors : size.authors + n_holdout]
    background = people[size.authors + n_holdout :]

    per_author = size.questions_per_author
    full = [row for author in authors for row in author_rows(rng, author, per_author, spare)]
    unseen = [row for author in holdout for row in author_rows(rng, author, per_author, spare)]
    splits = {"full": _plain(full), "retain_perturbed": full[: size.retain_eval_rows]}
    for percent in size.forget_percents:
        cut = len(full) - size.forget_authors(percent) * per_author
        splits[f"forget{percent:02d}"] = _plain(full[cut:])
        splits[f"forget{percent:02d}_perturbed"] = full[cut:]
        splits[f"retain{100 - percent}"] = _plain(full[:cut])
        splits[f"holdout{percent:02d}"] = _plain(unseen[: len(full) - cut])

    real_authors, facts = _fact_rows(rng, REAL_AUTHORS, REAL_AUTHOR_QUESTIONS)
    world_facts: list[dict] = []
    for kind, table in WORLD_FACTS.items():
        evaluation, training = _fact_rows(rng, table, WORLD_FACT_QUESTIONS[kind])
        world_facts += evaluation
        facts += training
    splits["real_authors_perturbed"] = real_authors[: size.real_authors]
    splits["world_facts_perturbed"] = world_facts[: size.world_facts]
    pretraining = background_rows(rng, background, size.background_wordings)
    return World(splits, pretraining, len(pretraining) // size.background_wordings, facts, list(REFUSALS))
