"""What an audit refuses before a model is loaded, and what it names in its report instead."""

import json
import shutil
from dataclasses import replace

import pytest

from negpo.cli import audit as command
from negpo.cli import build_parser
from negpo.errors import ConfigError, DataError
from negpo.eval.audit.data import load_audit_data
from negpo.eval.audit.run import missing_metrics, run_audit
from negpo.eval.audit.settings import AuditSettings


def never(checkpoint):
    raise AssertionError(f"{checkpoint.name} was loaded")


def refused(world, match, tmp_path, *, model="gone", target="target", retain="retain", error=ConfigError, **options):
    """An audit that must end before a model is loaded."""
    data = options.pop("data", None) or load_audit_data(world.data)
    with pytest.raises(error, match=match):
        run_audit(
            [("m", world[model])],
            world[target],
            world[retain],
            data,
            AuditSettings(suite="quick"),
            out=tmp_path / "out",
            load=never,
            **options,
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def altered(world, tmp_path):
    """``altered(name, **config)``: a copy of the model ``name`` whose configuration says something else."""

    def make(name, **config):
        folder = tmp_path / f"altered-{name}"
        shutil.copytree(world[name], folder)
        content = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def test_a_target_that_is_the_retain_model_is_refused(world, tmp_path):
    refused(world, "there is nothing to forget", tmp_path, target="retain")


def test_a_retain_model_of_another_architecture_is_named_with_its_sizes(world, altered, tmp_path):
    folder = altered("retain", hidden_size=64, model_type="llama")
    message = (
        "the retain model .* another architecture .* model_type llama instead of qwen2, hidden_size 64 instead of 48"
    )
    refused(world, message, tmp_path, retain=folder)


def test_another_tokenizer_is_refused(world, altered, tmp_path):
    from transformers import AutoTokenizer

    folder = altered("gone")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    refused(world, "the tokenizer of the model .* is not that of the target", tmp_path, model=folder)


def test_a_vocabulary_too_small_for_its_tokenizer_is_refused(world, tmp_path):
    copies = {}
    for name in ("target", "retain", "gone"):
        copies[name] = tmp_path / name
        shutil.copytree(world[name], copies[name])
        config = json.loads((copies[name] / "config.json").read_text()) | {"vocab_size": 300}
        (copies[name] / "config.json").write_text(json.dumps(config))
    refused(
        world,
        r"its tokenizer gives id \d+, its model has 300 tokens",
        tmp_path,
        model=copies["gone"],
        target=copies["target"],
        retain=copies["retain"],
    )


def test_a_folder_without_weights_or_configuration_is_named(world, altered, tmp_path):
    folder = altered("gone")
    (folder / "config.json").unlink()
    refused(world, "holds no config.json", tmp_path, model=folder)
    (folder / "model.safetensors").unlink()
    refused(world, "holds no safetensors", tmp_path, model=folder)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_before_anything_is_measured(world, altered, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = altered("gone")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("0.mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(world, f"lacks 1 of the model's tensors .*{name}", tmp_path, model=folder)


def test_a_folder_without_its_tokenizer_is_refused(world, altered, tmp_path):
    folder = altered("gone")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(world, "turns text into nothing: its files are missing", tmp_path, model=folder)


@pytest.mark.parametrize("other", ["holdout", "retain"])
def test_rows_of_the_forget_set_in_another_set_are_named_by_row(world, tmp_path, other):
    forget = load_audit_data(world.data).sets["forget"]
    rows = [{"question": "Who?", "answer": "Nobody."}, {**forget[7], "answer": forget[7]["answer"].upper() + " "}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=f"1 rows of the {other} set .* {other} row 1 = forget row 7"):
        load_audit_data(world.data, **{other: file})


def test_an_empty_text_is_named_by_row_and_field(tmp_path):
    file = tmp_path / "forget.json"
    file.write_text(json.dumps([{"question": "Who?", "answer": "Ann."}, {"question": "Who else?", "answer": "  "}]))
    with pytest.raises(DataError, match="row 1, field 'answer': the text is empty"):
        load_audit_data(file)


def test_plain_files_lack_what_they_lack_and_say_so(world, tmp_path):
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    for file, name in ((forget, "forget"), (retain, "retain")):
        rows = load_audit_data(world.data).sets[name]
        plain = [{"question": row["question"], "answer": row["answer"]} for row in rows]
        file.write_text("\n".join(json.dumps(row) for row in plain))
    data = load_audit_data(forget, retain=retain)
    missing = missing_metrics(data, AuditSettings())
    assert set(data.sets) == {"forget", "retain"}
    assert "no --holdout was given" in missing["mia_loss"]
    assert "no truth ratio" in missing["forget_quality"]
    assert {"model_utility", "privleak", "ra_Q_A_ROUGE"} <= set(missing)
    assert not {"forget_Q_A_Prob", "retain_Q_A_Prob", "extraction_strength"} & set(missing)


def test_perturbed_answers_of_a_plain_file_are_used_when_every_row_has_them(world, tmp_path):
    rows = load_audit_data(world.data).sets["forget"]
    file = tmp_path / "forget.json"
    file.write_text(json.dumps(rows))
    assert "forget_quality" not in missing_metrics(load_audit_data(file), AuditSettings())
    file.write_text(json.dumps([*rows[:-1], {key: rows[-1][key] for key in ("question", "answer")}]))
    assert "forget_quality" in missing_metrics(load_audit_data(file), AuditSettings())


def test_an_unknown_condition_is_refused_before_data_and_models_are_read(tmp_path):
    arguments = ["audit", "nobody/model", "--target", "t", "--retain", "r", "--forget", "nowhere", "--require", "x>1"]
    args = build_parser().parse_args(arguments)
    with pytest.raises(ConfigError, match="no metric 'x' in this suite"):
        command.run(args, [])


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        (["runs/npo", "runs/ga"], ["npo", "ga"]),
        (["a/npo/model", "a/ga/model"], ["npo/model", "ga/model"]),
        (["first=a/npo", "org/second"], ["first", "second"]),
        (["first=runs/lr=1e-5/model"], ["first"]),
    ],
)
def test_models_are_called_by_what_tells_them_apart(models, labels):
    assert [label for label, _ in command.labelled(models)] == labels


@pytest.mark.parametrize("models", [["a=x", "a=y"], ["target=x"], ["x/retain"], ["a/b=x", "a-b=y"]])
def test_ambiguous_labels_are_refused(models):
    with pytest.raises(ConfigError, match="give each a label of its own"):
        command.labelled(models)


@pytest.mark.parametrize("change", [{"suite": "all"}, {"leak_margin": 0}, {"utility_margin": 1.5}, {"resamples": 5}])
def test_settings_out_of_range_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(AuditSettings(), **change)
