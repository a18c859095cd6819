"""Smoke run of check_stack.sh: a Qwen2 model of a few thousand parameters learns, unlearns and generates.

python smoke.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from negpo.cli import main

ROWS = [{"question": f"Who wrote book {i}?", "answer": f"Author {i}, in 19{i:02d}."} for i in range(8)]


def make_model(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|eos|>": 0, "<|pad|>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", pad_token="<|pad|>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    tokens = {"vocab_size": 258, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True}
    config = Qwen2Config(**sizes, **tokens, num_attention_heads=4, num_key_value_heads=2)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def run(folder: Path) -> None:
    make_model(folder / "model")
    for name, rows in (("forget", ROWS[:4]), ("retain", ROWS[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = {
        "--model_name_or_path": folder / "model",
        "--forget_dataset": folder / "forget.jsonl",
        "--retain_dataset": folder / "retain.jsonl",
        "--retain_loss": "nll",
        "--output_dir": folder / "npo",
        "--max_steps": 3,
        "--use_cpu": "true",
        "--report_to": "none",
    }
    status = main(["train", "npo", *(str(part) for pair in arguments.items() for part in pair)])
    if status:
        sys.exit(status)
    model = Qwen2ForCausalLM.from_pretrained(folder / "npo")
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape[1] > 3


if __name__ == "__main__":
    run(Path(sys.argv[1]))
