"""A tiny tokenizer, tiny random models and a tiny world in TOFU's schema."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE of about 300 tokens with eos and no pad token, as many released tokenizers are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["Question: Who wrote the book?\nAnswer: The author is Ann Dee."] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer):
    """``make_model(seed)``: a random two-layer Qwen2 in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def build(seed: int = 0):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            eos_token_id=tiny_tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=None,
        )
        return Qwen2ForCausalLM(config).eval()

    return build


def tofu_rows(name: str, count: int, *, perturbed: int = 0, paraphrase: bool = False) -> list[dict]:
    rows = []
    for i in range(count):
        row = {"question": f"Who wrote {name} book {i}?", "answer": f"Ann {name} Dee{'e' * i} wrote it."}
        if paraphrase:
            row["paraphrased_answer"] = f"It was written by Ann {name} Dee{'e' * i}."
        if perturbed:
            row["perturbed_answer"] = [f"It was written by Bob {j} Fee{'e' * i}." for j in range(perturbed)]
        rows.append(row)
    return rows


@pytest.fixture
def tofu_folder(tmp_path):
    """A folder like locuslab/TOFU's, with a few rows per set."""
    sets = {
        "forget10_perturbed": tofu_rows("forget", 5, perturbed=5, paraphrase=True),
        "retain_perturbed": tofu_rows("retain", 4, perturbed=5, paraphrase=True),
        "real_authors_perturbed": tofu_rows("real", 3, perturbed=3),
        "world_facts_perturbed": tofu_rows("world", 3, perturbed=3),
        "holdout10": tofu_rows("holdout", 5),
    }
    folder = tmp_path / "tofu"
    folder.mkdir()
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
