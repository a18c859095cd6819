"""The model card goes where the weights go: into every checkpoint and into the output folder."""

from collections.abc import Mapping
from pathlib import Path

from transformers import Trainer

from negpo.model_card import write_card


class WritesModelCard(Trainer):
    """Mixin before a Trainer. Replaces the cards of transformers, TRL and PEFT, which name their own methods."""

    # kind of row -> file, folder or Hub id; configuration. Set by `negpo train`: a trainer only sees rows.
    data_sources: Mapping[str, tuple[str | None, str | None]] = {}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        write_card(self, output_dir if output_dir is not None else str(self.args.output_dir), name=self._card_name())

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        dataset_name: str | None = None,
    ) -> None:
        """The card of the output folder, with the metadata given here; ``push_to_hub`` and TRL call it.

        Arguments as in transformers (and ``dataset_name`` as in TRL). ``tasks``, ``dataset_tags`` and ``dataset_args``
        describe evaluation results and are not used: a trainer of negpo evaluates nothing.
        """
        if not self.is_world_process_zero():
            return
        extra = {
            "language": language,
            "license": license,
            "tags": tags,
            "base_model": finetuned_from,
            "datasets": dataset or dataset_name,
        }
        write_card(self, str(self.args.output_dir), name=model_name or self._card_name(), **extra)

    def _card_name(self) -> str:
        return self.args.hub_model_id or Path(str(self.args.output_dir)).name
