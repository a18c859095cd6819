"""Rankings of pairs against sums of plain log-softmax values, and what a reference adds."""

import json
import math

import numpy as np
import pytest
import torch

from negpo import cli
from negpo.errors import ConfigError, DataError
from negpo.eval.pairs import PairsSettings, evaluate_pairs, idealised_accuracy, ranking_accuracy, summarise

ROWS = [
    {"prompt": "Where is Bo? ", "chosen": "In the house.", "rejected": "In a tree, far away.", "agreement": 0.9},
    {"prompt": "Who is Al? ", "chosen": "A writer of books.", "rejected": "A cook.", "agreement": 0.4},
    {"prompt": "What? ", "chosen": ["One.", "Two, three."], "rejected": ["Four."], "agreement": 1.0},
]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(0)


def plain_sum(model, tokenizer, prompt, completion):
    """The log-prob of ``completion`` and the end token behind ``prompt``."""
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logps[i - 1, ids[i]].item() for i in range(len(start), len(ids))), len(ids) - len(start)


def test_sums_flips_and_gaps_are_those_of_plain_log_probs(model, make_model, tiny_tokenizer, tmp_path):
    reference = make_model(5)
    result = evaluate_pairs(model, tiny_tokenizer, ROWS, reference=reference, out_dir=tmp_path)
    expected = []
    for row in ROWS:
        chosen = row["chosen"] if isinstance(row["chosen"], list) else [row["chosen"]]
        rejected = row["rejected"] if isinstance(row["rejected"], list) else [row["rejected"]]
        for w in chosen:
            for other in rejected:
                texts = [(m, text) for m in (model, reference) for text in (w, other)]
                sides = [plain_sum(m, tiny_tokenizer, row["prompt"], text) for m, text in texts]
                expected.append([value for value, _ in sides] + [count for _, count in sides[:2]])
    s_w, s_l, r_w, r_l, n_w, n_l = np.array(expected).T
    assert [row["chosen_logp"] for row in result.per_item] == pytest.approx(s_w.tolist(), rel=1e-5)
    assert [row["reference_rejected_logp"] for row in result.per_item] == pytest.approx(r_l.tolist(), rel=1e-5)
    assert result["ranking_accuracy"] == np.mean(s_w >= s_l)
    assert result["ranking_accuracy_per_token"] == np.mean(s_w / n_w >= s_l / n_l)
    assert result["misalignment"] == 1 - result["ranking_accuracy_per_token"]
    assert result["reference_ranking_accuracy"] == np.mean(r_w >= r_l)
    assert result["margin_accuracy"] == np.mean((s_w - r_w) - (s_l - r_l) >= 0)
    assert result["flips_to_right"] == np.mean((s_w >= s_l) & (r_w < r_l))
    assert result["flips_to_wrong"] == np.mean((s_w < s_l) & (r_w >= r_l))
    assert result["alignment_gap"] == pytest.approx(np.mean(r_l - r_w), rel=1e-4)
    assert sum(result.details["alignment_gap"]["counts"]) == 4
    low, high = result.details["ranking_accuracy"]["interval"]
    assert low <= result["ranking_accuracy"] <= high
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == dict(result)


def test_a_ranking_is_right_exactly_where_the_margin_reaches_the_gap():
    rng = np.random.default_rng(0)
    columns = ("chosen_logp", "rejected_logp", "reference_chosen_logp", "reference_rejected_logp")
    rows = [dict(zip(columns, rng.normal(size=4), strict=True)) for _ in range(200)]
    rows = [row | {"chosen_tokens": 3, "rejected_tokens": 4, "agreement": None} for row in rows]
    metrics, _, missing = summarise(rows, 0.1)
    gap = np.array([row["reference_rejected_logp"] - row["reference_chosen_logp"] for row in rows])
    change = [row["chosen_logp"] - row["reference_chosen_logp"] for row in rows]
    change = np.array(change) - [row["rejected_logp"] - row["reference_rejected_logp"] for row in rows]
    assert metrics["ranking_accuracy"] == np.mean(change >= gap)
    before, after = metrics["reference_ranking_accuracy"], metrics["ranking_accuracy"]
    assert after - before == pytest.approx(metrics["flips_to_right"] - metrics["flips_to_wrong"])
    assert "agreement" in missing["idealised_accuracy"]


def test_the_idealised_policy_follows_the_raters_unless_the_reference_is_too_far_off():
    gap, beta = np.array([2.0, 2.0, -2.0, 50.0]), 0.1
    agreement = np.array([0.9, 0.51, 0.4, 1.0])
    bonus = [math.log(a / (1 - a)) / beta if a < 1 else math.inf for a in agreement]
    assert idealised_accuracy(gap, agreement, beta) == np.mean([b - g >= 0 for b, g in zip(bonus, gap, strict=True)])
    assert idealised_accuracy([5.0], [0.5], beta) == 0.0
    assert ranking_accuracy([1.0, 0.0], [1.0, 1.0]) == 0.5


def test_without_a_reference_only_rankings_are_told(model, tiny_tokenizer):
    result = evaluate_pairs(model, tiny_tokenizer, ROWS)
    assert set(result) == {"ranking_accuracy", "ranking_accuracy_per_token", "misalignment"}
    assert "pass the model before training" in result.missing["flips_to_right"]


def test_pairs_with_equal_texts_are_counted_and_unusable_inputs_refused(model, tiny_tokenizer, make_model):
    equal = {"prompt": "p ", "chosen": "same", "rejected": "same"}
    result = evaluate_pairs(model, tiny_tokenizer, [*ROWS, equal])
    assert len(result.per_item) == 4
    with pytest.raises(DataError, match="no row"):
        evaluate_pairs(model, tiny_tokenizer, [equal])
    with pytest.raises(DataError, match="row 0, field 'agreement': is 3"):
        evaluate_pairs(model, tiny_tokenizer, [ROWS[0] | {"agreement": 3}])
    with pytest.raises(ConfigError, match="beta=0"):
        PairsSettings(beta=0)


def test_the_command_measures_a_checkpoint_and_its_reference(make_model, tiny_tokenizer, tmp_path, capsys):
    for name, seed in (("after", 0), ("before", 5)):
        make_model(seed).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    argv = ["eval", "pairs", "--model", str(tmp_path / "after"), "--reference", str(tmp_path / "before")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*argv, "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert ended.value.code == 0
    assert "ranking_accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]["idealised_accuracy"] >= 0
