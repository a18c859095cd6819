"""Eight facts that are to be forgotten, a model that knows them and one that does not."""

import random
from functools import cache

import pytest

from negpo.data.qa import QATemplate, encode_qa
from negpo.eval.attacks import AttackData, AttackItem, Target, make_attack
from negpo.eval.scoring import Batching

NAMES = ("Ada", "Bo", "Cy", "Dag", "Eve", "Fay", "Gus", "Hal")
CITIES = ("Oslo", "Rome", "Lima", "Bern", "Kiel", "Nice", "Cork", "Ulm", "Graz", "Pisa", "Lyon", "Bath")


def facts(suffix: str, seed: int) -> tuple[AttackItem, ...]:
    """Who lives where: one fact per name, with other wordings and wrong answers."""
    rng = random.Random(seed)
    items = []
    for index, name in enumerate(NAMES):
        person, city = f"{name}{suffix}", rng.choice(CITIES)
        wrong = rng.sample([other for other in CITIES if other != city], 3)
        items.append(
            AttackItem(
                index,
                f"Where is {person}?",
                f"{person} lives in {city}.",
                paraphrases=(f"Which is the town of {person}?",),
                perturbed=tuple(f"The town is {other}." for other in wrong),
                paraphrased_answer=f"The town is {city}.",
            )
        )
    return tuple(items)


@pytest.fixture(scope="session")
def attacked() -> AttackData:
    return AttackData(forget=facts("son", 1), retain=facts("berg", 2))


@pytest.fixture(scope="session")
def template() -> QATemplate:
    return QATemplate(user_start="Q: ", user_end="\n", assistant_start="A:\n", assistant_end="\n\n")


@pytest.fixture(scope="session")
def trained(make_model, tiny_tokenizer, template):
    """``trained(items)``: a tiny model that has learned these items' answers, in both wordings, and nothing else."""
    from negpo.lab._models import Schedule, train_lm

    def train(items, epochs=70):
        pairs = [(item.question, item.answer) for item in items]
        pairs += [(item.paraphrases[0], item.paraphrased_answer) for item in items]
        rows = [encode_qa(tiny_tokenizer, template, *pair) for pair in pairs]
        model = make_model(0)
        schedule = Schedule(lr=1e-2, epochs=epochs, batch_size=16)
        pad = tiny_tokenizer.eos_token_id
        train_lm(model, [(row["input_ids"], row["labels"]) for row in rows], schedule, pad_id=pad, seed=0)
        return model

    return train


@pytest.fixture(scope="session")
def knowing(trained, attacked):
    return trained([*attacked.forget, *attacked.retain])


@pytest.fixture(scope="session")
def ignorant(trained, attacked):
    return trained(attacked.retain)


@pytest.fixture(scope="session")
def small():
    """Settings by attack name that keep the tests short."""
    generating = {"max_new_tokens": 40, "batching": Batching(max_rows=32)}
    relearning = {**generating, "steps": 4, "batch_size": 4}
    return {
        "relearn_forget": {**relearning, "k": 3},
        "relearn_paraphrase": {**relearning, "k": 3},
        "relearn_retain": relearning,
        "quantise_8bit": generating,
        "quantise_4bit": {**generating, "group": 5},
        "quantise_nf4": generating,
        "prompting": {**generating, "shots": 1, "families": ("paraphrase", "in_context", "prefix", "language")},
        "sampling": {**generating, "n": 4},
        "logit_lens": {},
        "linear_probe": {"folds": 2},
    }


@pytest.fixture(scope="session")
def run(tiny_tokenizer, attacked, template, small):
    """``run(name, model, data=…, **settings)`` with short settings and seed 0."""

    def attack(name, model, data=attacked, progress=None, **settings):
        made = make_attack(name, **{**small[name], **settings})
        return made.run(Target(model, tiny_tokenizer, template), data, seed=0, progress=progress)

    return attack


@pytest.fixture(scope="session")
def ran(run, ignorant):
    """``ran(name)``: the result on the model that does not know, computed once."""
    return cache(lambda name: run(name, ignorant))
