"""The shared passes: reference numbers, and independence of batch size, padding side and interruptions."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negpo.data.io import read_jsonl
from negpo.data.qa import IGNORE, QATemplate, encode_qa
from negpo.errors import ConfigError, DataError
from negpo.eval import scoring as sc

ONE_BY_ONE = sc.Batching(max_rows=1)


def fixture_score(item, k=0.4):
    """Scores of one item from the reference's table of logits, row t predicting token t + 1."""
    labels = torch.tensor(item["labels"][1:])
    logp = torch.log_softmax(torch.tensor(item["logits"], dtype=torch.float64), dim=-1)[: len(labels)]
    where = labels != IGNORE
    logp, labels = logp[where], labels[where]
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = ((p * logp**2).sum(-1) - mean**2).clamp_min(0).sqrt()
    chosen = logp.gather(1, labels[:, None])[:, 0]
    tokens = sum(label != IGNORE for label in item["labels"])
    columns = (chosen, logp.argmax(-1) == labels, mean, std)
    return sc.summarise(tokens, *(column.numpy() for column in columns), k=k)


@pytest.mark.parametrize("split", ["forget", "holdout"])
def test_what_is_kept_of_an_answer_matches_the_reference(load_fixture, split):
    data, mia = load_fixture("eval/ou_model_level.json")[split], load_fixture("eval/ou_mia.json")["expected"]
    scores = [fixture_score(item) for item in data["items"]]
    for i, score in enumerate(scores):
        assert score["nll"] == pytest.approx(
            data["probability"]["value_by_index"][str(i)]["avg_loss"], rel=1e-6, abs=1e-6
        )
        for name in ("exact_memorization", "extraction_strength"):
            assert score[name] == pytest.approx(data[name]["value_by_index"][str(i)]["score"], rel=1e-6)
    for k in (0.2, 0.4, 1.0):
        for name, short in (("min_k", "min_k"), ("min_k_plus_plus", "min_k_pp")):
            if f"{short}_{k}" in mia:
                expected = mia[f"{short}_{k}"][split]["value_by_index"]
                for i, item in enumerate(data["items"]):
                    assert fixture_score(item, k)[name] == pytest.approx(expected[str(i)]["score"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", ["all_ignored", "only_one_label_token"])
def test_answers_without_tokens_score_as_in_the_reference(load_fixture, case):
    data = load_fixture("eval/ou_model_level.json")["edge"][case]
    item = data["items"][0]
    score, index = fixture_score(item), str(item["index"])
    assert math.isnan(score["exact_memorization"])
    assert score["extraction_strength"] == data["extraction_strength"]["value_by_index"][index]["score"] == 0
    assert score["min_k"] == data["min_k_0.4"][index]["score"] == 0
    assert score["min_k_plus_plus"] == data["min_k_pp_0.4"][index]["score"] == 0
    assert score["nll"] == pytest.approx(float(data["loss"][index]["score"]), rel=1e-6, nan_ok=True)


def test_ground_truth_and_stop_words_match_the_reference(load_fixture):
    class Words:
        def decode(self, words, **_):
            return " ".join(word for word in words if not word.startswith("<"))

    for case in load_fixture("eval/rouge.json")["text_similarity"]:
        for (question, answer, generated), score in zip(case["qa_gen"], case["scores"], strict=True):
            prompt = f"be nice {question}".split()
            assert sc.ground_truth(Words(), prompt, prompt + answer.split()) == score["ground_truth"]
            text = sc.decode(Words(), generated.replace("</s>", "<s>").split())
            assert sc.cut_at_stop_words(text, ["</s>", *(case["stopwords"] or [])]) == score["generation"]


@pytest.fixture(scope="module")
def items(tiny_tokenizer):
    words = ["Ann", "the book of Dee", "a", "somebody whom nobody knows, in a long book about books"]
    return [
        encode_qa(tiny_tokenizer, QATemplate(), f"Who wrote {a}?", f"{b} did it.") for a in words for b in words[:3]
    ]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert {key: b[key] for key in a} == pytest.approx(a, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_scores_do_not_depend_on_batch_size_or_padding_side(make_model, items, rows, side):
    model, detailed = make_model(), [i % 2 == 0 for i in range(len(items))]
    expected = sc.score_items(model, items, 0, detailed=detailed, batching=ONE_BY_ONE)
    batching = sc.Batching(max_rows=rows, padding_side=side)
    assert_same(expected, sc.score_items(model, items, 0, detailed=detailed, batching=batching))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(12)), tokens=st.integers(1, 400))
def test_scores_do_not_depend_on_order_or_token_budget(make_model, items, order, tokens):
    model = make_model()
    expected = sc.score_items(model, items, 0, batching=ONE_BY_ONE)
    shuffled = sc.score_items(model, [items[i] for i in order], 0, batching=sc.Batching(max_tokens=tokens))
    assert_same([expected[i] for i in order], shuffled)


def test_scores_equal_a_plain_forward_with_full_logits(make_model, items):
    model = make_model()
    for item, score in zip(items, sc.score_items(model, items, 0, detailed=[True] * len(items)), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([item["input_ids"]])).logits[0].tolist()
        assert_same([fixture_score({**item, "logits": logits})], [score])


def test_a_pad_token_inside_the_prompt_is_seen_unless_the_published_hole_is_asked_for(make_model, items):
    model, item = make_model(), items[0]
    pad = item["input_ids"][3]
    honest = sc.score_items(model, [item, items[-1]], pad)[0]["nll"]
    hole = sc.score_items(model, [item, items[-1]], pad, batching=sc.Batching(compat="ou-0.1"))[0]["nll"]
    assert honest == pytest.approx(sc.score_items(model, [item], 299)[0]["nll"], rel=1e-5)
    assert abs(hole - honest) > 1e-4


def test_equal_items_are_scored_once_and_the_model_is_left_as_it_was(make_model, items):
    model = make_model().train()
    model.model.layers[0].eval()
    seen = []
    scores = sc.score_items(model, [items[0]] * 5, 0, progress=seen.append)
    assert len(scores) == 5
    assert seen == [4, 1]
    assert model.training
    assert not model.model.layers[0].training


@pytest.mark.parametrize("lengths", [[3, 9, 1, 5], [7], []])
def test_batches_are_sorted_and_keep_to_both_limits(lengths):
    batches = sc.Batching(max_rows=2, max_tokens=10).split(lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 2
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 10
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)


def test_an_interrupted_pass_goes_on_after_the_torn_line(make_model, items, tmp_path, monkeypatch):
    model, path = make_model(), tmp_path / "items.jsonl"
    expected = sc.score_items(model, items, 0, batching=ONE_BY_ONE)
    sc.score_items(model, items[:4], 0, batching=ONE_BY_ONE, store=sc.ItemStore(path, "abc"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    counted, original = [], sc._score_batch
    monkeypatch.setattr(
        sc, "_score_batch", lambda model, part, *rest: counted.extend(part) or original(model, part, *rest)
    )
    again = sc.score_items(model, items, 0, batching=ONE_BY_ONE, store=sc.ItemStore(path, "abc"))
    assert_same(expected, again)
    assert len(counted) == len(items) - 3
    assert len(read_jsonl(path)) == len(items) + 1


def test_a_store_of_another_measurement_is_refused_and_kept(tmp_path):
    path = tmp_path / "items.jsonl"
    sc.ItemStore(path, "abc").add([{"key": "k", "nll": 1.0}])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"another model, data or setting.*'abc'"):
        sc.ItemStore(path, "xyz")
    assert path.read_bytes() == before


def test_a_result_that_was_changed_by_hand_is_computed_again(make_model, items, tmp_path, caplog):
    model, path = make_model(), tmp_path / "items.jsonl"
    expected = sc.score_items(model, items[:3], 0, batching=ONE_BY_ONE, store=sc.ItemStore(path, "abc"))
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "nll": 0.0})
    path.write_text("\n".join(lines) + "\n")
    store = sc.ItemStore(path, "abc")
    assert len(store.rows) == 2
    assert "1 lines were changed after they were written" in caplog.text
    assert_same(expected, sc.score_items(model, items[:3], 0, batching=ONE_BY_ONE, store=store))
    assert len(sc.ItemStore(path, "abc").rows) == 3


