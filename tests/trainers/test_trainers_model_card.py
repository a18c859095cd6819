"""The README.md beside every saved model."""

import json
import re
from importlib import import_module
from types import SimpleNamespace

import preference_tiny
import pytest
import unlearn_tiny
import yaml
from rl_tiny import make_policy_trainer

from negpo import objectives
from negpo.model_card import METHOD_FACTS, CardFacts, caveats_of, code, last_part, method_of
from negpo.trainers import METHODS


def header(folder) -> dict:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1])


def body(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]


def facts(**changes) -> CardFacts:
    values = {
        "method": "npo", "trainer": "NPOTrainer", "base_model": "org/model", "adapter": False, "steps": (3, 10),
        "seed": 0, "processes": 1, "data": {"rows": "4"}, "datasets": [], "settings": {"beta": "0.1"},
        "telemetry": {"forget/logp": -1.0}, "versions": {"python": "3.11"},
    }  # fmt: skip
    return CardFacts(**values | changes)


def test_every_method_has_facts_whose_objectives_exist():
    assert set(METHOD_FACTS) == set(METHODS)
    for known in METHOD_FACTS.values():
        assert all(hasattr(objectives, name) for name in known.objectives)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_has_known_caveats_to_print(method):
    assert caveats_of(METHOD_FACTS[method]).startswith("* `")


def test_every_checkpoint_and_the_final_model_of_an_unlearning_run_have_a_card(tmp_path):
    trainer = unlearn_tiny.make_trainer("npo", tmp_path, max_steps=2, save_strategy="steps", save_steps=1, beta=0.25)
    trainer.train()
    trainer.save_model()
    for folder, step in ((tmp_path / "checkpoint-1", 1), (tmp_path / "checkpoint-2", 2), (tmp_path, 2)):
        text = body(folder)
        assert f"step {step} of 2" in text
        assert f"## Telemetry at step {step}" in text
    assert "| `beta` | `0.25` |" in text
    assert "`npo_loss`" in text
    assert "https://arxiv.org/abs/2404.05868" in text
    assert re.search(r"\| `forget rows` \| `[0-9a-f]{32,}` \|", text)
    assert re.search(r"\| `forget/logp` \| `-\d", text)
    assert header(tmp_path)["library_name"] == "transformers"
    assert {"negpo", "npo"} <= set(header(tmp_path)["tags"])


