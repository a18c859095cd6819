"""The MUSE harness: the reference's numbers, both modes spelled out naively, refusals, resume and the command."""

import argparse
import json
import math
import zlib
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
import torch

from negpo.cli.eval_muse import add_muse_parser, run_muse
from negpo.errors import ConfigError, DataError
from negpo.eval import metrics as m
from negpo.eval import muse_items
from negpo.eval.muse import MuseSettings, RetainAuc, evaluate_muse, load_muse
from negpo.eval.muse_metrics import SHARES, original_aucs, original_scores
from negpo.eval.scoring import Batching

ORIGINAL = MuseSettings(mode="muse-original")
OURS = MuseSettings(max_length=24)
SCORES_ONLY = tuple(replace(settings, generate=False) for settings in (ORIGINAL, OURS))


@pytest.fixture(scope="module", autouse=True)
def short_continuations():
    """Greedy steps are what takes time here: 16 and 8 new tokens instead of 128 and 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muse_items, "VERBMEM_TOKENS", 16)
        patch.setattr(muse_items, "KNOWMEM_TOKENS", 8)
        yield


LENGTHS = muse_items.VERBMEM_TOKENS, muse_items.KNOWMEM_TOKENS  # before they are shortened


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of MUSE's layout with made-up texts: a few rows per set, two in-context examples."""
    root = tmp_path_factory.mktemp("world") / "muse"

    def qa(name, count):
        return [
            {"question": f"Which {name} door is {i}?", "answer": f"Door {name[:3]} {'e' * i}."} for i in range(count)
        ]

    files = {
        "verbmem/forget": [
            {"prompt": f"The village {i} lies", "gt": f"between hill {i} and the sea."} for i in range(3)
        ],
        "privleak/forget": [f"Forget passage {i}, told by Ann {'dee ' * i}." for i in range(4)],
        "privleak/retain": [f"Retain passage {i}, kept by Bob." for i in range(3)],
        "privleak/holdout": [f"Forget pages {i}, told by Ann {'Dee ' * (3 - i)}." for i in range(4)],
    }
    for name in ("forget_qa", "retain_qa"):
        files |= {f"knowmem/{name}": qa(name, 2), f"knowmem/{name}_icl": qa(f"{name} example", 2)}
    for name, rows in files.items():
        path = root / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def data(world):
    return load_muse("news", world)


@pytest.fixture
def folder(world, tmp_path):
    """A copy that a test may spoil."""
    return copytree(world, tmp_path / "muse")


@pytest.fixture(scope="module")
def results(model, tiny_tokenizer, data, tmp_path_factory):
    """Result and folder of both modes; generation is what takes time here, so it is done once."""
    root = tmp_path_factory.mktemp("results")
    return {
        settings.mode: (evaluate_muse(model, tiny_tokenizer, data, settings, out_dir=root / settings.mode), root)
        for settings in (ORIGINAL, OURS)
    }


def rewrite(folder, name, change):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def logps(model, ids):
    """Log-probs of ids[1:] from full logits, float64."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([table[t - 1, ids[t]].item() for t in range(1, len(ids))])


def continuation(model, tokenizer, prompt, count):
    """Greedy, one prompt, no cache, no padding."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


# --- the reference implementation's numbers


def fixture_losses(case, text):
    ids = [1] + [ord(letter) % 17 + 2 for letter in text]
    table = next(np.array(entry["logits"]) for entry in case["logits_by_ids"] if entry["ids"] == ids)
    logp = table - np.log(np.exp(table).sum(-1, keepdims=True))
    return np.array([logp[t - 1, ids[t]] for t in range(1, len(ids))])


