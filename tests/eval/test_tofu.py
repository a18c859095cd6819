"""The TOFU harness end to end on a tiny world: both modes, every metric, and refusals before work is done."""

import json
import math

import numpy as np
import pytest
import torch

from negpo.data.qa import IGNORE, QATemplate
from negpo.errors import ConfigError, DataError
from negpo.eval import metrics as m
from negpo.eval.retain_log import RetainLog
from negpo.eval.scoring import Batching
from negpo.eval.tofu import TofuSettings, evaluate_tofu, load_tofu
from negpo.eval.tofu_items import Encoder

SHORT = TofuSettings(max_new_tokens=6)
NINE = {f"{p}_{q}" for p in ("ra", "wf") for q in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")} | {
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(0)


@pytest.fixture
def data(tofu_folder):
    return load_tofu(tofu_folder)


@pytest.fixture
def log(make_model, tiny_tokenizer, data):
    settings = TofuSettings(generate=False)
    return evaluate_tofu(make_model(7), tiny_tokenizer, data, settings).retain_log()


def test_every_metric_of_the_open_unlearning_mode_is_there(model, make_model, tiny_tokenizer, data, log):
    settings = TofuSettings(max_new_tokens=6, gradnorm=True)
    result = evaluate_tofu(
        model, tiny_tokenizer, data, settings, retain_log=log, reference_model=make_model(9), name="tiny"
    )
    attacks = {f"mia_{name}" for name in ("loss", "min_k", "min_k_plus_plus", "zlib", "reference", "gradnorm")}
    forget = {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio", "forget_quality"}
    others = {"model_utility", "extraction_strength", "exact_memorization", "privleak"}
    assert set(result) == NINE | attacks | forget | others
    assert result.missing == {}
    assert all(math.isfinite(value) for value in result.values())
    assert result["model_utility"] == pytest.approx(m.model_utility([result[name] for name in NINE]))
    assert result.details["forget_quality"]["n"] == 5
    assert result.manifest["data"]["rows"]["forget"] == 5
    assert result.manifest["model"] == "tiny"


def test_metrics_equal_a_row_by_row_computation_with_full_logits(model, tiny_tokenizer, data):
    """The definitions of probability and truth ratio, spelled out for one forget row at a time."""
    result = evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(generate=False))

    def loss(question, answer):
        prompt = tiny_tokenizer(f"Question: {question}\nAnswer: ")["input_ids"]
        ids = [*tiny_tokenizer(f"Question: {question}\nAnswer: {answer}")["input_ids"], tiny_tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -np.mean([logp[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))])

    rows = data.sets["forget"]
    answers = np.array([loss(row["question"], row["answer"]) for row in rows])
    ratios = [
        np.exp(-np.mean([loss(row["question"], wrong) for wrong in row["perturbed_answer"]]))
        / (np.exp(-loss(row["question"], row["paraphrased_answer"])) + 1e-10)
        for row in rows
    ]
    assert result["forget_Q_A_Prob"] == pytest.approx(np.exp(-answers).mean(), rel=1e-5)
    assert [row["truth_ratio"] for row in result.per_item[:5]] == pytest.approx(ratios, rel=1e-5)
    assert result["forget_truth_ratio"] == pytest.approx(np.mean([min(r, 1 / (r + 1e-10)) for r in ratios]), rel=1e-5)


@pytest.mark.parametrize("mode", ["open-unlearning", "tofu-original"])
def test_results_do_not_depend_on_batch_size_or_padding_side(model, tiny_tokenizer, data, mode):
    budget = {"max_new_tokens": 6} if mode == "open-unlearning" else {"max_length": 70}
    results = [
        evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(mode=mode, **budget, batching=batching))
        for batching in (Batching(max_rows=1), Batching(max_rows=32), Batching(max_rows=5, padding_side="left"))
    ]
    for other in results[1:]:
        assert other.metrics == pytest.approx(results[0].metrics, rel=1e-5)
        assert [row.get("generation") for row in other.per_item] == [
            row.get("generation") for row in results[0].per_item
        ]
        assert other.manifest["hash"] == results[0].manifest["hash"]


