"""Five-line references on full logits, and tiny models made from config objects."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

VOCAB = 96


def full_logits(hidden, weight, bias=None, temperature=1.0, logit_scale=1.0, softcap=None):
    z = (hidden @ weight.T + (0.0 if bias is None else bias)) * logit_scale
    return (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature


def naive_logprobs(hidden, weight, labels, mask, **settings):
    """(logps, entropy) by log-softmax over everything."""
    log_p = full_logits(hidden, weight, **settings).log_softmax(-1)
    picked = log_p.gather(-1, labels.where(mask, 0).unsqueeze(-1)).squeeze(-1)
    return picked.where(mask, 0.0), -(log_p.exp() * log_p).sum(-1).where(mask, 0.0)


_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS = {
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "llama_tied": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(
        **_SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=4, final_logit_softcapping=2.0
    ),
    "cohere": lambda: CohereConfig(**_SIZES, logit_scale=0.3),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=4.0),
    "gpt2_tied": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}


def tiny_model(name="qwen2", seed=0):
    """A two-layer model without dropout whose weights are large enough for peaked distributions."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    return model


def tiny_batch(side="right", seed=1):
    """input_ids, attention_mask, labels (4, 20) with rows of 20, 9, 5 and 13 tokens, the first three unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([20, 9, 5, 13]).unsqueeze(1)
    place = torch.arange(20).unsqueeze(0)
    if side == "left":
        place = place - (20 - lengths)
    attention_mask = ((place >= 0) & (place < lengths)).long()
    input_ids = torch.randint(3, VOCAB, (4, 20), generator=generator) * attention_mask
    labels = input_ids.where((attention_mask == 1) & (place >= 3), -100)
    return input_ids, attention_mask, labels


def model_reference(model, input_ids, attention_mask, labels):
    """(B, T-1) log-probabilities from the model's own full logits."""
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits.float()
    mask = labels[:, 1:] != -100
    log_p = logits[:, :-1].log_softmax(-1)
    return log_p.gather(-1, labels[:, 1:].where(mask, 0).unsqueeze(-1)).squeeze(-1).where(mask, 0.0)