def test_scores_aucs_and_privleak_match_the_original_evaluator(load_fixture):
    case = load_fixture("eval/muse_privleak.json")
    scores = {}
    for name, texts in case["texts"].items():
        rows = []
        for text in texts:
            values, lower = fixture_losses(case, text), fixture_losses(case, text.lower())
            shares = [m.muse_min_k(values, share) for share in SHARES]
            rows.append({"nll": -values.mean(), "lower_nll": -lower.mean(), "muse_min_k": shares})
        scores[name] = original_scores(rows, texts)
        for key, values in scores[name].items():
            expected = [float(entry[key]) for entry in case["per_text"][name]]
            np.testing.assert_allclose(values, expected, rtol=1e-6)
    aucs = original_aucs(scores)
    assert aucs.keys() == case["auc"].keys()
    for name, expected in case["auc"].items():
        assert math.isnan(aucs[name]) if expected is None else aucs[name] == pytest.approx(expected, rel=1e-12)
    for corpus, constant in case["auc_retrain_constants"].items():
        value = m.muse_privleak(aucs["forget_holdout_Min-40%"], constant)
        assert value == pytest.approx(case[f"privleak_vs_{corpus}"], rel=1e-12)


def test_rouge_without_stemmer_matches_the_original_logger(load_fixture):
    case = load_fixture("eval/muse_rouge_logger.json")
    names = {"rougeL": "rougeL_f1", "rougeL_recall": "rougeL_recall", "rouge1": "rouge1_f1", "rouge1_recall": None}
    totals = dict.fromkeys(names, 0.0)
    for (target, response), expected in zip(case["pairs"], case["history"], strict=True):
        scores = m.rouge_scores(target, response, stemmer=False)
        for name, own in names.items():
            assert scores[own or name] == pytest.approx(expected[name], rel=1e-12)
            totals[name] += expected[name] / len(case["pairs"])
    for name, value in totals.items():
        assert case["agg"][f"mean_{name}"] == pytest.approx(value, rel=1e-12)


# --- both modes, one row at a time with full logits


def test_the_original_mode_equals_a_row_by_row_computation(model, tiny_tokenizer, data, results):
    result, _ = results["muse-original"]
    ids = lambda text: tiny_tokenizer(text)["input_ids"]

    scores = {}
    for name in ("forget", "holdout"):
        texts = [row["text"] for row in data.sets[name]]
        losses = [logps(model, ids(text)) for text in texts]
        scores[name] = {
            "PPL": np.array([-values.mean() for values in losses]),
            "PPL/lower": np.array(
                [values.mean() / logps(model, ids(t.lower())).mean() for values, t in zip(losses, texts, strict=True)]
            ),
            "PPL/zlib": np.array(
                [-v.mean() / len(zlib.compress(t.encode())) for v, t in zip(losses, texts, strict=True)]
            ),
            "Min-40%": np.array([-np.sort(values)[: int(len(values) * 0.4)].mean() for values in losses]),
        }
    for name in scores["forget"]:
        # the second set (holdout) as positives, ranked by how much it looks like training data
        pairs = [(-h > -f) + 0.5 * (h == f) for f in scores["forget"][name] for h in scores["holdout"][name]]
        assert result.details["auc"][f"forget_holdout_{name}"] == pytest.approx(np.mean(pairs), abs=1e-12)
    auc = result.details["auc"]["forget_holdout_Min-40%"]
    assert result["privleak"] == pytest.approx(100 * (auc - 0.4772) / 0.4772, rel=1e-12)

    rouge = []
    for row in data.sets["verbmem"]:
        text = continuation(model, tiny_tokenizer, row["prompt"], 16)
        truth = tiny_tokenizer.decode(ids(row["gt"])[:16])
        rouge.append(m.rouge_scores(truth, text, stemmer=False)["rougeL_f1"])
    assert result["forget_verbmem_ROUGE"] == pytest.approx(100 * np.mean(rouge), abs=1e-9)

    rouge = []
    shots = "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in data.sets["retain_qa_icl"])
    for row in data.sets["retain_qa"]:
        text = continuation(model, tiny_tokenizer, f"{shots}Question: {row['question']}\nAnswer: ", 8)
        for stop in ("\n\n", "\nQuestion", "Question:"):
            text = text.split(stop)[0]
        rouge.append(m.rouge_scores(row["answer"], text, stemmer=False)["rougeL_f1"])
    assert result["retain_knowmem_ROUGE"] == pytest.approx(100 * np.mean(rouge), abs=1e-9)
    assert result.missing["extraction_strength"] == "not part of muse-original"


