"""Sampling: the best of k without bias, probabilities at a temperature, and draws that depend on the row alone."""

from itertools import combinations

import numpy as np
import pytest
import torch

from negpo.eval.attacks import AttackData
from negpo.eval.attacks.measure import Asker
from negpo.eval.attacks.sampling import best_of_k, tempered
from negpo.eval.scoring import Batching


def test_best_of_k_is_the_mean_over_all_subsets_of_k_samples():
    values = np.random.default_rng(0).random((3, 6)).round(1)  # with ties
    expected = [[np.mean([max(part) for part in combinations(row.tolist(), k)]) for k in range(1, 7)] for row in values]
    assert best_of_k(values) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_probabilities_at_a_temperature_agree_with_full_logits(
    ignorant, tiny_tokenizer, template, attacked, temperature
):
    asker = Asker.for_model(ignorant, tiny_tokenizer, template, 40)
    asks = [asker.ask(item) for item in attacked.forget[:3]]
    rows = tempered(ignorant, tiny_tokenizer, asks, temperature, Batching())
    for ask, row in zip(asks, rows, strict=True):
        ids, start = ask.item["input_ids"], len(ask.prompt)
        with torch.no_grad():
            logps = (ignorant(torch.tensor([ids])).logits[0].double() / temperature).log_softmax(-1)
        own = [logps[t - 1, ids[t]].item() for t in range(start, len(ids))]
        assert row["answer_probability"] == pytest.approx(np.exp(np.mean(own)), rel=1e-4)
        assert row["sequence_probability"] == pytest.approx(np.exp(np.sum(own)), rel=1e-3)


def test_an_items_samples_do_not_depend_on_which_other_items_are_attacked(run, ran, ignorant, attacked):
    every = {row["index"]: row for row in ran("sampling").per_item}
    few = run("sampling", ignorant, AttackData(attacked.forget[2:5], ()))
    for row in few.per_item:
        assert row["rougeL_recall_by_sample"] == every[row["index"]]["rougeL_recall_by_sample"]


def test_more_samples_start_with_the_same_ones_and_find_no_less(run, ran, ignorant):
    four, eight = ran("sampling"), run("sampling", ignorant, n=8)
    for few, many in zip(four.per_item, eight.per_item, strict=True):
        assert many["rougeL_recall_by_sample"][:4] == few["rougeL_recall_by_sample"]
    assert eight.value >= four.value


def test_the_curve_rises_from_one_sample_to_the_value(ran):
    result = ran("sampling")
    points = [y for _, y, *_ in result.curves["best_of_k:rougeL_recall"]]
    assert points == sorted(points)
    assert points[0] == pytest.approx(result.measures["rougeL_recall_one_sample"][0])
    assert points[-1] == pytest.approx(result.value)


def test_the_chance_that_the_answer_is_drawn_follows_from_its_mass(ran):
    for row in ran("sampling").per_item:
        assert row["said_within_n"] == pytest.approx(1 - (1 - row["sequence_probability"]) ** 4)
