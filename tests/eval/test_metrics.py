"""Metrics against closed forms, edge cases and, where present, the reference implementations' numbers."""

import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negpo.eval import metrics as m
from negpo.eval.statistics import ks_test, roc_auc

LOSSES = st.floats(0, 40)


def by_index(values, key=None):
    rows = [values[str(i)] for i in range(len(values))]
    return np.array([row[key] for row in rows] if key else rows)


@pytest.mark.parametrize("case", ["normal", "collapsed"])
def test_truth_ratios_and_their_aggregates_match_the_reference(load_fixture, case):
    data = load_fixture("eval/ou_truth_ratio.json")[case]
    correct, wrong = by_index(data["correct"], "avg_loss"), by_index(data["wrong"], "avg_loss")
    for how in ("closer_to_1_better", "true_better", "prob_mean"):
        kind = "correct_share" if how == "prob_mean" else "wrong_over_correct"
        ratio = m.truth_ratio(correct, wrong, kind=kind)
        np.testing.assert_allclose(ratio, by_index(data[how]["value_by_index"], "score"), rtol=1e-12)
        assert m.aggregate_truth_ratio(ratio, how) == pytest.approx(data[how]["agg_value"], rel=1e-12)


def test_probability_among_options_matches_the_reference(load_fixture):
    data = load_fixture("eval/ou_truth_ratio.json")
    options = data["probability_w_options"]
    correct, wrong = by_index(data["normal"]["correct"], "avg_loss"), by_index(data["normal"]["wrong"], "avg_loss")
    shares = m.normalised_probability(correct, wrong)
    np.testing.assert_allclose(shares, by_index(options["value_by_index"], "prob"), rtol=1e-12)
    assert shares.mean() == pytest.approx(options["agg_value"], rel=1e-12)
    assert m.probability(correct) == pytest.approx(by_index(data["normal"]["correct"], "prob"), rel=1e-12)


def test_forget_quality_matches_the_reference_down_to_its_floors(load_fixture):
    for case in load_fixture("eval/ou_forget_quality_mu_privleak.json")["ks"]:
        assert m.forget_quality(case["forget"], case["retain"]) == pytest.approx(case["pvalue"], rel=1e-12)


def test_model_utility_and_privleak_match_the_reference(load_fixture):
    data = load_fixture("eval/ou_forget_quality_mu_privleak.json")
    for case in data["model_utility"]:
        assert m.model_utility(case["values"]) == pytest.approx(case["model_utility"], rel=1e-12)
    for case in data["privleak"]:
        auc, retain = case["auc_unlearned"], case["auc_retain"]
        assert m.privleak(auc, retain) == pytest.approx(case["privleak"], rel=1e-12, abs=1e-12)
        reference = case["ref_value_default"] if retain is None else retain
        assert m.relative_difference(auc, reference) == pytest.approx(case["rel_diff"], rel=1e-12, abs=1e-12)


def test_the_original_evaluators_two_model_utilities_match_the_reference(load_fixture):
    data = load_fixture("eval/tofu_original_aggregate.json")
    files = {
        "Retain": "eval_log.json",
        "Real Authors": "eval_real_author_wo_options.json",
        "Real World": "eval_real_world_wo_options.json",
        "Forget": "eval_log_forget.json",
    }
    for mean, script in (("geometric", "aggregate_eval_stat"), ("arithmetic", "utils")):
        expected = {frozenset(key.split()): value for key, value in data[f"{script}.get_model_utility"].items()}
        utility = []
        for name, file in files.items():
            log = {key: by_index(values) for key, values in data["ckpt_logs"][file].items()}
            ratio = m.original_truth_ratio(log["avg_paraphrased_loss"], log["average_perturb_loss"], mean=mean)
            how = "closer_to_1_better" if name == "Forget" else "true_better"
            if name.startswith("Real"):
                prob = m.normalised_probability(log["avg_gt_loss"], log["average_perturb_loss"], eps=0).mean()
            else:
                prob = m.probability(log["avg_gt_loss"]).mean()
            label = "Prob." if mean == "geometric" else "Probability"
            values = {
                f"{label} {name}": prob,
                f"ROUGE {name}": log["rougeL_recall"].mean(),
                f"Truth Ratio {name}": m.aggregate_original_truth_ratio(ratio, how),
            }
            for key, value in values.items():
                assert value == pytest.approx(expected[frozenset(key.split())], rel=1e-12)
            utility += [] if name == "Forget" else values.values()
        assert m.model_utility(utility) == pytest.approx(expected[frozenset(["Model", "Utility"])], rel=1e-12)


