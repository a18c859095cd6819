"""Models: checks that need no weights, loading, and the choice of what is trained (all, LoRA, or named parameters)."""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from negpo.errors import ConfigError


def vocabulary_size(model: Any) -> int:
    """Rows of the embedding, from the configuration: a model given by name is not loaded for it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config
    return config.get_text_config().vocab_size


def check_vocabulary(model: Any, tokenizer: Any, rows: Iterable[dict[str, list[int]]]) -> None:
    """ConfigError when an id that training will feed does not exist in the model's embedding."""
    size = vocabulary_size(model)
    largest = max(max(row["input_ids"]) for row in rows)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    too_big = {name: token for name, token in special.items() if token is not None and token >= size}
    if largest >= size or too_big:
        seen = f"the rows contain token id {largest}" if largest >= size else f"its special ids are {too_big}"
        raise ConfigError(
            f"the tokenizer does not belong to the model: {seen}, the model knows ids below {size}. Load both from the "
            "same checkpoint, or resize the embedding before training"
        )


def load_tokenizer(model: Any, processing_class: Any) -> Any:
    """The given tokenizer, or the model's own; its pad token falls back to eos (masked by true lengths, never seen)."""
    from transformers import AutoTokenizer

    if processing_class is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        if not name:
            raise ConfigError("processing_class is missing: a model built in memory does not name its tokenizer")
        processing_class = AutoTokenizer.from_pretrained(name)
    if processing_class.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos token; answers could not end. Set tokenizer.eos_token")
    if processing_class.pad_token_id is None:
        processing_class.pad_token = processing_class.eos_token
    return processing_class


def load_model(model: Any, init_kwargs: Any) -> Any:
    """``from_pretrained`` for a name or folder; a model object is returned as it is."""
    if not isinstance(model, str):
        if init_kwargs:
            raise ConfigError("model_init_kwargs only applies to a model given by name; this one is already loaded")
        return model
    from transformers import AutoModelForCausalLM

    if "quantization_config" in (init_kwargs or {}) and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("loading in 4 or 8 bit needs bitsandbytes: pip install 'negpo[quantization]'")
    return AutoModelForCausalLM.from_pretrained(model, **(init_kwargs or {}))


def choose_trainable(model: Any, args: Any, peft_config: Any) -> Any:
    """Wrap with LoRA, freeze all but the parameters named by ``args.trainable_parameters``, or train everything."""
    quantized = getattr(model, "quantization_method", None) is not None
    if quantized and peft_config is None and not is_peft(model):
        raise ConfigError("a quantised model cannot be trained in full; pass peft_config (QLoRA)")
    if peft_config is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training
        from transformers import set_seed

        if is_peft(model):
            raise ConfigError("the model already has an adapter; merge it or drop peft_config")
        if quantized:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
        set_seed(args.seed)  # as the Trainer does later: the adapter's first weights are random
        model = get_peft_model(model, peft_config)
    elif args.trainable_parameters:
        freeze_all_but(model, args.trainable_parameters)
    if args.gradient_checkpointing and (is_peft(model) or args.trainable_parameters):
        model.enable_input_require_grads()  # else checkpointed blocks see no input that needs a gradient
    return model


def freeze_all_but(model: Any, patterns: Sequence[str]) -> list[str]:
    """Train only parameters whose name matches one of ``patterns`` (``re.search``); returns their names.

    A pattern that matches nothing is an error that shows the most similar names.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen = set()
    for pattern in patterns:
        matches = [name for name in names if re.search(pattern, name)]
        if not matches:
            close = difflib.get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.3) or names[:3]
            raise ConfigError(f"trainable_parameters: {pattern!r} matches no parameter; similar: {', '.join(close)}")
        chosen.update(matches)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sorted(chosen)


@contextmanager
def rows_of_tied_embedding(model: Any) -> Iterator[None]:
    """Around one forward and backward: a tied embedding's input side adds its gradient as rows, in place.

    Autograd would build a second (V, H) matrix, zero but for the rows of the batch, and add it to the head's: one more
    copy of the largest weight and two passes over it. Only in float32 on a CPU: on a GPU such additions are not
    deterministic, in half precision they round. The model must not be wrapped, or its hooks would miss the rows, and
    its weights must not be sharded in place (FSDP 2).
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight: Any = getattr(embedding, "weight", None)
    tied = isinstance(embedding, torch.nn.Embedding) and weight is getattr(head, "weight", None)
    # FSDP puts plain tensors into the place of its shards for a while, so the tensor itself would not tell
    if isinstance(model, FSDPModule) or not (
        tied and weight.requires_grad and weight.device.type == "cpu" and weight.dtype == torch.float32
    ):
        yield
        return
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cut(module: Any, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        if not output.requires_grad:
            return None
        states = output.detach().requires_grad_()
        states.register_hook(lambda gradient: parts.append((arguments[0].flatten(), gradient.flatten(0, -2))))
        return states

    handle = embedding.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()
    for ids, gradient in parts:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, gradient)


def is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")
