"""What is known of a model before it is loaded, and everything that can be refused on that ground."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negpo.errors import ConfigError
from negpo.models import checkpoint_tensors, equal_weights, hash_tokenizer, load_tokenizer, local_checkpoint

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
NOT_IDENTITY = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. ``tensors``: digests by name; ``config``: ``config.json``; ``label``: its name in reports."""

    label: str
    name: str
    folder: Path
    tensors: dict[str, str]
    config: dict[str, Any]
    tokenizer: Any
    tokenizer_sha256: str

    @property
    def sha256(self) -> str:
        """Identity of weights, architecture and tokenizer."""
        config = {key: value for key, value in self.config.items() if key not in NOT_IDENTITY}
        content = [sorted(self.tensors.items()), config, self.tokenizer_sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def shape(self) -> dict[str, Any]:
        """Architecture and sizes; of a multi-modal model those of its language part."""
        text = self.config.get("text_config") or {}
        return {key: self.config.get(key, text.get(key)) for key in SHAPE}

    def same_weights(self, other: Checkpoint) -> bool:
        return equal_weights(self.tensors, other.tensors)


def inspect_checkpoint(name: str, label: str | None = None) -> Checkpoint:
    """Read hashes, configuration and tokenizer of a folder or Hub id. ConfigError when one of them is not there."""
    folder = local_checkpoint(name)
    tensors = checkpoint_tensors(folder)
    if not tensors:
        raise ConfigError(f"{name} holds no safetensors; an audit identifies models by their weights. Save it as such")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{name} holds no config.json; merge an adapter into its base model first") from None
    except ValueError as error:
        raise ConfigError(f"{folder / 'config.json'} is not readable as JSON: {error}") from error
    tokenizer = load_tokenizer(name)
    return Checkpoint(label or name, name, folder, tensors, config, tokenizer, hash_tokenizer(tokenizer))


def check_family(models: Sequence[Checkpoint], target: Checkpoint, retain: Checkpoint) -> dict[str, list[str]]:
    """Refuse models that cannot be compared; returns, by label, warnings about those that look like a mistake.

    Raises ConfigError when the target equals the retain model (every verdict is relative to their difference), or when
    a model differs from the target in architecture, sizes or tokenizer (then losses per token are of other tokens).
    """
    if target.same_weights(retain):
        raise ConfigError(
            f"the weights of the target {target.name} equal those of the retain model {retain.name}: "
            "there is nothing to forget. Check --target and --retain"
        )
    for role, model in [("retain model", retain), *(("model", model) for model in models)]:
        _check_same_family(role, model, target)
    meaning = {"target": "nothing was unlearned", "retain model": "it is its own control"}
    return {
        model.label: [
            f"the weights of {model.label} equal those of the {role} {control.name}: {meaning[role]}"
            for role, control in (("target", target), ("retain model", retain))
            if model.same_weights(control)
        ]
        for model in models
    }


def _check_same_family(role: str, model: Checkpoint, target: Checkpoint) -> None:
    different = [key for key in SHAPE if model.shape[key] != target.shape[key]]
    if different:
        shown = ", ".join(f"{key} {model.shape[key]} instead of {target.shape[key]}" for key in different)
        raise ConfigError(
            f"the {role} {model.name} is of another architecture than the target {target.name}: {shown}. "
            "Differences between the two would not be about forgetting"
        )
    if model.tokenizer_sha256 != target.tokenizer_sha256:
        raise ConfigError(
            f"the tokenizer of the {role} {model.name} is not that of the target {target.name}: losses per token would "
            "be of different tokens. Use the target's tokenizer"
        )
