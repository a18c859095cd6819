"""From MUSE rows to token ids, in the two published ways.

``muse-original`` (swj0419/muse_bench, as specified: its released evaluator does not run) never cuts a prompt or text
and compares with the reference's first 128 ids. ``open-unlearning`` cuts question prompts at 512 tokens and texts at
2048 after the first, and compares with the whole reference. Everything else is the same in both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from negpo.data.qa import Item, QATemplate, encode_qa, encode_text
from negpo.data.rows import Row
from negpo.errors import ConfigError
from negpo.eval.muse_data import TEXTS, MuseData
from negpo.eval.scoring import decode, ground_truth

Mode = Literal["muse-original", "open-unlearning"]
MODES = ("muse-original", "open-unlearning")
VERBMEM_TOKENS, KNOWMEM_TOKENS = 128, 32
KNOWMEM_STOPS = ("\n\n", "\nQuestion", "Question:")
UNCUT = 10**9  # tokens: longer than any text


@dataclass(frozen=True)
class Prompt:
    """One greedy continuation: ``ids``, limit of new tokens, and the text to compare with."""

    set: str
    row: int
    ids: list[int]
    max_new_tokens: int
    truth: str


@dataclass(frozen=True)
class Scored:
    """One text to score. ``kind``: ``text``, ``lower`` (the text in lower case) or ``continuation`` (of VerbMem)."""

    set: str
    row: int
    kind: str
    text: str
    item: Item


@dataclass(frozen=True)
class Encoder:
    """Encodes MUSE's rows for one tokenizer, mode and question template."""

    tokenizer: Any
    template: QATemplate
    mode: Mode
    max_length: int = 2048

    @property
    def original(self) -> bool:
        return self.mode == "muse-original"

    def prompts(self, data: MuseData) -> list[Prompt]:
        """Everything to be continued: VerbMem's excerpts and both sets of questions."""
        found = [self._verbmem(index, row) for index, row in enumerate(data.sets.get("verbmem", []))]
        for name in ("forget_qa", "retain_qa"):
            shots = [(row["question"], row["answer"]) for row in data.sets.get(f"{name}_icl", [])]
            found += [self._question(name, index, row, shots) for index, row in enumerate(data.sets.get(name, []))]
        return found

    def scored(self, data: MuseData) -> Iterator[Scored]:
        """Everything to be scored in teacher-forced passes."""
        if not self.original:
            for index, row in enumerate(data.sets.get("verbmem", [])):
                yield Scored("verbmem", index, "continuation", row["gt"], self._continuation(row))
        for name in TEXTS:
            for index, row in enumerate(data.sets.get(name, [])):
                yield Scored(name, index, "text", row["text"], self._text(row["text"]))
                if self.original:
                    yield Scored(name, index, "lower", row["text"].lower(), self._text(row["text"].lower()))

    def _verbmem(self, index: int, row: Row) -> Prompt:
        if self.original:
            ids = list(self.tokenizer(row["prompt"])["input_ids"])
            # special tokens count towards the reference's 128 ids
            truth = decode(self.tokenizer, self.tokenizer(row["gt"])["input_ids"][:VERBMEM_TOKENS])
            return Prompt("verbmem", index, ids, VERBMEM_TOKENS, truth)
        item = self._continuation(row, generation=True)
        truth = ground_truth(self.tokenizer, item["input_ids"], [label for label in item["labels"] if label >= 0])
        return Prompt("verbmem", index, item["input_ids"], VERBMEM_TOKENS, truth)

    def _question(self, name: str, index: int, row: Row, shots: Sequence[tuple[str, str]]) -> Prompt:
        length = UNCUT if self.original else 512
        options: dict[str, Any] = {"shots": shots, "max_length": length, "generation": True, "labels": "published"}
        item = encode_qa(self.tokenizer, self.template, row["question"], row["answer"], **options)
        truth = row["answer"] if self.original else ground_truth(self.tokenizer, item["input_ids"], item["labels"])
        return Prompt(name, index, item["input_ids"], KNOWMEM_TOKENS, truth)

    def _continuation(self, row: Row, *, generation: bool = False) -> Item:
        options: dict[str, Any] = {"prefix": row["prompt"], "insert_space": True, "generation": generation}
        return encode_text(self.tokenizer, row["gt"], max_length=self.max_length, **options)

    def _text(self, text: str) -> Item:
        return encode_text(self.tokenizer, text, max_length=UNCUT if self.original else self.max_length)


def check_context(model: Any, prompts: Sequence[Prompt], scored: Sequence[Scored]) -> None:
    """Raise ConfigError when a prompt with its new tokens, or a text, is longer than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    lengths = [len(prompt.ids) + prompt.max_new_tokens for prompt in prompts]
    lengths += [len(entry.item["input_ids"]) for entry in scored]
    if context is None or not lengths or max(lengths) <= context:
        return
    too_long = sum(length > context for length in lengths)
    raise ConfigError(
        f"{too_long} of {len(lengths)} sequences are longer than the model's context of {context} tokens (longest "
        f"{max(lengths)}). Use --mode open-unlearning with a smaller --max-length, or a model with a longer context"
    )