def test_the_card_is_part_of_a_sealed_checkpoint(tmp_path):
    checkpoint = import_module("negpo.trainers._run.checkpoint")
    unlearn_tiny.make_trainer("ga", tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert checkpoint.damage(tmp_path / "checkpoint-1") is None
    (tmp_path / "checkpoint-1" / "README.md").unlink()
    assert "README.md" in checkpoint.damage(tmp_path / "checkpoint-1")


def test_preference_and_reinforcement_learning_runs_write_their_own_method_and_not_a_base_class(tmp_path):
    trainer = preference_tiny.make_trainer("redi", tmp_path / "redi", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert "`redi_loss`" in body(tmp_path / "redi")
    trainer = make_policy_trainer("nsr", tmp_path / "nsr", save_strategy="steps", save_steps=1)
    trainer.train()
    text = body(tmp_path / "nsr" / "checkpoint-1")
    assert "`signed_advantages`" in text
    assert "| `negative/tokens` |" in text
    # TRL writes a GRPO card into the output folder with every checkpoint
    assert "`NSRTrainer`" in body(tmp_path / "nsr")
    assert "GRPO" not in body(tmp_path / "nsr")


def test_the_card_of_an_adapter_replaces_the_one_of_peft(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = unlearn_tiny.make_trainer("ga", tmp_path, max_steps=1, peft_config=lora)
    trainer.train()
    trainer.save_model()
    assert header(tmp_path)["library_name"] == "peft"
    assert body(tmp_path).count("Adapter for") == 1


def test_no_local_path_reaches_the_card(tmp_path):
    base = tmp_path / "secret-project" / "base"
    unlearn_tiny.make_model().save_pretrained(base)
    unlearn_tiny.make_tokenizer().save_pretrained(base)
    out = tmp_path / "secret-project" / "out"
    trainer = unlearn_tiny.make_trainer("npo", out, model=str(base), max_steps=1, reference_cache_dir=str(tmp_path))
    trainer.train()
    trainer.save_model()
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "secret-project" not in text
    assert str(tmp_path) not in text
    assert "`base`" in text
    assert "base_model" not in header(out)  # a folder is not a Hub id


def test_create_model_card_takes_the_metadata_that_transformers_passes_on(tmp_path):
    trainer = unlearn_tiny.make_trainer("ga", tmp_path, max_steps=1)
    trainer.create_model_card(model_name="mine", license="mit", tags="mine-too", dataset="org/data", tasks="none")
    assert header(tmp_path) | {"tags": []} == {
        "library_name": "transformers", "tags": [], "model_name": "mine", "license": "mit", "datasets": "org/data",
    }  # fmt: skip
    assert "mine-too" in header(tmp_path)["tags"]


def test_a_card_names_hub_data_sets_whole_and_files_by_their_last_part(tmp_path):
    trainer = unlearn_tiny.make_trainer("ga", tmp_path, max_steps=1)
    private = tmp_path / "alice" / "rows.jsonl"
    private.parent.mkdir()
    private.touch()
    trainer.data_sources = {"forget": ("locuslab/TOFU", "forget10"), "retain": (str(private), None)}
    trainer.create_model_card()
    assert header(tmp_path)["datasets"] == ["locuslab/TOFU"]
    assert "| `forget rows from` | `locuslab/TOFU forget10` |" in body(tmp_path)
    assert "| `retain rows from` | `rows.jsonl` |" in body(tmp_path)
    assert "alice" not in body(tmp_path)


def test_negpo_train_says_which_file_the_rows_came_from(tmp_path):
    from negpo.trainers import run_training

    unlearn_tiny.make_model().save_pretrained(tmp_path / "base")
    unlearn_tiny.make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlearn_tiny.FORGET))
    settings = {
        "model_name_or_path": tmp_path / "base", "forget_dataset": tmp_path / "forget.jsonl",
        "output_dir": tmp_path / "out", "max_steps": 1, "use_cpu": "true", "save_strategy": "no",
        "disable_tqdm": "true",
    }  # fmt: skip
    run_training("ga", [str(part) for key, value in settings.items() for part in (f"--{key}", value)])
    assert "| `forget rows from` | `forget.jsonl` |" in body(tmp_path / "out")
    assert str(tmp_path) not in body(tmp_path / "out")


def test_a_license_is_only_stated_where_it_was_given():
    assert "license" not in facts().metadata()
    assert facts(extra={"license": "mit"}).metadata()["license"] == "mit"


def test_hostile_names_and_values_stay_inside_their_cells_and_the_header_stays_yaml():
    hostile = "x`|\n<script>alert(1)</script>\n---\nlicense: mit\n# [a](b)"
    text = facts(base_model=hostile, name=hostile, settings={hostile: hostile}, data={"rows": hostile}).render()
    top, rest = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)[1:]
    assert yaml.safe_load(top)["model_name"] == " ".join(hostile.split())
    assert "license" not in yaml.safe_load(top)
    outside = re.sub(r"`[^`]*`", "", rest)
    assert "<script>" not in outside
    assert not re.search(r"(?<!\\)\|[^\n]*script", outside)
    for line in rest.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/model", "org/model"),
        ("/data/alice/base", "base"),
        ("C:\\models\\base", "base"),
        ("./runs/x/", "x"),
        ("m", "m"),
    ],
)
def test_only_hub_ids_keep_their_slash(name, shown):
    assert last_part(name) == shown


def test_an_empty_value_is_still_a_code_span():
    assert code("") == "` `"


def test_a_class_of_the_user_is_named_after_the_method_it_extends_and_others_are_their_own():
    trainer = import_module("negpo.trainers.npo").NPOTrainer
    assert method_of(type("Mine", (trainer,), {})) == "npo"
    assert method_of(SimpleNamespace) == "own"