def test_continuations_have_the_published_lengths():
    assert LENGTHS == (128, 32)


def test_the_open_unlearning_mode_cuts_texts_and_leaves_the_last_token_out(model, tiny_tokenizer, data, results):
    result, _ = results["open-unlearning"]
    values = {}
    for name in ("forget", "holdout"):
        # without a bos token the empty prefix has no ids, so the cut is at max_length tokens
        losses = [logps(model, tiny_tokenizer(row["text"])["input_ids"][:24])[:-1] for row in data.sets[name]]
        values[name] = [-np.sort(lp)[: max(1, int(len(lp) * 0.4))].mean() for lp in losses]
    pairs = [(h > f) + 0.5 * (h == f) for f in values["forget"] for h in values["holdout"]]
    auc = np.mean(pairs)
    assert result["mia_min_k"] == pytest.approx(auc, abs=1e-12)
    assert result["privleak"] == pytest.approx(100 * ((1 - auc) - 0.5) / 0.5, rel=1e-6)
    assert "assumed" in result.details["privleak"]["retain_source"]

    strengths = []
    for row in data.sets["verbmem"]:
        prefix = tiny_tokenizer(row["prompt"])["input_ids"]
        ids = tiny_tokenizer(f"{row['prompt']} {row['gt']}")["input_ids"][: len(prefix) + 24]
        with torch.no_grad():
            hits = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        agree = [hits[t - 1] == ids[t] for t in range(len(prefix), len(ids) - 1)]
        k = next((k for k in range(len(agree)) if all(agree[k:])), len(agree) - 1)
        strengths.append(1 - k / len(agree))
    assert result["extraction_strength"] == pytest.approx(np.mean(strengths), abs=1e-12)


@pytest.mark.parametrize("settings", [ORIGINAL, OURS], ids=lambda settings: settings.mode)
def test_results_do_not_depend_on_the_batch_size(model, tiny_tokenizer, data, results, settings):
    result, _ = results[settings.mode]
    for batching in (Batching(max_rows=1), Batching(max_rows=8, padding_side="left")):
        other = evaluate_muse(model, tiny_tokenizer, data, replace(settings, batching=batching))
        assert other.metrics == pytest.approx(result.metrics, rel=1e-5)
        assert [row.get("generation") for row in other.per_item] == [row.get("generation") for row in result.per_item]
        assert other.manifest["hash"] == result.manifest["hash"]


def test_every_number_has_an_interval_that_contains_it(results):
    for result, _ in results.values():
        for name, value in result.items():
            low, high = result.details[name]["interval"]
            assert low - 1e-9 <= value <= high + 1e-9, name
    assert set(results["open-unlearning"][0].details["mia_loss"]["tpr_at_fpr"]) == {"0.01", "0.001"}
    assert len(results["muse-original"][0].details["auc"]) == 3 * 3 * 10


# --- what is missing, empty or wrong


def test_a_missing_holdout_takes_privleak_away_and_says_so(model, tiny_tokenizer, folder):
    (folder / "privleak" / "holdout.json").unlink()
    for settings in SCORES_ONLY:
        result = evaluate_muse(model, tiny_tokenizer, load_muse("news", folder), settings)
        assert "no privleak/holdout" in result.missing["privleak"]
        assert "generation was switched off" in result.missing["forget_verbmem_ROUGE"]
        assert "privleak" not in result
        with pytest.raises(ConfigError, match="no AUC to compare with"):
            result.retain_auc()


