"""What a result was computed from: weights, tokenizer, template, data, settings and versions.

Two results with the same ``hash`` are the same measurement. Versions and devices are recorded beside it but do
not enter, because results do not depend on them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negpo.data.io import strict
from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.models import checkpoint_tensors, equal_weights, hash_model, hash_tokenizer
from negpo.versions import versions


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
    identity = {
        "benchmark": benchmark,
        "model_sha256": hash_model(model),
        "tokenizer_sha256": hash_tokenizer(tokenizer),
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