def test_a_damaged_line_in_the_middle_of_a_store_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"manifest": "abc"}) + '\n{"key"\n{"key": "k"}\n')
    with pytest.raises(DataError, match="line 2"):
        sc.ItemStore(path, "abc")


@pytest.mark.parametrize("rows", [2, 16])
def test_generations_do_not_depend_on_batch_size_and_keep_their_own_limits(make_model, tiny_tokenizer, items, rows):
    model = make_model(3)
    prompts = [item["input_ids"][:6] + item["input_ids"][7 : 7 + i] for i, item in enumerate(items)]
    limits = [4 + i % 3 for i in range(len(prompts))]

    def run(batching):
        return sc.generate_texts(model, tiny_tokenizer, prompts, max_new_tokens=limits, batching=batching)

    assert run(ONE_BY_ONE) == run(sc.Batching(max_rows=rows))
    assert any(run(ONE_BY_ONE))


def test_generation_is_greedy_whatever_the_models_own_configuration_says(make_model, tiny_tokenizer, items):
    model = make_model(3)
    prompts = [item["input_ids"] for item in items[:2]]
    expected = sc.generate_texts(model, tiny_tokenizer, prompts, max_new_tokens=[5, 5])
    model.generation_config.update(do_sample=True, temperature=9.0, top_k=2, num_beams=3)
    assert sc.generate_texts(model, tiny_tokenizer, prompts, max_new_tokens=[5, 5]) == expected


def test_batch_limits_must_be_positive():
    with pytest.raises(ConfigError, match="positive"):
        sc.Batching(max_rows=0)
    assert np.isnan(sc.summarise(0, np.array([]))["nll"])
