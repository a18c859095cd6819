"""Tiny models for the engine tests: random weights wide enough apart that greedy choices have no ties."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 97


def build_model(*, tied: bool = True, seed: int = 0, layers: int = 2) -> Qwen2ForCausalLM:
    """A float32 Qwen2 with grouped key-value heads of width 32, the narrowest that vLLM's CPU attention has."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).eval()


def build_lora(model, *, rank: int = 4, **options):
    """The model wrapped with LoRA whose B matrices are not zero, so that the adapters change the outputs."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=targets, **options))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return wrapped


def write_tokenizer(folder) -> None:
    """One word per id: enough of a tokenizer for a server that insists on one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0").save_pretrained(folder)