def test_the_original_mode_uses_its_own_items_and_formulas(model, tiny_tokenizer, data):
    result = evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(mode="tofu-original", max_length=80))
    rows = [row for row in result.per_item if row["set"] == "real_authors"]
    correct, wrong = np.array([row["nll"] for row in rows]), np.array([row["perturbed_nll"] for row in rows])
    p, q = np.exp(-correct), np.exp(-wrong)
    assert result["ra_Q_A_Prob_normalised"] == pytest.approx((p / (p + q.sum(1))).mean(), rel=1e-12)
    x = np.exp(wrong.mean(1) - correct)
    assert result["ra_Truth_Ratio"] == pytest.approx(np.maximum(0, 1 - 1 / x).mean(), abs=1e-12)
    assert {"model_utility", "model_utility_arithmetic"} <= set(result)
    assert result.missing["mia_loss"] == "not part of tofu-original"


def test_the_original_mode_scores_at_most_300_rows(model, tiny_tokenizer, data):
    assert TofuSettings(mode="tofu-original").row_limit == 300
    assert TofuSettings(mode="tofu-original", limit=20).row_limit == 20
    assert TofuSettings().row_limit is None


def test_the_original_items_label_the_answer_tag_and_leave_no_room_for_eos_when_cut(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, QATemplate(), "tofu-original", 20, 200)
    tag = tiny_tokenizer("Answer:")["input_ids"]
    item = encoder.encode("Who?", "Ann")
    labelled = [label for label in item["labels"] if label != IGNORE]
    assert labelled[: len(tag)] == tag
    assert labelled[-1] == tiny_tokenizer.eos_token_id
    cut = encoder.encode("Who?", "Ann " * 30)
    assert len(cut["input_ids"]) == 20
    assert cut["labels"][-1] != tiny_tokenizer.eos_token_id


def test_the_original_prompts_keep_llama_tags_but_not_the_answer_tag(tiny_tokenizer):
    llama = QATemplate(user_start="[INST] ", user_end=" [/INST]", assistant_start="", assistant_end=" ")
    for template, expected in ((llama, "[INST] Who? [/INST]"), (QATemplate(), "Question: Who?\n")):
        encoder = Encoder(tiny_tokenizer, template, "tofu-original", 60, 200)
        ids, limit, truth = encoder.prompt("Who?", "Ann Dee", "rows")
        assert tiny_tokenizer.decode(ids) == expected
        assert limit == 60 - len(ids)
        assert truth.strip() == "Ann Dee"
    chat = QATemplate(chat_template=True)
    with pytest.raises(ConfigError, match="chat templates"):
        Encoder(tiny_tokenizer, chat, "tofu-original", 60, 200)


def test_without_a_retain_log_or_generation_the_result_says_what_is_missing_and_why(model, tiny_tokenizer, data):
    result = evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(generate=False, limit=2))
    assert "no retain model" in result.missing["forget_quality"]
    assert result.missing["model_utility"] == "6 of its 9 parts are there"
    assert "switched off" in result.missing["retain_Q_A_ROUGE"]
    assert len(result.per_item) == 2 * 5


