"""Models: checks that need no weights, loading, and the choice of what is trained (all, LoRA, or named parameters)."""

import difflib
import importlib.util
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from negpo import models
from negpo.errors import ConfigError
from negpo.trainers._run.precision import loading_options, settle_weights

logger = logging.getLogger(__name__)
ADAPTER_FILE = "adapter_config.json"


def check_vocabulary(model: Any, tokenizer: Any, rows: Iterable[dict[str, list[int]]]) -> None:
    """ConfigError when an id that training will feed does not exist in the model's embedding."""
    size = base_of(model) if isinstance(model, str) else model
    models.check_vocabulary(size, [row["input_ids"] for row in rows], tokenizer=tokenizer)


def load_tokenizer(model: Any, processing_class: Any) -> Any:
    """The given tokenizer, or the model's own; its pad token falls back to eos (masked by true lengths, never seen)."""
    if processing_class is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        if not name:
            raise ConfigError("processing_class is missing: a model built in memory does not name its tokenizer")
        processing_class = models.load_tokenizer(name if _has_tokenizer(name) else base_of(name))
    if processing_class.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos token; answers could not end. Set tokenizer.eos_token")
    if processing_class.pad_token_id is None:
        processing_class.pad_token = processing_class.eos_token
    return processing_class


def base_of(name: str) -> str:
    """The model behind ``name``: itself, or the base of an adapter's folder. ConfigError when that is not told."""
    file = Path(name) / ADAPTER_FILE
    if not file.is_file() or (Path(name) / "config.json").is_file():
        return name
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not base:
        raise ConfigError(
            f"{file} does not name its base (base_model_name_or_path); merge the adapter and save a model"
        )
    return base


def _has_tokenizer(name: str) -> bool:
    folder = Path(name)
    return not folder.is_dir() or base_of(name) == name or (folder / "tokenizer_config.json").is_file()


def starting_model(model: Any, args: Any, peft_config: Any) -> Any:
    """What a run trains: loaded, with its adapter or its choice of parameters, in the precision of ``args``.

    A folder that holds an adapter goes on with it; with ``peft_config`` it is merged, and a new one stands on top.
    """
    if isinstance(model, str):
        adapter = base_of(model) != model
        model = load_model(
            model, loading_options(args, adapter=adapter or peft_config is not None), merge=peft_config is not None
        )
    else:
        model = load_model(model, args.model_init_kwargs)
    model = settle_weights(choose_trainable(model, args, peft_config), args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        how = "load the adapter with is_trainable=True" if is_peft(model) else "call requires_grad_() on some"
        raise ConfigError(f"no parameter of the model is trained: all are frozen; {how}")
    return model


def load_model(model: Any, init_kwargs: Any, *, merge: bool = False) -> Any:
    """The model of a name or folder, an adapter's with it (``merge``: into it); an object is returned as it is."""
    if not isinstance(model, str):
        if init_kwargs:
            raise ConfigError("model_init_kwargs only applies to a model given by name; this one is already loaded")
        return model
    if "quantization_config" in (init_kwargs or {}) and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("loading in 4 or 8 bit needs bitsandbytes: pip install 'negpo[quantization]'")
    base = base_of(model)
    loaded = models.load_causal_lm(base, **(init_kwargs or {}))
    if base == model:
        return loaded
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(loaded, model, is_trainable=not merge)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(f"the adapter in {model} does not fit its base {base}: {models.brief(error)}") from error
    logger.info("%s is an adapter on %s: %s", model, base, "merged, a new one follows" if merge else "trained further")
    return adapted.merge_and_unload() if merge else adapted


def choose_trainable(model: Any, args: Any, peft_config: Any) -> Any:
    """Wrap with LoRA, freeze all but the parameters named by ``args.trainable_parameters``, or train everything."""
    quantized = getattr(model, "quantization_method", None) is not None
    patterns = getattr(args, "trainable_parameters", None)
    if quantized and peft_config is None and not is_peft(model):
        raise ConfigError("a quantised model cannot be trained in full; pass peft_config (QLoRA)")
    if peft_config is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training
        from transformers import set_seed

        if is_peft(model):
            raise ConfigError(
                "the model already has an adapter: drop peft_config to train it further, or merge it "
                "(model.merge_and_unload()) and pass the result"
            )
        if quantized:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
        set_seed(args.seed)  # as the Trainer does later: the adapter's first weights are random
        model = get_peft_model(model, peft_config)
    elif patterns:
        freeze_all_but(model, patterns)
    if args.gradient_checkpointing and (is_peft(model) or patterns):
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


def check_routers(model: Any) -> None:
    """ConfigError for a mixture of experts that would add its load-balancing loss to the one of its labels.

    The objectives read log-probs, not that loss: it would silently be left out.
    """
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ConfigError(
            "output_router_logits is on in the model's config: it asks for a load-balancing loss that is not part of "
            "the objectives here. Switch it off in config.json, or pass model_init_kwargs={output_router_logits: false}"
        )


def is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def starts_without_adapter(model: Any) -> bool:
    """Whether switching the adapter off gives the model as it is: all of it is LoRA that adds nothing yet."""
    if not is_peft(model):
        return False
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    others = [name for name, _ in trained if "lora_" not in name]
    added = [value.detach() for name, value in trained if "lora_B" in name or "lora_embedding_B" in name]
    return not others and not any(bool(value.any()) for value in added)
