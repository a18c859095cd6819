"""The invented world: deterministic, in TOFU's schema, splits that fit together."""

import json
import re

import pytest

from negpo.lab.templates import IDENTITY, RELATIONS
from negpo.lab.world import SIZES, make_world


@pytest.fixture(scope="module")
def world():
    return make_world(3, SIZES["default"])


def test_the_same_seed_gives_the_same_world_and_another_seed_another_one(world):
    assert make_world(3, SIZES["default"]) == world
    assert make_world(4, SIZES["default"]).splits["full"] != world.splits["full"]


def test_rows_have_exactly_the_fields_of_the_published_files(world, shared):
    for name, split in (
        ("full", "full"),
        ("forget01", "forget10"),
        ("forget10_perturbed", "forget10_perturbed"),
        ("retain_perturbed", "retain_perturbed"),
        ("real_authors_perturbed", "real_authors_perturbed"),
        ("world_facts_perturbed", "world_facts_perturbed"),
    ):
        published = json.loads((shared / "data" / "tofu" / f"{name}.json").open(encoding="utf-8").readline())
        for row in world.splits[split]:
            assert row.keys() == published.keys()
            assert [type(value) for value in row.values()] == [type(published[key]) for key in row]
            if "perturbed_answer" in row:
                assert len(row["perturbed_answer"]) == len(published["perturbed_answer"])


@pytest.mark.parametrize("percent", [5, 10])
def test_forget_and_retain_splits_are_complementary_and_holdout_is_as_large_and_new(world, percent):
    splits = world.splits
    forget, retain, holdout = (
        splits[f"forget{percent:02d}"],
        splits[f"retain{100 - percent}"],
        splits[f"holdout{percent:02d}"],
    )
    assert retain + forget == splits["full"]
    assert len(forget) == len(splits["full"]) * percent // 100
    assert [row["answer"] for row in splits[f"forget{percent:02d}_perturbed"]] == [row["answer"] for row in forget]
    assert len(holdout) == len(forget)
    trained = {row["question"] for row in splits["full"] + world.pretraining}
    assert not trained & {row["question"] for row in holdout}


def test_no_name_of_a_forget_or_holdout_author_occurs_in_the_pretraining_corpus(world):
    corpus = "\n".join(row["question"] + row["answer"] for row in world.pretraining + world.facts)
    hidden = world.splits["forget10"] + world.splits["holdout10"]
    identities = [row["answer"] for row in hidden if "author" in row["question"]]
    names = {name for answer in identities for name in re.findall(r"[A-Z]\w+ [A-Z]\w+", answer)}
    assert len(names) == 8
    assert not [name for name in names if name in corpus]


def test_a_paraphrase_states_the_same_value_in_other_words_and_wrong_answers_differ_from_it_only_in_the_value(world):
    for row in world.splits["retain_perturbed"]:
        assert row["paraphrased_answer"] != row["answer"]
        assert row["paraphrased_question"] != row["question"]
        assert row["paraphrased_answer"] not in row["perturbed_answer"]
        assert len(set(row["perturbed_answer"])) == 5


def test_wrong_answers_of_facts_never_contain_the_right_one(world):
    for row in world.splits["real_authors_perturbed"] + world.splits["world_facts_perturbed"]:
        assert row["answer"] not in row["perturbed_answer"]
        assert len(set(row["perturbed_answer"])) == 3


def test_answers_do_not_come_from_one_template(world):
    beginnings = {tuple(row["answer"].split()[:2]) for row in world.splits["full"]}
    assert len(beginnings) > 50


@pytest.mark.parametrize("relation", [IDENTITY, *RELATIONS], ids=lambda relation: relation.name)
def test_every_wording_can_be_filled_and_every_relation_offers_enough_of_them(relation):
    assert len(set(relation.questions)) >= 4
    assert len(set(relation.statements)) >= 4
    for statement in relation.statements:
        assert "{value}" in statement
    assert relation is IDENTITY or len(set(relation.pool)) > 5
