"""One place for access to models: hashes, vocabulary, layers, modes, and files that are not whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from negpo import models
from negpo.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"<eos>": 0, "<unk>": 1} | {f"w{i}": i + 2 for i in range(30)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model():
    return build()


def build(seed=0, **changes):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2ForCausalLM(Qwen2Config(**sizes | heads | changes)).eval()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- hashes


def test_a_tokenizer_hashes_the_same_before_and_after_use(tokenizer):
    import copy

    used = copy.deepcopy(tokenizer)
    before = models.hash_tokenizer(used)
    used("w1 w2 w3", truncation=True, max_length=2)
    used.pad_token = used.eos_token
    used(["w1", "w1 w2"], padding=True)
    assert used.backend_tokenizer.padding is not None
    assert models.hash_tokenizer(used) == before


def test_a_tokenizer_with_another_word_or_another_special_token_hashes_differently(tokenizer):
    import copy

    other, bos = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    other.add_tokens(["new"])
    bos.bos_token = "<eos>"
    assert len({models.hash_tokenizer(one) for one in (tokenizer, other, bos)}) == 3


def test_references_and_evaluations_use_one_hash_of_a_tokenizer():
    from negpo.eval import manifest
    from negpo.reference import hash_model, hash_tokenizer

    assert hash_tokenizer is manifest.hash_tokenizer is models.hash_tokenizer
    assert hash_model is manifest.hash_model


# --- modes and layers


def test_evaluating_puts_back_exactly_the_modes_of_before():
    model = build().train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    with models.evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrap", [False, True])
def test_a_captured_layer_is_the_hidden_state_behind_it(wrap):
    from peft import LoraConfig, get_peft_model

    model = build()
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if wrap else model
    ids = torch.arange(6).view(1, 6)
    with torch.no_grad(), models.captured_layer(wrapped, -2) as states:
        expected = model(ids, output_hidden_states=True).hidden_states[2]
    assert torch.equal(states[0], expected)
    model(ids)
    assert len(states) == 1  # the hook is gone


def test_a_layer_that_is_not_there_is_named(model):
    with (
        pytest.raises(ConfigError, match="layer is 3; the model has layers 0 to 2"),
        models.captured_layer(model, 3),
    ):
        pass


# --- vocabulary


def test_vocabulary_is_read_from_models_and_folders_alike(model, folder):
    assert models.vocabulary_size(model) == models.vocabulary_size(folder) == models.vocabulary_size(str(folder)) == 32


@pytest.mark.parametrize(
    ("rows", "message"),
    [([[1, 31], [], [40]], "its tokenizer gives id 40"), ([[1]], "special ids are {'eos_token_id'")],
)
def test_ids_beyond_the_embedding_are_refused(model, tokenizer, rows, message):
    models.check_vocabulary(model, [[1, 31], []], tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=message):
        models.check_vocabulary(32, rows, tokenizer=type("T", (), {"eos_token_id": 50}) if rows == [[1]] else None)


# --- files that are not whole


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(folder):
    models.check_complete(folder)
    models.load_causal_lm(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (models.check_complete, models.load_causal_lm):
        with pytest.raises(
            ConfigError, match=r"lacks 1 of the model's tensors \(model\.layers\.1\.mlp\.up_proj\.weight\)"
        ):
            load(folder)


def test_a_tied_head_is_not_missing(tmp_path):
    build(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    models.check_complete(tmp_path)


def test_weights_of_other_sizes_end_in_one_message(folder):
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 24}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="could not be loaded as a causal language model"):
        models.check_complete(folder)


def test_a_folder_without_its_tokenizer_files_is_refused(folder, tokenizer):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"turns text into nothing: its files are missing \(.*tokenizer\.json"):
        models.load_tokenizer(folder)
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    assert models.load_tokenizer(folder)("w1 w2")["input_ids"] == [3, 4]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="could not be loaded"):
        models.load_tokenizer(folder)


def test_a_tokenizer_that_its_class_misreads_is_refused(folder):
    """A word-level vocabulary beside a Qwen2 model is read by Qwen2's byte-level class, which finds no word in it."""
    with pytest.raises(ConfigError, match="turns text into nothing: Qwen2Tokenizer cannot read its files"):
        models.load_tokenizer(folder)


def test_what_could_not_be_loaded_is_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"'.*nothing' could not be loaded") as caught:
        models.load_causal_lm(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [models.load_causal_lm, models.load_tokenizer])
def test_a_folder_that_is_not_there_is_said_to_be_missing_and_not_looked_for_on_the_hub(load, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere. could not be loaded: there is no such folder"):
        load(tmp_path / "nowhere")
