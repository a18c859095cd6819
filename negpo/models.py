"""Access to models and tokenizers: what is inside a wrapper, whether files are whole, which content has which hash.

The bottom room for everything that holds a model, below trainers, engines and evaluations. What even the log-prob
kernels need lives beside them (``negpo.logprobs``) and is handed on here: ``unwrap``, ``eval_mode``, ``gathered``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError
from negpo.logprobs.head import unwrap
from negpo.logprobs.model import eval_mode
from negpo.logprobs.tiles import full, gathered

__all__ = [
    "captured_layer",
    "check_complete",
    "check_tokenizer",
    "check_vocabulary",
    "checkpoint_tensors",
    "decoder_layers",
    "equal_weights",
    "eval_mode",
    "evaluating",
    "full",
    "gathered",
    "hash_model",
    "hash_tokenizer",
    "load_causal_lm",
    "load_tokenizer",
    "local_checkpoint",
    "unwrap",
    "vocabulary_size",
]

PEFT_PREFIX = "base_model.model."
PEFT_WRAPPED = ".base_layer."
ADAPTER_MARKS = (".lora_", ".modules_to_save.", ".ia3_", ".prompt_encoder.", ".vera_", ".oft_")
SHOWN_NAMES = 3
PROBED_WORDS = 50


# ---- modes and layers ------------------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards exactly the modules that were training train again."""
    with eval_mode(model), torch.no_grad():
        yield


def decoder_layers(model: Any) -> nn.ModuleList:
    """The transformer blocks of any HF causal LM, wrapped or not. ConfigError when the model shows no list of them."""
    base = unwrap(model)
    n = base.config.get_text_config().num_hidden_layers
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return module
    raise ConfigError(f"{type(base).__name__} has no list of its {n} layers; methods that read layers cannot use it")