def test_empty_texts_are_left_out_and_counted(model, tiny_tokenizer, folder):
    rewrite(folder, "privleak/forget", lambda rows: ["", *rows, "  "])
    data = load_muse("news", folder)
    assert len(data.sets["forget"]) == 4
    result = evaluate_muse(model, tiny_tokenizer, data, SCORES_ONLY[1])
    assert result.details["empty_rows"] == {"forget": 2}
    assert result.manifest["data"]["empty"] == {"forget": 2}
    rewrite(folder, "privleak/forget", lambda rows: ["", ""])
    with pytest.raises(DataError, match="all 2 rows are empty"):
        load_muse("news", folder)


def test_forget_texts_in_the_holdout_are_counted_and_equal_sets_refused(model, tiny_tokenizer, folder):
    rewrite(folder, "privleak/holdout", lambda rows: [*rows, "Forget passage 0, told by Ann ."])
    result = evaluate_muse(model, tiny_tokenizer, load_muse("news", folder), SCORES_ONLY[1])
    assert result.details["privleak"]["overlap"] == 1
    forget = json.loads((folder / "privleak" / "forget.json").read_text())
    rewrite(folder, "privleak/holdout", lambda rows: [*rows, *forget])
    with pytest.raises(DataError, match="every forget text is a holdout text"):
        load_muse("news", folder)


def test_a_row_without_its_field_is_named(folder):
    rewrite(folder, "verbmem/forget", lambda rows: [rows[0], {"prompt": "x"}])
    with pytest.raises(DataError, match=r"verbmem/forget.*row 1, field 'gt'.*no such field"):
        load_muse("news", folder)
    with pytest.raises(ConfigError, match="corpus='poems'"):
        load_muse("poems", folder)


def test_a_model_whose_losses_are_not_finite_gets_no_privleak(make_model, tiny_tokenizer, data):
    broken = make_model(0)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    for settings in SCORES_ONLY:
        result = evaluate_muse(broken, tiny_tokenizer, data, settings)
        assert "not finite" in result.missing["privleak"]
    assert "not finite" in result.missing["extraction_strength"]


def test_texts_beyond_the_context_are_refused_before_scoring(make_model, tiny_tokenizer, folder):
    rewrite(folder, "privleak/forget", lambda rows: [*rows, "word " * 600])
    with pytest.raises(ConfigError, match="longer than the model's context of 512 tokens"):
        evaluate_muse(make_model(0), tiny_tokenizer, load_muse("news", folder), SCORES_ONLY[0])


def test_text_too_short_for_min_40_is_counted(model, tiny_tokenizer, folder):
    rewrite(folder, "privleak/forget", lambda rows: [*rows, "zq"])
    result = evaluate_muse(model, tiny_tokenizer, load_muse("news", folder), SCORES_ONLY[0])
    assert result.missing["privleak"] == "1 texts are too short: 40 % of their tokens is not one token"


# --- the retain side, resume, the command


def test_a_model_against_its_own_auc_has_privleak_zero(model, tiny_tokenizer, data, tmp_path):
    for settings in SCORES_ONLY:
        own = evaluate_muse(model, tiny_tokenizer, data, settings).retain_auc().save(tmp_path / "log.json")
        retain = RetainAuc.load(own, mode=settings.mode, corpus="news")
        result = evaluate_muse(model, tiny_tokenizer, data, settings, retain=retain)
        assert result["privleak"] == pytest.approx(0, abs=1e-6)
        other = "muse-original" if settings.mode == "open-unlearning" else "open-unlearning"
        with pytest.raises(ConfigError, match=f"has mode '{settings.mode}'"):
            RetainAuc.load(own, mode=other, corpus="news")


