"""Model, quantisation and adapter of a recipe: TRL's ModelConfig, with what negpo does not honour refused by name."""

import importlib.util
from dataclasses import dataclass, field, fields, replace
from typing import Any

from trl import ModelConfig, get_peft_config, get_quantization_config

from negpo.errors import ConfigError
from negpo.trainers._run.model import load_tokenizer
from negpo.trainers._run.script_arguments import ScriptArguments

OF_ADAPTERS = ("use_rslora", "use_dora")  # and every lora_*
STORAGE = ("uint8", "int8", "bfloat16", "float16", "float32", "float64")
OF_FOUR_BITS = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


@dataclass
class ModelArguments(ScriptArguments, ModelConfig):
    """``trl.ModelConfig`` plus the tokenizer. Other defaults: weights_dtype, no LoRA dropout, all linear layers."""

    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer; default: the model's."})
    model_revision: str = field(
        default="main", metadata={"help": "Must stay main: download another revision and pass its folder."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of a frozen base under LoRA: auto (the stored one), float32, bfloat16. Default, and always "
            "where the weights themselves are trained: weights_dtype.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention kernel, e.g. sdpa."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Default: all linear layers."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Must stay CAUSAL_LM."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: 4-bit base weights (needs use_peft)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "8-bit base weights (needs use_peft)."})

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit exclude each other; choose one")
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        self.require("model_name_or_path")
        if self.model_revision != "main":
            raise ConfigError(
                f"model_revision={self.model_revision} is not honoured; download that revision and pass its folder as "
                "model_name_or_path"
            )
        if self.lora_task_type != "CAUSAL_LM":
            raise ConfigError(f"lora_task_type={self.lora_task_type} is no language model; leave it at CAUSAL_LM")
        for name in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, name) and not self.use_peft:
                raise ConfigError(f"{name} needs use_peft: quantised weights cannot be trained themselves")
        adapters = [item.name for item in fields(ModelConfig) if item.name.startswith("lora_")]
        self._refuse_unread((*adapters, *OF_ADAPTERS), "use_peft", self.use_peft)
        self._refuse_unread(OF_FOUR_BITS, "load_in_4bit", self.load_in_4bit)
        if self.bnb_4bit_quant_storage not in (None, *STORAGE):
            raise ConfigError(
                f"bnb_4bit_quant_storage is {self.bnb_4bit_quant_storage!r}; choose one of {', '.join(STORAGE)}"
            )
        if (self.load_in_4bit or self.load_in_8bit) and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError("loading in 4 or 8 bit needs bitsandbytes: pip install 'negpo[quantization]'")

    def _refuse_unread(self, names: tuple[str, ...], needed: str, given: bool) -> None:
        """ConfigError for a setting away from its default that nothing reads without ``needed``."""
        defaults = {item.name: item.default for item in fields(self)}
        changed = [name for name in names if getattr(self, name) != defaults[name]]
        if changed and not given:
            raise ConfigError(f"{changed[0]}={getattr(self, changed[0])} has no effect without {needed}=true")

    def require(self, *names: str) -> None:
        """ConfigError for a setting that has no default and was not given."""
        for name in names:
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is missing: set it in the recipe or pass --{name}")

    def tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer_name_or_path or self.model_name_or_path, None)

    def init_kwargs(self) -> dict[str, Any]:
        """Of ``from_pretrained``."""
        kwargs: dict[str, Any] = {} if self.dtype is None else {"dtype": self.dtype}
        if self.attn_implementation:
            kwargs["attn_implementation"] = self.attn_implementation
        if quantization := self._quantization():
            kwargs["quantization_config"] = quantization
        return kwargs

    def _quantization(self) -> Any:
        # TRL computes in the weights' dtype. "auto" does not name one yet, and float32 is for weights that are trained:
        # products with 4-bit ones gain nothing from it.
        compute = "bfloat16" if self.dtype in (None, "auto", "float32") else self.dtype
        return get_quantization_config(replace(self, dtype=compute))

    def peft_config(self) -> Any:
        """A LoRA configuration, or None when the weights themselves are trained."""
        config: Any = get_peft_config(self)
        if config is not None and config.target_modules is None and config.target_parameters is None:
            config.target_modules = "all-linear"
        return config
