"""What a recipe of a preference method says: model and preference rows."""

from dataclasses import dataclass, field
from typing import Any

from negpo.data.rows import load_rows
from negpo.trainers._run.script_arguments import Source
from negpo.trainers._script.arguments import ModelArguments


@dataclass
class PreferenceScriptArguments(ModelArguments):
    """What a recipe says beside the method's config: model, data and adapter."""

    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another reference than the starting model (d2o: of the rejected answers)."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Preference rows: file, folder or Hub id."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_rows: int | None = field(default=None, metadata={"help": "Use only the first so many rows."})

    def validate(self) -> None:
        super().validate()
        self.require("dataset")

    def sources(self) -> dict[str, Source]:
        return super().sources() | {"train_dataset": Source("preference", self.dataset, self.dataset_name)}

    def build(self, trainer_class: Any, args: Any) -> Any:
        rows = load_rows(str(self.dataset), name=self.dataset_name, split=self.dataset_split, required=())
        return trainer_class(
            model=self.model_name_or_path,
            args=args,
            train_dataset=rows[: self.max_rows],
            processing_class=self.tokenizer(),
            ref_model=self.ref_model_name_or_path,
            peft_config=self.peft_config(),
            **self.further(),
        )


ARGUMENTS = PreferenceScriptArguments
