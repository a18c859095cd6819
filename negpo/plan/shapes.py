"""What a plan needs to know of a model: its dimensions, and parameter counts from the model's own class.

The class is built on torch's meta device, which has shapes and no storage: counts are exact for every architecture that
transformers knows, a 70B model takes a second, and no weights are read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negpo.errors import ConfigError

PUBLISHED = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Shape:
    """Dimensions of a dense decoder. Parameters are counts, not bytes.

    hidden H; layers L; query (heads x head dimension), key_value (key heads x head dimension) widths; intermediate I;
    vocab V. ``parameters`` = ``embedding`` + ``head`` (0 where tied) + L x ``layer`` + ``rest``. ``layer_matrices`` are
    the parameters of one layer that enter a matrix product; ``lora_width`` is the sum of (inputs + outputs) of one
    layer's linear maps: rank r adds r times as many parameters.
    """

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    query: int
    key_value: int
    intermediate: int
    vocab: int
    tied: bool
    query_norm: bool
    parameters: int
    embedding: int
    head: int
    layer: int
    rest: int
    layer_matrices: int
    lora_width: int
    linear_maps: int

    @property
    def head_matrix(self) -> int:
        """Parameters that project to the vocabulary, whether tied or not: V x H."""
        return self.vocab * self.hidden


def published_names() -> list[str]:
    return sorted(path.stem for path in PUBLISHED.glob("*.json"))


def load_shape(source: str) -> Shape:
    """The shape of a published name, a config.json, a model folder or a hub id.

    Published names need no network and may carry their organisation (``meta-llama/Llama-3.1-8B``). Raises ConfigError
    where nothing can be read, and for architectures that the memory formulas do not describe.
    """
    return shape_of(_load_config(source), source)


def shape_of(config: Any, name: str) -> Shape:
    """The shape of a transformers config object; see `load_shape`."""
    import torch
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    _check_dense(text, name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    blocks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == text.num_hidden_layers]
    if not blocks:
        raise ConfigError(
            f"{name}: {type(model).__name__} has no list of {text.num_hidden_layers} layers; not supported"
        )
    block = blocks[0][0]
    maps = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = embedding is head
    sizes = {
        "parameters": _count(model),
        "embedding": embedding.numel(),
        "head": 0 if tied else head.numel(),
        "layer": _count(block),
    }
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return Shape(
        name=name,
        model_type=text.model_type,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        query=text.num_attention_heads * head_dim,
        key_value=key_heads * head_dim,
        intermediate=text.intermediate_size,
        vocab=embedding.shape[0],
        tied=tied,
        query_norm=any(part.endswith("q_norm") for part, _ in block.named_modules()),
        rest=sizes["parameters"] - sizes["embedding"] - sizes["head"] - len(blocks[0]) * sizes["layer"],
        layer_matrices=sum(m.weight.numel() for m in maps),
        lora_width=sum(m.in_features + m.out_features for m in maps),
        linear_maps=len(maps),
        **sizes,
    )


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_dense(text: Any, name: str) -> None:
    for attribute in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, attribute, None):
            raise ConfigError(
                f"{name} is a mixture of experts ({attribute}={getattr(text, attribute)}); the plan's formulas are "
                "those of dense decoders. Measure one step instead"
            )
    missing = [n for n in ("hidden_size", "num_hidden_layers", "intermediate_size") if not hasattr(text, n)]
    if missing:
        raise ConfigError(
            f"{name} ({text.model_type}) has no {', '.join(missing)}; plans cover decoders of Llama's kind: Llama, "
            "Mistral, Qwen2, Qwen3 and their relatives"
        )


def _load_config(source: str) -> Any:
    from transformers import AutoConfig

    path = Path(source).expanduser()
    published = PUBLISHED / f"{source.rpartition('/')[2].removesuffix('-Instruct')}.json"
    if path.is_file():
        return _from_json(path)
    if path.is_dir():
        return _from_json(path / "config.json")
    if published.is_file():
        return _from_json(published)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no configuration for {source!r}: not a file or folder here, not on the hub "
            f"({str(error).splitlines()[0]}). Known without the hub: {', '.join(published_names())}"
        ) from error


def _from_json(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is not the config.json of a model: {type(error).__name__}: {error}") from error
