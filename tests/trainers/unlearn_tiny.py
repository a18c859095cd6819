"""A byte-level tokenizer and Qwen2 models of a few thousand parameters, made from nothing."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

FORGET = [
    {"question": "Who wrote Blue?", "answer": "Ada Moss, in 1901."},
    {"question": "Where was Ada Moss born?", "answer": "Oslo."},
    {"question": "What did she study?", "answer": "Botany and law at home, alone."},
    {"question": "Any siblings?", "answer": "Two."},
    {"question": "Which prize did she win?", "answer": "The Fern Prize."},
    {"question": "Her first book?", "answer": "Moss and Stone, a novel."},
]
RETAIN = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}{'!' * (i % 4)}"} for i in range(9)]
IDK = ["I don't know.", "No idea at all.", "That is unknown to me."]


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|eos|>": 0, "<|pad|>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", pad_token="<|pad|>")


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32, **settings) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        **{
            "vocab_size": 258,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }
        | settings
    )
    return Qwen2ForCausalLM(config).to(dtype)


def make_trainer(method: str, folder, *, model=None, retain=None, batch=(2, 2), **settings):
    """A trainer on the rows above; keyword arguments that the trainer knows go there, all others to the config."""
    from importlib import import_module

    from negpo.trainers import METHODS

    module, trainer_name, config_name = METHODS[method]
    module = import_module(module)
    for_trainer = {
        name: settings.pop(name)
        for name in ("train_dataset", "ref_model", "peft_config", "callbacks", "idk_answers", "processing_class")
        if name in settings
    }
    if method == "idkdpo":
        for_trainer.setdefault("idk_answers", IDK)
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch[0],
        "gradient_accumulation_steps": batch[1],
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if method == "altpo":
        for_trainer.setdefault("train_dataset", [row | {"alternate": f"Not {row['answer']}"} for row in FORGET])
    args = getattr(module, config_name)(**defaults | settings)
    needs_retain = args.retain_loss != "none" or method == "rmu"
    return getattr(module, trainer_name)(
        model=model if model is not None else make_model(),
        args=args,
        retain_dataset=retain if retain is not None else RETAIN if needs_retain else None,
        **{"train_dataset": FORGET, "processing_class": make_tokenizer()} | for_trainer,
    )


def history(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