@contextmanager
def captured_layer(model: Any, index: int) -> Iterator[list[Tensor]]:
    """Collects the output (B, T, H) of decoder layer ``index`` of every forward inside; negative counts from the end.

    Raises:
        ConfigError: the model does not show its decoder layers, or has no such layer.
    """
    layers = decoder_layers(model)
    if not -len(layers) <= index < len(layers):
        raise ConfigError(f"layer is {index}; the model has layers 0 to {len(layers) - 1}")
    states: list[Tensor] = []
    handle = layers[index].register_forward_hook(
        lambda module, arguments, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield states
    finally:
        handle.remove()


# ---- vocabulary ------------------------------------------------------------------------------------------------------


def vocabulary_size(model: Any) -> int:
    """Rows of the input embedding, of a live model or by the configuration of a folder or Hub id (not loaded)."""
    if isinstance(model, str | Path):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(model).get_text_config().vocab_size
    embeddings = getattr(unwrap(model), "get_input_embeddings", lambda: None)()
    rows = getattr(embeddings, "num_embeddings", None)
    return unwrap(model).config.get_text_config().vocab_size if rows is None else rows


def check_vocabulary(size: Any, rows: Iterable[Sequence[int]], *, tokenizer: Any = None, name: str = "") -> None:
    """ConfigError when an id of ``rows``, or the pad or eos id of ``tokenizer``, does not exist in the embedding.

    ``size``: rows of the embedding, or what :func:`vocabulary_size` takes. ``name``: the model's, for the message.
    """
    limit = size if isinstance(size, int) else vocabulary_size(size)
    largest = max((max(ids) for ids in rows if len(ids)), default=0)
    special = {key: getattr(tokenizer, key, None) for key in ("pad_token_id", "eos_token_id")}
    too_big = {key: token for key, token in special.items() if token is not None and token >= limit}
    if largest < limit and not too_big:
        return
    seen = f"its tokenizer gives id {largest}" if largest >= limit else f"its special ids are {too_big}"
    raise ConfigError(
        f"{name + ': ' if name else ''}the tokenizer does not belong to the model: {seen}, its model has {limit} "
        f"tokens, ids below {limit}; they do not fit together. Load both from the same checkpoint"
    )


# ---- loading ---------------------------------------------------------------------------------------------------------


def check_there(name: str | Path) -> None:
    """ConfigError for a path that does not exist: the Hub would be asked for it, and answer about repository names."""
    if str(name).startswith(("/", "./", "../", "~")) and not Path(name).exists():
        raise ConfigError(
            f"'{name}' could not be loaded: there is no such folder; give a checkpoint's folder or a Hub id"
        )


def load_causal_lm(name: str | Path, **options: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` that refuses what would be measured or trained with random weights.

    Raises:
        ConfigError: no model is there, its files do not fit its configuration, or tensors are missing.
    """
    from transformers import AutoModelForCausalLM

    check_there(name)
    with _quiet():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(str(name), output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ConfigError(
                f"{str(name)!r} could not be loaded as a causal language model: {brief(error)}"
            ) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        shown = ", ".join(missing[:SHOWN_NAMES]) + (" and others" if len(missing) > SHOWN_NAMES else "")
        raise ConfigError(
            f"the checkpoint {name} lacks {len(missing)} of the model's tensors ({shown}): they would be random. Copy "
            "or save the checkpoint again"
        )
    return model


def check_complete(name: str | Path) -> None:
    """Raise :func:`load_causal_lm`'s ConfigError without reading weights: only names and shapes are looked at."""
    load_causal_lm(name, device_map="meta")


def load_tokenizer(name: str | Path) -> Any:
    """``AutoTokenizer.from_pretrained``, and :func:`check_tokenizer`. ConfigError when there is none to be loaded."""
    from transformers import AutoTokenizer

    check_there(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"the tokenizer of {str(name)!r} could not be loaded: {brief(error)}. Give a folder that holds its files "
            "beside the weights, or a Hub id"
        ) from error
    check_tokenizer(tokenizer, str(name))
    return tokenizer


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """ConfigError for a tokenizer that turns text into nothing: scores of nothing look like results.

    transformers makes up an empty one for a folder without tokenizer files, and reads ``tokenizer.json`` with the class
    that belongs to the model's type, which may understand none of its words.
    """
    words = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))[:PROBED_WORDS]
    if words and tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]:
        return
    files = ", ".join(sorted(set(getattr(tokenizer, "vocab_files_names", {}).values())))
    what = "its files are missing" if not words else f"{type(tokenizer).__name__} cannot read its files"
    raise ConfigError(
        f"the tokenizer of {name} turns text into nothing: {what}{f' ({files})' if files else ''}. Save the tokenizer "
        "that the model was trained with into its folder"
    )


def brief(error: Exception) -> str:
    """The first paragraph of another library's message, on one line, without its advice about connections."""
    text = " ".join(str(error).strip().split("\n\n")[0].split()).partition(" Check your internet connection")[0]
    return text.rstrip(".") or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing tensors, which the caller's own error replaces, and its progress bar."""
    from transformers.utils import logging as library

    level, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(max(level, logging.ERROR))
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bar:
            library.enable_progress_bar()


def local_checkpoint(name_or_path: str | Path) -> Path:
    """Folder of a checkpoint: the path itself, or the local copy of a Hub id (downloaded if it must be)."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # network, permission and name errors have no common base that is documented
        raise ConfigError(
            f"{str(name_or_path)!r} is neither a folder nor a Hub id that can be loaded: {brief(error)}"
        ) from error


# ---- identity --------------------------------------------------------------------------------------------------------


def hash_model(model: Any, *, adapters: bool = True) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and persistent buffer.

    Tensors are read one at a time, so the extra memory is one tensor on the CPU (and a whole one on the device where
    ZeRO-3 or FSDP has split it: all processes must call this). With ``adapters=False`` a PEFT model
    hashes like the plain model underneath: adapter tensors are left out and wrapper names are undone.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_named_tensors(model, adapters), key=lambda item: item[0]):
        with gathered(tensor):
            value = full(tensor.detach()).cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(_raw(value))
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 over what turns text into ids: vocabulary, merge rules, processing steps and special tokens.

    Padding and truncation do not count: they are left behind by whatever call came last, and trainers set a pad token
    that no model ever sees.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: Any = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(backend.to_str())
        for key in ("padding", "truncation"):
            state.pop(key, None)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    return hashlib.sha256(json.dumps([state, special], sort_keys=True).encode()).hexdigest()


def checkpoint_tensors(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every tensor's dtype, shape and content, by name, over all safetensors files of a folder.

    File bytes are not compared: the same weights sharded or annotated differently are the same weights.
    """
    from safetensors import safe_open

    digests = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = file.get_tensor(name).contiguous()
                digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(_raw(tensor))
                digests[name] = digest.hexdigest()
    return digests


def equal_weights(tensors: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two results of :func:`checkpoint_tensors` are the same weights, tied or stored twice."""
    common = tensors.keys() & others.keys()
    if not common or any(tensors[name] != others[name] for name in common):
        return False
    shared = {tensors[name] for name in common}
    return all(digest in shared for found in (tensors, others) for name, digest in found.items() if name not in common)


def _named_tensors(model: Any, adapters: bool) -> Iterable[tuple[str, Any]]:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "detach"):
            continue  # extra state of quantised layers: plain objects, derived from the tensors
        if adapters:
            yield name, tensor
        elif not any(mark in name for mark in ADAPTER_MARKS):
            plain = name.removeprefix(PEFT_PREFIX).replace(PEFT_WRAPPED, ".").replace(".original_module.", ".")
            yield plain, tensor


def _raw(tensor: Tensor) -> memoryview:
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)
