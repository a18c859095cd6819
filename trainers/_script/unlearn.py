"""What a recipe of an unlearning method says: model, rows to forget and to keep."""

from dataclasses import dataclass, field
from typing import Any

from negpo.data.qa import QATemplate
from negpo.data.rows import load_rows
from negpo.trainers._run.callbacks import OverUnlearningCallback
from negpo.trainers._run.script_arguments import Source
from negpo.trainers._script.arguments import ModelArguments


@dataclass
class UnlearnScriptArguments(ModelArguments):
    """What a recipe says beside the method's config: model, data and adapter."""

    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another reference than the starting model."}
    )
    template_model: str | None = field(
        default=None, metadata={"help": "Model whose published question-answer template is used; default: the model."}
    )
    forget_dataset: str | None = field(default=None, metadata={"help": "Rows to forget: file, folder or Hub id."})
    forget_name: str | None = field(default=None, metadata={"help": "Configuration of the forget data, e.g. forget10."})
    retain_dataset: str | None = field(
        default=None,
        metadata={"help": "Rows to keep: file, folder or Hub id; none: without any, where a recipe names some."},
    )
    retain_name: str | None = field(default=None, metadata={"help": "Configuration of the retain data, e.g. retain90."})
    dataset_split: str = field(default="train", metadata={"help": "Split of both."})
    stop_when_over_unlearned: bool = field(
        default=False, metadata={"help": "Stop once forget tokens are less likely than a uniform guess."}
    )

    def validate(self) -> None:
        super().validate()
        self.require("forget_dataset")
        if self.retain_dataset == "none":
            self.retain_dataset = self.retain_name = None

    def sources(self) -> dict[str, Source]:
        forget = Source("forget", self.forget_dataset, self.forget_name)
        retain = Source("retain", self.retain_dataset, self.retain_name)
        return super().sources() | {"train_dataset": forget, "retain_dataset": retain}

    def build(self, trainer_class: Any, args: Any) -> Any:
        tokenizer = self.tokenizer()
        return trainer_class(
            model=self.model_name_or_path,
            args=args,
            train_dataset=self._rows(self.forget_dataset, self.forget_name),
            retain_dataset=self._rows(self.retain_dataset, self.retain_name),
            processing_class=tokenizer,
            ref_model=self.ref_model_name_or_path,
            peft_config=self.peft_config(),
            callbacks=[OverUnlearningCallback()] if self.stop_when_over_unlearned else None,
            template=QATemplate.for_model(str(self.template_model or self.model_name_or_path), tokenizer),
            **self.further(),
        )

    def _rows(self, source: str | None, name: str | None) -> Any:
        return None if source is None else load_rows(source, name=name, split=self.dataset_split, required=())


ARGUMENTS = UnlearnScriptArguments