def test_published_logs_of_open_unlearning_are_read(tmp_path):
    path = tmp_path / "MUSE_EVAL.json"
    path.write_text(json.dumps({"mia_min_k": {"agg_value": 0.47, "forget": {}}}))
    assert RetainAuc.load(path, mode="open-unlearning", corpus="books").auc == 0.47
    path.write_text(json.dumps({"other": 1}))
    with pytest.raises(DataError, match="neither a retain log of ours"):
        RetainAuc.load(path, mode="open-unlearning", corpus="books")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        RetainAuc("open-unlearning", "news", 47.0, "--retain-auc")


@pytest.mark.parametrize("settings", [ORIGINAL, OURS], ids=lambda settings: settings.mode)
def test_an_interrupted_evaluation_goes_on_and_gives_the_same_result(
    model, tiny_tokenizer, data, results, tmp_path, settings
):
    full, root = results[settings.mode]
    lines = (root / settings.mode / "items.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "items.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"key": "torn')
    resumed = evaluate_muse(model, tiny_tokenizer, data, settings, out_dir=tmp_path / "cut")
    assert resumed.metrics == pytest.approx(full.metrics, rel=1e-5)
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["missing"] == resumed.missing


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_muse_parser(parser.add_subparsers())
    return parser.parse_args(["muse", "--corpus", "news", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoints(make_model, tiny_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("first", "second", "retain")):
        make_model(seed).save_pretrained(root / name)
        tiny_tokenizer.save_pretrained(root / name)
    return root


def test_the_command_measures_the_retain_model_first(checkpoints, folder, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--data", folder, "--no-generate", "--retain-model", checkpoints / "retain", "--out", out]
    assert run_muse(parse("--model", checkpoints / "first", *flags)) == 0
    assert "TPR at FPR" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["details"]["privleak"]["retain_source"] == str(checkpoints / "retain")
    assert json.loads((out / "retain_log.json").read_text())["auc"] == summary["details"]["privleak"]["retain_auc"]


def test_checkpoints_of_folds_become_a_table_and_a_picture(checkpoints, folder, tmp_path, capsys):
    folds = [checkpoints / "first", checkpoints / "second"]
    assert run_muse(parse("--checkpoints", *folds, "--data", folder, "--limit", 1, "--out", tmp_path)) == 0
    assert "retain_knowmem_ROUGE against the fold" in capsys.readouterr().out
    rows = json.loads((tmp_path / "folds.json").read_text())
    assert [row["fold"] for row in rows] == [1, 2]
    summary = json.loads((tmp_path / "fold_2" / "summary.json").read_text())
    assert rows[1]["retain_knowmem_ROUGE"] == summary["metrics"]["retain_knowmem_ROUGE"]
    assert (tmp_path / "folds.png").stat().st_size > 1000


def test_contradictions_are_refused_before_a_model_is_loaded(checkpoints, folder, tmp_path, capsys):
    nobody = ["--model", "nobody/nothing", "--out", tmp_path, "--data"]
    for match, flags in {
        "no such file": [*nobody, folder, "--retain-log", tmp_path / "none.json"],
        "neither verbmem": [*nobody, tmp_path],
        "nothing was unlearned": [
            "--model",
            checkpoints / "first",
            "--target",
            checkpoints / "first",
            "--out",
            tmp_path,
        ],
        "names a checkpoint twice": ["--checkpoints", "a", "a", "--out", tmp_path],
    }.items():
        with pytest.raises((ConfigError, DataError), match=match):
            run_muse(parse(*flags))
    with pytest.raises(SystemExit):
        parse(*nobody, folder, "--retain-auc", 3)
    assert "3 is not a number that is at least 0 and at most 1" in capsys.readouterr().err


def test_the_schema_samples_load(shared):
    for corpus in ("news", "books"):
        data = load_muse(corpus, shared / "data" / "schema_samples" / f"muse_{corpus}")
        assert data.absent == {}
        assert set(data.sets) >= {"verbmem", "forget_qa", "retain_qa_icl", "holdout"}
