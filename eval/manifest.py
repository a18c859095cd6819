"""What a result was computed from: weights, tokenizer, template, data, settings and versions.

Two results with the same ``hash`` are the same measurement. Versions and devices are recorded beside it but do
not enter, because results do not depend on them.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from negpo.data.io import strict
from negpo.data.qa import QATemplate
from negpo.errors import ConfigError

PACKAGES = (
    "negpo",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "tokenizers",
    "peft",
    "numpy",
    "scipy",
    "rouge-score",
    "datasets",
)


def build_manifest(
    model: Any,
    tokenizer: Any,
    *,
    benchmark: str,
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    template: QATemplate,
    name: str | None = None,
) -> dict[str, Any]:
    """A JSON-ready record. ``settings`` are those that change results; ``data`` are counts and content hashes."""
    from negpo.reference.hashing import hash_model

    identity = {
        "benchmark": benchmark,
        "model_sha256": hash_model(model),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template.hash(tokenizer),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "settings": strict(dict(settings)),
        "data": strict(dict(data)),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    config = getattr(model, "config", None)
    return {
        "hash": digest[:16],
        "model": name or getattr(config, "_name_or_path", "") or type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(next(model.parameters()).device),
        **identity,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, its merge rules and the special tokens; padding and truncation do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(backend.to_str())
        for key in ("padding", "truncation"):  # left behind by whatever call came last
            state.pop(key, None)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
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


def refuse_unchanged(folder: str | Path, target: str | Path) -> None:
    """Raise ConfigError when two checkpoints hold the same weights: an unchanged model would look like a result.

    A tensor stored twice in one checkpoint and once in the other (tied embeddings) makes no difference. Checkpoints
    without safetensors cannot be compared and raise ConfigError too.
    """
    tensors = checkpoint_tensors(folder), checkpoint_tensors(target)
    for where, found in zip((folder, target), tensors, strict=True):
        if not found:
            raise ConfigError(f"{where} holds no safetensors, so its weights cannot be compared with the target's")
    if equal_weights(*tensors):
        raise ConfigError(
            f"the weights of {folder} equal those of the target {target}: nothing was unlearned. "
            "Check the path, or leave --target out to measure the target itself"
        )


def equal_weights(tensors: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two results of :func:`checkpoint_tensors` are the same weights, tied or stored twice."""
    common = tensors.keys() & others.keys()
    if not common or any(tensors[name] != others[name] for name in common):
        return False
    shared = {tensors[name] for name in common}
    return all(digest in shared for found in (tensors, others) for name, digest in found.items() if name not in common)


def local_checkpoint(name_or_path: str) -> Path:
    """Folder of a checkpoint: the path itself, or the local copy of a Hub id (downloaded if it must be)."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # network, permission and name errors have no common base that is documented
        raise ConfigError(f"{name_or_path!r} is neither a folder nor a Hub id that can be loaded: {error}") from error


def _raw(tensor: Any) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
