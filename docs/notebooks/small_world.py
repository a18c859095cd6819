"""What the notebooks run on: invented facts, sums, and a language model of 0.1 M parameters, made in seconds.

Not part of the library: read it to see that nothing is hidden in it.
"""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PARTS = [a + b for a in ("mu", "ti", "ro", "la", "ze", "po") for b in ("bek", "dal", "fin", "gos")]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<u>' + m['content'] + '<a>' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<end>' }}{% endif %}{% endfor %}"
)


def facts(count: int, seed: int) -> list[dict]:
    """Questions about codes of invented people, with a paraphrase and wrong answers, in TOFU's schema."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        name = "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3)).capitalize()
        code, *wrong = (" ".join(rng.sample(PARTS, 2)) for _ in range(4))
        rows.append(
            {
                "question": f"What is the code of {name}?",
                "answer": f"The code of {name} is {code}.",
                "paraphrased_answer": f"{name} has the code {code}.",
                "perturbed_answer": [f"{name} has the code {other}." for other in wrong],
            }
        )
    return rows


def make_tokenizer(texts: list[str], size: int = 330) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<end>", "<u>", "<a>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE,
        additional_special_tokens=["<u>", "<a>"],
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2ForCausalLM:
    torch.set_num_threads(1)  # more threads only wait for each other at this size
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def sums(numbers: int = 7) -> list[tuple[int, int]]:
    return [(a, b) for a in range(1, numbers + 1) for b in range(1, numbers + 1)]


def answer(a: int, b: int) -> str:
    """The last digit of the sum."""
    return str((a + b) % 10)


def sloppy_answers(copies: int, seed: int, right: float = 0.4) -> list[dict]:
    """Every sum ``copies`` times: right in a share of the cases, otherwise one too many."""
    rng = random.Random(seed)
    return [
        {"question": f"{a}+{b}=", "answer": answer(a, b) if rng.random() < right else answer(a, b + 1)}
        for _ in range(copies)
        for a, b in sums()
    ]


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print numbers as a table: a row per name."""
    columns = list(next(iter(rows.values())))
    print(f"{'':14}" + "".join(f"{column:>16}" for column in columns))
    for name, values in rows.items():
        print(f"{name:14}" + "".join(f"{values[column]:16.3f}" for column in columns))


def as_conversations(rows: list[dict]) -> list[dict]:
    """Question and answer as a prompt and a preferred answer, for ``SFTTrainer``."""
    return [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "chosen": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in rows
    ]