def test_the_original_evaluators_forget_quality_matches_the_reference(load_fixture):
    data = load_fixture("eval/tofu_original_aggregate.json")
    ratios = []
    for logs in ("ckpt_logs", "retain_logs"):
        log = {key: by_index(values) for key, values in data[logs]["eval_log_forget.json"].items()}
        ratios.append(m.original_truth_ratio(log["avg_paraphrased_loss"], log["average_perturb_loss"]))
    expected = data["aggregate_eval_stat.get_forget_quality"]
    result = ks_test(*ratios)
    assert result.p_value == pytest.approx(expected["KS Test PVal Forget"], rel=1e-12)
    assert result.statistic == pytest.approx(expected["KS Test Forget"], rel=1e-12)


def test_rouge_matches_the_reference_with_and_without_stemmer(load_fixture):
    for case in load_fixture("eval/rouge.json")["pairs"]:
        scores = m.rouge_scores(case["target"], case["prediction"], stemmer=case["use_stemmer"])
        for kind in ("rouge1", "rougeL"):
            assert scores[f"{kind}_recall"] == pytest.approx(case[f"{kind}_recall"], rel=1e-12)
            assert scores[f"{kind}_f1"] == pytest.approx(case[f"{kind}_fmeasure"], rel=1e-12)


def test_muse_rouge_averages_match_its_logger(load_fixture):
    data = load_fixture("eval/muse_rouge_logger.json")
    scores = [m.rouge_scores(entry["gt"], entry["response"], stemmer=False) for entry in data["history"]]
    for name, key in {"rougeL": "rougeL_f1", "rougeL_recall": "rougeL_recall", "rouge1": "rouge1_f1"}.items():
        values = [score[key] for score in scores]
        np.testing.assert_allclose(values, [entry[name] for entry in data["history"]], rtol=1e-12)
        assert np.mean(values) == pytest.approx(data["agg"][f"mean_{name}"], rel=1e-12)
        assert np.max(values) == data["agg"][f"max_{name}"]


def muse_ids(text):
    return (1, *(ord(letter) % 17 + 2 for letter in text))


def test_muse_min_k_and_privleak_match_the_reference(load_fixture):
    data = load_fixture("eval/muse_privleak.json")
    logps = {}
    for entry in data["logits_by_ids"]:
        logits, ids = np.array(entry["logits"][:-1]), entry["ids"]
        table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        logps[tuple(ids)] = table[np.arange(len(ids) - 1), ids[1:]]
    scores = {split: [] for split in data["per_text"]}
    for split, rows in data["per_text"].items():
        for row in rows:
            lp, lower = logps[muse_ids(row["text"])], logps[muse_ids(row["text"].lower())]
            values = {"PPL": -lp.mean(), "PPL/lower": lp.mean() / lower.mean()}
            values["PPL/zlib"] = m.zlib_score(-lp.mean(), row["text"])
            values |= {f"Min-{percent}%": m.muse_min_k(lp, percent / 100) for percent in (5, 10, 20, 30, 40, 50, 60)}
            for name, value in values.items():
                assert value == pytest.approx(float(row[name]), rel=1e-6, nan_ok=True)
            scores[split].append(values)
    for name in scores["forget"][0]:
        for first, second in itertools.product(scores, repeat=2):
            # MUSE's ROC uses minus the score; the first split has label 0
            auc = roc_auc(*([-row[name] for row in scores[split]] for split in (first, second)))
            expected = data["auc"][f"{first}_{second}_{name}"]
            assert auc == pytest.approx(math.nan if expected is None else expected, rel=1e-12, nan_ok=True)
    auc = data["auc"]["forget_holdout_Min-40%"]
    for corpus, retrain in data["auc_retrain_constants"].items():
        assert m.muse_privleak(auc, retrain) == pytest.approx(data[f"privleak_vs_{corpus}"], rel=1e-12)
        assert m.privleak(1 - auc, 1 - retrain) == pytest.approx(data[f"privleak_vs_{corpus}"], rel=1e-6)


def test_pass_at_k_is_the_exact_binomial(load_fixture):
    data = load_fixture("eval/pass_at_k.json")
    for case in data["grid"]:
        assert m.pass_at_k(case["n"], case["c"], case["k"]) == pytest.approx(case["exact_rational_float"], abs=1e-15)
    mixed = data["heterogeneous_n"]
    np.testing.assert_allclose(m.pass_at_k(mixed["n"], mixed["c"], mixed["k"]), mixed["per_problem"], rtol=1e-12)
    nsr = data["nsr"]
    for k, mean in nsr["mean_pass_at_k"].items():
        assert m.pass_at_k(nsr["n"], nsr["correct_counts"], int(k)).mean() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("triple", [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0), (0, 0, 1), (4.5, 1, 1)])
def test_pass_at_k_refuses_impossible_counts(triple):
    with pytest.raises(ValueError, match=r"pass@|impossible|whole"):
        m.pass_at_k(*triple)
    with pytest.raises(ValueError, match=r"pass@|impossible|whole"):
        m.pass_at_k([8, triple[0]], [1, triple[1]], triple[2])


