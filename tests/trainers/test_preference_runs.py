"""Whole runs: resume, displacement guards, D²O's samples and references, bad input, U2A's weights, REDI's stages."""

import json

import pytest
import torch
from preference_tiny import LISTS, ROWS, SAMPLED, make_trainer, naive_logps, shifted_model
from unlearn_tiny import FORGET, history, make_model, make_tokenizer

from negpo.errors import ConfigError, DataError
from negpo.objectives import u2a_update_weights
from negpo.trainers import SCRIPTS, NPOTrainer, RMUTrainer
from negpo.trainers._run.checkpoint import provenance
from negpo.trainers.u2a import U2A, WEIGHT, weighted, weights_of

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, "lr_scheduler_type": "linear"}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


RESUMED = {
    "redi": {},
    "dpo": {"reference": "model"},
    "d2o": {"max_new_tokens": 4},
    "d2o refreshed": {"max_new_tokens": 4, "samples": "refresh", "refresh_steps": 2},
}


@pytest.mark.parametrize("case", RESUMED)
def test_four_steps_equal_three_steps_and_a_resumed_rest(case, tmp_path):
    from negpo.trainers import UtilityFloorCallback

    class Interrupt(UtilityFloorCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    method = case.split()[0]
    settings = ADAM | RESUMED[case] | {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "batch": (2, 1)}
    whole = make_trainer(method, tmp_path / "whole", **settings)
    whole.train()
    stop = [Interrupt(lambda model: 0, 0, every=99)]
    make_trainer(method, tmp_path / "parts", callbacks=stop, **settings).train()
    resumed = make_trainer(method, tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert history(whole, "loss") == history(resumed, "loss")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_checkpoint_of_other_rows_is_refused(tmp_path):
    settings = ADAM | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer("redi", tmp_path, **settings).train()
    with pytest.raises(ConfigError, match="preference rows differ"):
        make_trainer("redi", tmp_path, train_dataset=ROWS[:4], **settings).train(resume_from_checkpoint=True)


def test_both_signs_and_their_margin_are_logged(tmp_path):
    trainer = make_trainer("dpo", tmp_path, batch=(6, 1), max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    model = make_model()
    for name in ("chosen", "rejected"):
        logps = [naive_logps(model, row["prompt"], row[name]) for row in ROWS]
        assert entry[f"{name}/logp"] == pytest.approx(torch.cat(logps).mean().item(), rel=1e-5)
        assert entry[f"{name}/sequence_logp"] == pytest.approx(sum(x.sum().item() for x in logps) / 6, rel=1e-5)
        assert entry[f"{name}/length"] == sum(map(len, logps)) / 6
        assert entry[f"{name}/log_ratio"] == pytest.approx(0.0, abs=1e-4)
    assert entry["chosen/grad_weight"] < 0 < entry["rejected/grad_weight"]
    assert {"margin/logp", "margin/log_ratio", "margin/accuracy", "loss/objective"} <= set(entry)
    sums = [[naive_logps(model, row["prompt"], row[name]).sum() for name in ("chosen", "rejected")] for row in ROWS]
    assert entry["ranking/accuracy"] == pytest.approx(sum(float(w >= r) for w, r in sums) / 6)


def test_training_stops_when_the_chosen_answers_sink_below_the_floor(tmp_path):
    settings = {"alpha": 3.0, "learning_rate": 0.1, "max_steps": 40, "batch": (6, 1)}
    trainer = make_trainer("redi", tmp_path, chosen_logp_floor=-7.0, floor_patience=2, **settings)
    trainer.train()
    logged = history(trainer, "chosen/logp")
    assert trainer.state.global_step < 40
    assert logged[-1] < -7.0
    assert logged[-2] < -7.0
    reasons = [getattr(callback, "reason", None) for callback in trainer.callback_handler.callbacks]
    assert any(reason and "below -7.000" in reason for reason in reasons)


def test_a_loss_that_is_not_finite_names_the_rows(tmp_path):
    from negpo.errors import TrainingStopped

    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step 1, row\(s\)"):
        make_trainer("redi", tmp_path, model=model, max_steps=1).train()


# ---- D²O ------------------------------------------------------------------------------------------------------------


def test_samples_are_drawn_once_and_kept_on_disk(tmp_path, monkeypatch):
    from negpo.trainers._preference import samples

    drawn = []
    original = samples.draw
    monkeypatch.setattr(samples, "draw", lambda *a, **k: drawn.append(1) or original(*a, **k))
    settings = {"max_steps": 1, "max_new_tokens": 4, "num_samples": 3, "sample_cache_dir": str(tmp_path / "samples")}
    first = make_trainer("d2o", tmp_path / "a", **settings)
    first.train()
    second = make_trainer("d2o", tmp_path / "b", **settings)
    second.train()
    assert len(drawn) == 1
    assert history(first, "loss") == history(second, "loss")
    assert [group.signs for group in second.train_dataset.groups] == [[-1, 0, 0, 0]] * len(ROWS)
    lines = next((tmp_path / "samples").glob("*.jsonl")).read_text().splitlines()
    (tmp_path / "samples").joinpath(next((tmp_path / "samples").glob("*.jsonl")).name).write_text("\n".join(lines[:7]))
    third = make_trainer("d2o", tmp_path / "c", **settings)  # an interrupted draw is continued with the same samples
    third.train()
    assert third.train_dataset.rows == first.train_dataset.rows


def test_another_reference_of_the_samples_alone_is_taken_by_default(tmp_path):
    trainer = make_trainer(
        "d2o", tmp_path, sample_ref_model=make_model(3), train_dataset=SAMPLED, samples="offline", max_steps=1
    )
    trainer.train()
    assert abs(history(trainer, "samples/log_ratio")[0]) > 0.1
    assert abs(history(trainer, "rejected/log_ratio")[0]) < 1e-4


def test_refreshed_samples_belong_to_the_process_that_drew_them(tmp_path):
    common = {"samples": "refresh", "refresh_steps": 2, "max_new_tokens": 4, "num_samples": 2}
    common |= {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer("d2o", tmp_path, **common).train()
    assert (tmp_path / "checkpoint-1" / "d2o_samples_0.json").is_file()
    assert provenance(tmp_path / "checkpoint-1")["number of processes"] == 1


def test_prefixes_change_what_is_sampled_but_not_what_is_trained(tmp_path):
    settings = {"max_steps": 1, "max_new_tokens": 4, "num_samples": 3}
    plain = make_trainer("d2o", tmp_path / "a", **settings)
    plain.train()
    prefixed = make_trainer("d2o", tmp_path / "b", sampling_prefixes=["Be kind. ", "Be brief. "], **settings)
    prefixed.train()
    for one, other in zip(plain.train_dataset.groups, prefixed.train_dataset.groups, strict=True):
        assert one.prompt_ids == other.prompt_ids
        assert len(other) == 4
    assert plain.train_dataset.rows != prefixed.train_dataset.rows


@pytest.mark.parametrize("reference", ["cache", "model"])
def test_samples_and_rejected_answers_may_have_different_references(reference, tmp_path):
    helpful, harmful = shifted_model(), make_model(3)
    trainer = make_trainer(
        "d2o", tmp_path, ref_model=helpful, sample_ref_model=harmful, train_dataset=SAMPLED, samples="offline",
        reference=reference, batch=(6, 1), max_steps=1,
    )  # fmt: skip
    trainer.train()
    policy = make_model()

    def ratio(model, prompt, answer):
        return (naive_logps(policy, prompt, answer) - naive_logps(model, prompt, answer)).sum().item()

    samples = [sum(ratio(harmful, row["prompt"], a) for a in row["samples"]) / len(row["samples"]) for row in SAMPLED]
    rejected = [ratio(helpful, row["prompt"], row["rejected"]) for row in SAMPLED]
    assert history(trainer, "loss/mean_sample_log_ratio")[0] == pytest.approx(sum(samples) / 6, rel=1e-4)
    assert history(trainer, "loss/mean_rejected_log_ratio")[0] == pytest.approx(sum(rejected) / 6, rel=1e-4)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_a_prompt_with_one_sign_is_named_or_dropped_where_two_are_needed(tmp_path):
    rows = [*ROWS, {"prompt": "Only bad? ", "rejected": "Yes."}]
    with pytest.raises(DataError, match="train_dataset, row 6: the prompt has no preferred answer and DPOTrainer"):
        make_trainer("dpo", tmp_path, train_dataset=rows)
    trainer = make_trainer("dpo", tmp_path, train_dataset=rows, bad_rows="drop")
    assert len(trainer.train_dataset) == len(ROWS)
    assert trainer.report.counts["prompts without a preferred answer"] == 1
    assert len(make_trainer("d2o", tmp_path, train_dataset=rows).train_dataset) == len(rows)  # needs negatives only


def test_an_answer_lost_to_a_length_limit_takes_its_pair_along_and_is_counted(tmp_path):
    trainer = make_trainer("dpo", tmp_path, max_completion_length=20, overlong="drop")
    assert len(trainer.train_dataset) < len(ROWS)
    assert any("prompts without a" in line for line in trainer.report.lines())


BAD_SETTINGS = {
    "ref_model would be ignored": ("redi", {"ref_model": "x"}),
    "alpha is -1": ("redi", {"alpha": -1}),
    "nll_coeff needs chosen": ("d2o", {"nll_coeff": 1.0}),
    "samples=refresh scores new": ("d2o", {"samples": "refresh", "reference": "cache"}),
    "overlong is 'cut'": ("dpo", {"overlong": "cut"}),
    "chosen_logp_floor is 1": ("dpo", {"chosen_logp_floor": 1}),
    "choose one of plain, detached": ("aft", {"variant": "loose"}),
    "at least two prompts": ("kto", {"train_dataset": ROWS[:1]}),
}


@pytest.mark.parametrize("words", BAD_SETTINGS)
def test_a_setting_that_cannot_be_meant_is_refused(words, tmp_path):
    method, settings = BAD_SETTINGS[words]
    with pytest.raises(ConfigError, match=words):
        make_trainer(method, tmp_path, **settings)


def test_samples_in_the_rows_must_be_asked_for(tmp_path):
    with pytest.raises(DataError, match="row 0: the row brings samples; set samples=offline"):
        make_trainer("d2o", tmp_path, train_dataset=SAMPLED)


def test_scores_outside_the_unit_interval_are_named_and_win_rates_accept_them(tmp_path):
    rows = [row | {"scores": [7.0, 2.0, 3.5]} for row in LISTS]
    with pytest.raises(DataError, match=r"row 0, field 'scores'.*labels=win_rate"):
        make_trainer("lipo", tmp_path, train_dataset=rows)
    trainer = make_trainer("lipo", tmp_path, train_dataset=rows, labels="win_rate")
    assert trainer.train_dataset.groups[0].scores == [1.0, 0.0, 0.5]


def test_pairs_first_keeps_one_answer_of_each_sign(tmp_path):
    rows = [{"prompt": "P? ", "chosen": ["a", "b"], "rejected": ["c", "d", "e"]}]
    assert len(make_trainer("redi", tmp_path, train_dataset=rows, pairs="first").train_dataset.rows) == 2
    assert len(make_trainer("redi", tmp_path, train_dataset=rows).train_dataset.rows) == 5


# ---- U2A ------------------------------------------------------------------------------------------------------------


def alignment_loss(stage, model):
    from negpo.trainers._preference.data import PreferenceDataset, collate

    items = [PreferenceDataset(stage._groups, 0)[0, i] for i in range(len(stage._groups))]
    scored = stage._score(model, collate(items, 1)["rows"])
    margin = (scored.logps - scored.ref_logps) * scored.mask
    chosen, rejected = (margin.sum(1)[scored.sign == sign] for sign in (1, -1))
    return -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()


def test_a_score_is_the_finite_difference_of_the_alignment_loss_along_the_row():
    stage = U2A(make_tokenizer(), ROWS, keep=3)
    model = make_model(0, dtype=torch.float64)
    stage.select(model, FORGET)
    scores = stage.scores(model, FORGET)
    step = 1e-4
    for index in (0, 3):
        moved = make_model(0, dtype=torch.float64)
        gradient = stage._row_gradient(moved, list(moved.parameters()), stage._encode(FORGET)[index])
        before = alignment_loss(stage, moved).item()
        with torch.no_grad():
            start = 0
            for parameter in moved.parameters():
                size = parameter.numel()
                parameter -= step * gradient[start : start + size].view_as(parameter)
                start += size
        slope = (alignment_loss(stage, moved).item() - before) / step
        assert slope == pytest.approx(-scores[index].item(), rel=2e-2)


@pytest.mark.parametrize("sign", ["descent", "released"])
def test_selection_keeps_the_largest_scores_and_reweighting_follows_the_sign(sign):
    model = make_model()
    stage = U2A(make_tokenizer(), ROWS, keep=4, sign=sign, eta=5.0)
    kept = stage.select(model, FORGET)
    scores = stage.scores(model, FORGET)
    assert [row["question"] for row in kept] == [FORGET[i]["question"] for i in sorted(scores.topk(4).indices.tolist())]
    again = weights_of(stage.reweight(model, kept))
    assert sum(again) == pytest.approx(4)
    expected = u2a_update_weights(torch.ones(4, dtype=torch.float64), stage.scores(model, kept), eta=5.0, sign=sign)
    assert again == pytest.approx(expected.tolist())


def test_weighted_rows_give_the_gradient_of_the_weighted_loss(tmp_path):
    from unlearn_tiny import make_trainer as make_unlearner

    settings = {"retain_loss": "none", "batch": (6, 1), "max_steps": 1}
    row_weights = [2.0, 0.0, 1.0, 0.5, 0.0, 2.5]
    start = weights(make_unlearner("npo", tmp_path / "start", **settings))
    moves = []
    for index in range(len(FORGET)):
        alone = make_unlearner("npo", tmp_path / f"{index}", train_dataset=[FORGET[index]], **settings)
        alone.train()
        moves.append({name: value - start[name] for name, value in weights(alone).items()})
    from negpo.trainers import NPOConfig

    args = NPOConfig(
        output_dir=str(tmp_path / "weighted"), per_device_train_batch_size=6, learning_rate=1e-2, optim="sgd",
        max_grad_norm=0.0, lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True, use_cpu=True,
        retain_loss="none", max_steps=1,
    )  # fmt: skip
    trainer = weighted(NPOTrainer)(
        make_model(), args, FORGET, processing_class=make_tokenizer(), row_weights=row_weights
    )
    trainer.train()
    for name, value in weights(trainer).items():
        expected = sum(weight * move[name] for weight, move in zip(row_weights, moves, strict=True)) / 6
        assert torch.allclose(value - start[name], expected, atol=1e-6), name


def test_u2a_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="cannot be weighted"):
        weighted(RMUTrainer)
    with pytest.raises(DataError, match="no prompt has a chosen and a rejected"):
        U2A(make_tokenizer(), SAMPLED)
    with pytest.raises(ConfigError, match="reweight before select"):
        U2A(make_tokenizer(), ROWS).reweight(make_model(), [FORGET[0] | {WEIGHT: 1.0}])


# ---- recipes and the command ----------------------------------------------------------------------------------------


def recipes():
    from negpo.configs import CONFIGS

    return sorted(path for method in SCRIPTS for path in CONFIGS.glob(f"recipes/{method}/*.yaml") if is_ours(method))


def is_ours(method):
    return SCRIPTS[method] == "negpo.trainers._script.preference"


@pytest.mark.parametrize("path", recipes(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_becomes_a_config_and_names_its_sources(path, tmp_path):
    from negpo.trainers._script import parse

    method = "sft" if path.stem.endswith("stage1") else path.parent.name
    if path.stem.startswith("lab"):
        pytest.skip("lab recipes are used with flags")
    script, args = parse(method, ["--config", str(path), "--bf16", "false", "--output_dir", str(tmp_path)])
    assert script.dataset
    assert args.learning_rate <= 1e-4
    for word in ("Paper: arXiv", "Sources: ", "Data: ", "Expected", "Deviations: "):
        assert word in path.read_text()


def test_one_command_runs_both_stages_and_a_finished_first_stage_is_not_repeated(tmp_path, monkeypatch, caplog):
    from negpo.trainers._script import run_training

    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = f"dataset: {tmp_path}/pairs.jsonl\nuse_cpu: true\nmax_steps: 1\nsave_strategy: 'no'\n"
    model = f"model_name_or_path: {tmp_path}/base\n"
    (tmp_path / "one.yaml").write_text(f"{common}{model}output_dir: {tmp_path}/one\nlearning_rate: 0.01\n")
    (tmp_path / "two.yaml").write_text(
        f"{common}{model}output_dir: {tmp_path}/two\nstage1_config: {tmp_path}/one.yaml\n"
    )
    command = ["--config", str(tmp_path / "two.yaml"), "--stages", "both"]
    run_training("redi", command)
    record = json.loads((tmp_path / "two" / "negpo_train.json").read_text())
    assert record["script"]["model_name_or_path"] == str(tmp_path / "one")
    before = (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns
    run_training("redi", command)
    assert (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns == before


def test_stages_belong_to_redi(tmp_path):
    from negpo.trainers._script import parse

    with pytest.raises(ConfigError, match="stages=both belongs to redi"):
        parse("dpo", ["--model_name_or_path", "m", "--dataset", "d", "--stages", "both", "--output_dir", str(tmp_path)])