def test_absent_sets_take_only_their_metrics_away(model, tiny_tokenizer, tofu_folder):
    for name in ("holdout10", "world_facts_perturbed"):
        (tofu_folder / f"{name}.json").unlink()
    rows = [json.loads(line) for line in (tofu_folder / "forget10_perturbed.json").read_text().splitlines()]
    plain = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    (tofu_folder / "forget10_perturbed.json").unlink()
    (tofu_folder / "forget10.json").write_text(json.dumps(plain))
    result = evaluate_tofu(model, tiny_tokenizer, load_tofu(tofu_folder), SHORT)
    assert "no holdout10" in result.missing["privleak"]
    assert "no forget10_perturbed" in result.missing["forget_quality"]
    assert "no world_facts_perturbed" in result.missing["wf_Truth_Ratio"]
    assert {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "ra_Truth_Ratio", "extraction_strength"} <= set(result)
    with pytest.raises(ConfigError, match="no perturbed answers"):
        result.retain_log()


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_result(model, tiny_tokenizer, data, tmp_path):
    full = evaluate_tofu(model, tiny_tokenizer, data, SHORT, out_dir=tmp_path / "full")
    lines = (tmp_path / "full" / "items.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "items.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"key": "torn')
    seen = []
    report = lambda stage, done, total: seen.append((stage, done, total))
    resumed = evaluate_tofu(model, tiny_tokenizer, data, SHORT, out_dir=tmp_path / "cut", report=report)
    assert resumed.metrics == pytest.approx(full.metrics, rel=1e-5)
    assert seen[0][1] > 1
    assert seen[-1][1] == seen[-1][2]
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert summary["metrics"] == pytest.approx(resumed.metrics)
    assert len((tmp_path / "cut" / "rows.jsonl").read_text().splitlines()) == len(resumed.per_item)


def test_the_output_of_another_model_is_refused(model, make_model, tiny_tokenizer, data, tmp_path):
    settings = TofuSettings(generate=False)
    evaluate_tofu(model, tiny_tokenizer, data, settings, out_dir=tmp_path)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(ConfigError, match="another model, data or setting"):
        evaluate_tofu(make_model(1), tiny_tokenizer, data, settings, out_dir=tmp_path)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_a_model_against_its_own_log_has_forget_quality_one(model, tiny_tokenizer, data, tmp_path):
    settings = TofuSettings(generate=False)
    path = evaluate_tofu(model, tiny_tokenizer, data, settings).retain_log().save(tmp_path / "log.json")
    log = RetainLog.load(path, forget="forget10", mode="open-unlearning")
    result = evaluate_tofu(model, tiny_tokenizer, data, settings, retain_log=log)
    assert result["forget_quality"] == 1.0
    assert result["privleak"] == pytest.approx(0.0, abs=1e-9)
    assert result.details["forget_quality"]["reference"] == str(path)


def test_a_limited_evaluation_compares_with_the_same_rows_of_the_log(model, tiny_tokenizer, data, log):
    result = evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(generate=False, limit=3), retain_log=log)
    assert result.details["forget_quality"]["n_reference"] == 3


def test_a_log_of_other_rows_another_split_or_mode_is_refused(model, tiny_tokenizer, data, log):
    settings = TofuSettings(generate=False)
    other = RetainLog(log.mode, log.forget, log.truth_ratio, log.aucs, tuple("abcde"))
    with pytest.raises(ConfigError, match="lacks 5 of the 5 forget rows"):
        evaluate_tofu(model, tiny_tokenizer, data, settings, retain_log=other)
    log_05 = RetainLog(log.mode, "forget05", log.truth_ratio)
    with pytest.raises(ConfigError, match="forget set 'forget05'"):
        evaluate_tofu(model, tiny_tokenizer, data, settings, retain_log=log_05)
    with pytest.raises(ConfigError, match="mode 'open-unlearning'"):
        evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(mode="tofu-original"), retain_log=log)


