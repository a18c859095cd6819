"""Pools that say nothing are refused before a model is loaded; the numbers come from the pools alone."""

import pytest

from negpo.errors import ConfigError
from negpo.lab import meta_eval
from negpo.lab.meta_eval import METRICS, Pools, run_meta_eval

DATA = {"data": "nowhere", "forget": "forget10"}


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (("a",), ("b", "c"), "the positive pool has 1 model"),
        (("a", "b"), ("c",), "the negative pool has 1 model"),
        (("a", "a"), ("b", "c"), "the positive pool names a model twice"),
        (("a", "b"), ("b", "c"), "b stands in both pools"),
    ],
)
def test_pools_without_meaning_are_refused_by_name(positive, negative, message):
    with pytest.raises(ConfigError, match=message):
        Pools(positive, negative, **DATA)


def test_models_with_different_tokenizers_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(meta_eval, "load_tokenizer", lambda name: name)
    monkeypatch.setattr(meta_eval, "hash_tokenizer", lambda name: name)
    with pytest.raises(ConfigError, match="b and a have different tokenizers"):
        run_meta_eval(Pools(("a", "b"), ("c", "d"), **DATA), tmp_path)


def test_faithfulness_q_and_r_come_from_the_scores_of_models_that_look_ignorant(monkeypatch, tmp_path):
    plain = {"k1": 0.9, "k2": 0.8, "n1": 0.1, "n2": 0.2, "hidden": 0.1, "open": 0.85}
    monkeypatch.setattr(meta_eval, "_check_tokenizers", lambda names: None)
    monkeypatch.setattr(meta_eval, "_scores", lambda pools, name, out, *state: dict.fromkeys(METRICS, plain[name]))

    def changed(pools, name, out):
        return {"nf4": dict.fromkeys(METRICS, 0.3), "relearned": dict.fromkeys(METRICS, plain[name] + 0.2)}

    monkeypatch.setattr(meta_eval, "_changed", changed)
    found = run_meta_eval(Pools(("k1", "k2"), ("n1", "n2"), unlearned=("hidden", "open"), **DATA), tmp_path)
    entry = found["metrics"]["extraction_strength"]
    assert entry["auc"] == 1.0
    assert entry["judged"] == 1  # "open" still shows what it knows
    assert entry["Q"] == pytest.approx(1 - 0.2 / 0.4)
    assert entry["R"] == pytest.approx(1.0)
    assert (tmp_path / "meta_eval.json").is_file()