def test_pass_at_k_broadcasts_problems_against_a_grid_of_k():
    table = m.pass_at_k(np.array([[8], [16]]), np.array([[2], [0]]), [1, 4, 8])
    assert table.shape == (2, 3)
    assert table[0] == pytest.approx([0.25, 1 - 15 / 70, 1.0])
    assert table[1].tolist() == [0, 0, 0]
    assert isinstance(m.pass_at_k(8, 2, 1), float)


@given(
    correct=st.lists(LOSSES, min_size=1, max_size=6),
    wrong=st.integers(1, 4).flatmap(lambda j: st.lists(LOSSES, min_size=j, max_size=j)),
)
def test_truth_ratio_is_the_ratio_of_geometric_mean_probabilities(correct, wrong):
    table = [wrong] * len(correct)
    expected = [math.prod(math.exp(-w) for w in wrong) ** (1 / len(wrong)) / (math.exp(-c) + 1e-10) for c in correct]
    np.testing.assert_allclose(m.truth_ratio(correct, table), expected, rtol=1e-9)


def test_infinite_losses_give_the_limit_and_nan_goes_through():
    assert m.truth_ratio([np.inf], [[1.0]])[0] == pytest.approx(math.exp(-1) / 1e-10)
    assert m.truth_ratio([1.0], [[np.inf, 1.0]])[0] == 0
    assert m.aggregate_truth_ratio([np.inf, 1.0], "closer_to_1_better") == pytest.approx(0.5)
    assert m.aggregate_truth_ratio([np.inf, 0.25], "true_better") == pytest.approx(0.375)
    assert m.aggregate_truth_ratio([0.0], "closer_to_1_better") == 0
    for how in ("closer_to_1_better", "true_better", "prob_mean"):
        assert math.isnan(m.aggregate_truth_ratio([np.nan, 1.0], how))
    assert math.isnan(m.forget_quality([np.nan, 1.0], [0.5]))
    assert math.isnan(m.model_utility([np.nan, 0.0]))
    assert math.isnan(m.min_k([-1.0, np.nan]))
    assert m.min_k([-np.inf, -1.0]) == np.inf


def test_a_zero_utility_part_gives_zero_and_a_negative_one_is_refused():
    assert m.model_utility([0.5, 0.0]) == 0.0
    assert m.model_utility([0.5, 0.25]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"found -0\.1"):
        m.model_utility([0.5, -0.1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: m.aggregate_truth_ratio([], "true_better"),
        lambda: m.model_utility([]),
        lambda: m.forget_quality([], [1.0]),
        lambda: m.truth_ratio([], []),
        lambda: m.truth_ratio([1.0], [1.0]),
        lambda: m.truth_ratio([1.0], np.zeros((1, 0))),
        lambda: m.truth_ratio([1.0], [[1.0]], kind="other"),
        lambda: m.aggregate_truth_ratio([1.0], "other"),
        lambda: m.min_k([-1.0], k=1.5),
        lambda: m.min_k_plus_plus([-1.0], [0.0, 0.0], [1.0]),
        lambda: m.exact_memorization([1, 2], [1]),
        lambda: m.extraction_strength([[1]], [[1]]),
    ],
)
def test_empty_averages_and_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match=r".+"):
        call()


def test_extraction_strength_is_at_least_one_over_n_and_looks_at_the_tail():
    assert m.extraction_strength([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert m.extraction_strength([9, 2, 9, 4], [1, 2, 3, 4]) == 0.25
    assert m.extraction_strength([1, 2, 3, 9], [1, 2, 3, 4]) == 0.25
    assert m.extraction_strength([9], [1]) == 1.0
    assert m.extraction_strength([], []) == 0.0


def test_exact_memorisation_counts_matches_and_is_nan_without_tokens():
    assert m.exact_memorization([1, 2, 9, 4], [1, 2, 3, 4]) == 0.75
    assert math.isnan(m.exact_memorization([], []))


def test_min_k_takes_at_least_one_token_and_zero_for_none():
    assert m.min_k([-3.0, -1.0, -2.0], k=0.0) == 3.0
    assert m.min_k([-3.0, -1.0, -2.0, -4.0, 0.0], k=0.4) == 3.5
    assert m.min_k([]) == 0.0
    assert m.min_k_plus_plus([], [], []) == 0.0


def test_min_k_plus_plus_standardises_and_floors_the_variance():
    assert m.min_k_plus_plus([-3.0, -1.0], [-1.0, -1.0], [2.0, 1.0], k=0.5) == 1.0
    assert m.min_k_plus_plus([-1.0], [-2.0], [0.0], k=1.0) == pytest.approx(-1000.0)


def test_zlib_score_divides_by_compressed_bytes():
    text = "é" * 50
    assert m.zlib_score(2.0, text) == 2.0 / len(zlib.compress(text.encode()))


def test_tofu_rouge_is_stemmed_recall_of_the_longest_common_subsequence():
    assert m.rouge_recall("The cats were running home", "the cat is running") == pytest.approx(3 / 5)
    assert m.rouge_recall("", "anything") == 0.0
    assert m.rouge_recall("作者", "作者") == 0.0