def test_published_retain_logs_are_read(tmp_path, load_fixture):
    ours = tmp_path / "TOFU_EVAL.json"
    rows = {str(i): {"score": float(i)} for i in reversed(range(11))}
    ours.write_text(json.dumps({"forget_truth_ratio": {"value_by_index": rows}, "mia_min_k": {"agg_value": 0.4}}))
    log = RetainLog.load(ours, forget="forget01", mode="open-unlearning")
    assert log.truth_ratio == tuple(map(float, range(11)))
    assert log.aucs == {"min_k": 0.4}
    data = load_fixture("eval/tofu_original_aggregate.json")
    logs = []
    for name in ("ckpt_logs", "retain_logs"):
        (tmp_path / name).write_text(json.dumps(data[name]))
        logs.append(RetainLog.load(tmp_path / name, forget="forget10", mode="tofu-original"))
    expected = data["aggregate_eval_stat.get_forget_quality"]["Forget Quality"]
    assert m.forget_quality(*(log.ratios_for(()) for log in logs)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", DataError), ("[]", DataError), ('{"x": 1}', DataError), ('{"forget_truth_ratio": {"a": 1}}', DataError)],
)
def test_an_unusable_retain_log_is_named(tmp_path, content, error):
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(error, match=r"log\.json"):
        RetainLog.load(path, forget="forget10", mode="open-unlearning")
    with pytest.raises(ConfigError, match="no such file"):
        RetainLog.load(tmp_path / "nothing.json", forget="forget10", mode="open-unlearning")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "muse"}, "mode='muse'"),
        ({"limit": 0}, "at least 1 row"),
        ({"mia_k": 0.0}, "share of the tokens"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TofuSettings(**change)


def test_a_question_that_fills_max_length_names_the_row(model, tiny_tokenizer, data):
    with pytest.raises(DataError, match=r"\(forget\), row 0, field 'answer': no answer token is left"):
        evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(max_length=10))


def test_rows_with_different_numbers_of_perturbed_answers_are_named(tofu_folder):
    path = tofu_folder / "retain_perturbed.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["perturbed_answer"].pop()
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"retain_perturbed.*row 2, field 'perturbed_answer'"):
        load_tofu(tofu_folder)


def test_an_unknown_forget_split_lists_what_is_there(tofu_folder):
    with pytest.raises(DataError, match=r"neither forget05_perturbed nor forget05.*retain_perturbed"):
        load_tofu(tofu_folder, forget="forget05")
    with pytest.raises(ConfigError, match="no forget split"):
        load_tofu(tofu_folder, forget="retain90")


def test_paraphrased_questions_can_be_asked(model, tiny_tokenizer, data):
    settings = TofuSettings(generate=False, question_key="paraphrased_question")
    with pytest.raises(DataError, match="paraphrased_question"):
        evaluate_tofu(model, tiny_tokenizer, data, settings)
    for name in ("forget", "retain"):
        for row in data.sets[name]:
            row["paraphrased_question"] = "By whom was it written?"
    changed = evaluate_tofu(model, tiny_tokenizer, data, settings)
    plain = evaluate_tofu(model, tiny_tokenizer, data, TofuSettings(generate=False))
    assert changed["forget_Q_A_Prob"] != plain["forget_Q_A_Prob"]
    # other batches, other rounding: equal to float32's last digits only
    assert changed["ra_Truth_Ratio"] == pytest.approx(plain["ra_Truth_Ratio"], rel=1e-5)


@pytest.mark.parametrize("forget", ["forget01", "forget05", "forget10"])
def test_the_real_files_load_with_their_published_counts(shared, forget):
    data = load_tofu(shared / "data" / "tofu", forget=forget)
    counts = {name: len(rows) for name, rows in data.sets.items()}
    expected = {"forget01": 40, "forget05": 200, "forget10": 400}[forget]
    assert counts == {"forget": expected, "retain": 400, "real_authors": 100, "world_facts": 117}
    assert "no holdout" in data.absent["holdout"]


def test_a_retain_log_of_another_template_is_said(model, tiny_tokenizer, data, log, caplog):
    settings = TofuSettings(generate=False)
    same = evaluate_tofu(model, tiny_tokenizer, data, settings, retain_log=log)
    assert "note" not in same.details["forget_quality"]
    other = TofuSettings(generate=False, template=QATemplate(user_start="Q: ", assistant_start="A: "))
    result = evaluate_tofu(model, tiny_tokenizer, data, other, retain_log=log)
    assert "another prompt template" in result.details["forget_quality"]["note"]
    assert "another prompt template" in caplog.text
