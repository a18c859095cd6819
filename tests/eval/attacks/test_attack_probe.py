"""Hidden states: the lens against full logits, the probe against planted and absent directions."""

import math

import numpy as np
import pytest
import torch

from negpo.data.qa import encode_qa
from negpo.errors import ConfigError, DataError
from negpo.eval.attacks import AttackData, AttackItem
from negpo.eval.attacks.hidden import Lens, answer_states, final_norm
from negpo.eval.attacks.probe import LinearProbe
from negpo.eval.scoring import Batching, score_items
from negpo.logprobs import tiles


@pytest.fixture(scope="module")
def items(tiny_tokenizer, template, attacked):
    return [encode_qa(tiny_tokenizer, template, item.question, item.answer) for item in attacked.forget]


def read_all(model, items, pad, batching=None):
    """(log p, rank) per item and layer."""
    lens, read = Lens(model), [[] for _ in items]
    for states in answer_states(model, items, pad, batching or Batching()):
        for layer in range(len(states.layers)):
            logps, ranks = lens.read(states, layer)
            for place, item in enumerate(states.items):
                read[item].append((logps[states.row == place], ranks[states.row == place]))
    return read


@pytest.mark.parametrize("tile_bytes", [None, 1024])
def test_the_lens_reads_every_layer_as_norm_head_and_softmax_over_full_logits(
    ignorant, tiny_tokenizer, items, tile_bytes, monkeypatch
):
    if tile_bytes:  # 256 columns of the 298: the vocabulary is walked in two tiles
        monkeypatch.setattr(tiles, "CPU_TILE_BYTES", tile_bytes)
    read = read_all(ignorant, items[:3], tiny_tokenizer.eos_token_id)
    for item, layers in zip(items[:3], read, strict=True):
        ids = torch.tensor(item["input_ids"])
        where = torch.tensor([label != -100 for label in item["labels"]]).nonzero()[:, 0]
        with torch.no_grad():
            states = ignorant.model(input_ids=ids[None], output_hidden_states=True).hidden_states
            for layer, (logps, ranks) in enumerate(layers):
                hidden = states[layer] if layer == 2 else ignorant.model.norm(states[layer])
                full = ignorant.lm_head(hidden)[0, where - 1].log_softmax(-1)
                own = full.gather(1, ids[where][:, None])
                assert torch.allclose(logps, own[:, 0], atol=1e-4)
                assert torch.equal(ranks, (full > own).sum(1) + 1)


def test_the_last_layer_is_the_models_own_answer_probability(ran, ignorant, tiny_tokenizer, items):
    scores = score_items(ignorant, items, tiny_tokenizer.eos_token_id)
    result = ran("logit_lens")
    last = [row["answer_probability"][-1] for row in result.per_item]
    assert last == pytest.approx([math.exp(-score["nll"]) for score in scores], rel=1e-4)
    points = result.curves["answer_probability"]
    assert [x for x, *_ in points] == [0, 1, 2]
    assert result.value == max(y for _, y, *_ in points)


def test_a_model_whose_final_norm_has_another_name_is_refused(make_model):
    model = make_model(0)
    model.model.other = model.model._modules.pop("norm")
    with pytest.raises(ConfigError, match="no final norm"):
        final_norm(model)


def planted(strength: float, questions: int = 30, seed: int = 0):
    """States (answers, 3, 8) of one right and three wrong answers each; layer 2 points along an axis for right ones."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(questions), 4)
    right = np.arange(4 * questions) % 4 == 0
    pooled = rng.normal(size=(4 * questions, 3, 8)) + 5 * rng.normal(size=(questions, 3, 8))[owner]
    pooled[right, 2, 0] += strength
    return pooled.astype(np.float32), owner, np.arange(questions) * 5 // questions


def test_a_planted_direction_is_found_in_its_layer_and_nowhere_else():
    pooled, owner, fold = planted(4.0)
    aucs = LinearProbe()._aucs(pooled, owner, fold, set()).mean(axis=0)
    assert aucs[2] > 0.95
    assert np.abs(aucs[:2] - 0.5).max() < 0.2


def test_without_a_direction_held_out_questions_are_at_chance():
    values = []
    for seed in range(6):
        pooled, owner, fold = planted(0.0, seed=seed)
        values.append(LinearProbe()._aucs(pooled, owner, fold, set()).mean())
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_questions_with_nan_states_neither_train_nor_test_the_probe():
    pooled, owner, fold = planted(4.0)
    pooled[:4] = np.nan
    aucs = LinearProbe()._aucs(pooled, owner, fold, {0})
    assert (aucs[0] == 0.5).all()
    assert aucs[1:, 2].mean() > 0.95


def test_the_layer_is_chosen_by_the_other_folds(ran):
    result = ran("linear_probe")
    by_layer = np.array([row["auc_by_layer"] for row in result.per_item])
    fold = np.arange(8) * 2 // 8
    for place, row in enumerate(result.per_item):
        assert row["layer"] == 1 + by_layer[fold != fold[place], 1:].mean(axis=0).argmax()
        assert row["value"] == row["auc_by_layer"][row["layer"]]


def test_rows_without_perturbed_answers_are_left_out_with_a_note(run, knowing, attacked):
    bare = AttackItem(0, "Who?", "Ann Dee")
    result = run("linear_probe", knowing, AttackData((bare, *attacked.forget[1:]), ()))
    assert [row["index"] for row in result.per_item] == list(range(1, 8))
    assert "1 of 8 questions have no perturbed answers, the first is row 0" in result.notes[0]


def test_a_set_without_perturbed_answers_is_refused(run, knowing, attacked):
    bare = tuple(AttackItem(item.index, item.question, item.answer) for item in attacked.forget)
    with pytest.raises(DataError, match="forget, row 0, field 'perturbed'"):
        run("linear_probe", knowing, AttackData(bare, ()))
    with pytest.raises(DataError, match="too few for 5 folds"):
        run("linear_probe", knowing, folds=5)
