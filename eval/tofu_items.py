"""From TOFU rows to token ids, in the two published ways.

``open-unlearning``: items of :func:`negpo.data.qa.encode_qa`, labelled by the published rule: where prompt and answer
share a token, it is not scored. ``tofu-original`` (locuslab/tofu): texts cut at 200 tokens, one eos label where there
is room, labels that start after the wrapped question (so a literal "Answer: " is scored), and generations that may fill
prompt plus answer up to 200 tokens. There, pads inside the batch count towards that limit too; here every prompt has
its own limit, so that results do not depend on the batch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from negpo.data.qa import IGNORE, Item, QATemplate, encode_qa, has_answer
from negpo.data.rows import Row
from negpo.errors import ConfigError, DataError
from negpo.eval.scoring import decode, ground_truth
from negpo.eval.tofu_data import PARAPHRASED, TofuData

Mode = Literal["open-unlearning", "tofu-original"]
MAX_LENGTH = {"open-unlearning": 512, "tofu-original": 200}
DETAILED = ("forget", "holdout")  # sets whose answers enter memorisation and membership inference


@dataclass(frozen=True)
class Answer:
    """One text to score: ``kind`` is answer, paraphrase or perturbed; ``text`` the answer's own text."""

    set: str
    row: int
    kind: str
    text: str
    item: Item
    detailed: bool


@dataclass(frozen=True)
class Prompt:
    """One question to answer freely: prompt ids, limit of new tokens, and the text to compare with."""

    set: str
    row: int
    ids: list[int]
    max_new_tokens: int
    truth: str


@dataclass(frozen=True)
class Encoder:
    """Encodes rows for one tokenizer, template and mode."""

    tokenizer: Any
    template: QATemplate
    mode: Mode
    max_length: int
    max_new_tokens: int
    question_key: str = "question"

    def __post_init__(self) -> None:
        if self.mode == "tofu-original" and self.template.chat_template:
            raise ConfigError(
                "tofu-original knows question tags, not chat templates; use --mode open-unlearning or --template tags"
            )

    def answers(self, data: TofuData) -> list[Answer]:
        """Every answer that some metric needs; ``holdout`` only where membership inference is part of the mode."""
        found = []
        for name, rows in data.sets.items():
            if name == "holdout" and self.mode == "tofu-original":
                continue
            for index, row in enumerate(rows):
                question = self.question(name, index, row)
                for kind, field, text in _texts(name, row):
                    item = self.encode(question, text)
                    if not has_answer(item, self.tokenizer.eos_token_id, self.max_length):
                        raise DataError(
                            f"no answer token is left within max_length={self.max_length}; raise it or shorten the row",
                            file=f"{data.source} ({name})",
                            row=index,
                            field=field,
                        )
                    detailed = kind == "answer" and name in DETAILED and self.mode == "open-unlearning"
                    found.append(Answer(name, index, kind, text, item, detailed))
        return found

    def prompts(self, data: TofuData) -> list[Prompt]:
        """The questions of all sets but the holdout."""
        return [
            Prompt(name, index, *self.prompt(self.question(name, index, row), row["answer"], f"{data.source} ({name})"))
            for name, rows in data.sets.items()
            if name != "holdout"
            for index, row in enumerate(rows)
        ]

    def question(self, name: str, index: int, row: Row) -> str:
        """The row's question; ``question_key`` replaces it on the sets that have paraphrased questions."""
        key = self.question_key if name in PARAPHRASED else "question"
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError("the question is missing or empty", file=name, row=index, field=key)
        return row[key]

    def encode(self, question: str, answer: str) -> Item:
        if self.mode == "open-unlearning":
            return encode_qa(
                self.tokenizer, self.template, question, answer, max_length=self.max_length, labels="published"
            )
        return self._encode_original(question, answer)

    def prompt(self, question: str, answer: str, file: str) -> tuple[list[int], int, str]:
        """(prompt ids, limit of new tokens, reference text)."""
        if self.mode == "open-unlearning":
            item = encode_qa(
                self.tokenizer,
                self.template,
                question,
                answer,
                max_length=self.max_length,
                generation=True,
                labels="published",
            )
            truth = ground_truth(self.tokenizer, item["input_ids"], item["labels"])
            return item["input_ids"], self.max_new_tokens, truth
        return self._prompt_original(question, answer, file)

    def _encode_original(self, question: str, answer: str) -> Item:
        wrapped = self.template.user_start + question + self.template.user_end
        options = {"add_special_tokens": True, "max_length": self.max_length, "truncation": True}
        ids = list(self.tokenizer(wrapped + self.template.assistant_start + answer, **options)["input_ids"])
        if len(ids) < self.max_length:
            ids.append(self.tokenizer.eos_token_id)
        start = min(len(self.tokenizer(wrapped, add_special_tokens=True)["input_ids"]), len(ids))
        return {"input_ids": ids, "labels": [IGNORE] * start + ids[start:]}

    def _prompt_original(self, question: str, answer: str, file: str) -> tuple[list[int], int, str]:
        text = decode(self.tokenizer, self._encode_original(question, answer)["input_ids"])
        # Llama-2's tag is put back into the prompt; a literal "Answer: " is not: the model has to produce it
        symbol = self.template.assistant_start or self.template.user_end
        before, found, after = text.partition(symbol)
        if not found:
            raise DataError(f"the prompt is longer than max_length={self.max_length}: {question[:60]!r}", file=file)
        prompt = before if self.template.assistant_start else before + symbol
        ids = list(self.tokenizer(prompt, add_special_tokens=True)["input_ids"])
        return ids, max(1, self.max_length - len(ids)), after.split(symbol)[0]


def row_id(row: Row) -> str:
    """Short content hash by which a retain log names a row."""
    return hashlib.sha256(f"{row['question']}\n{row['answer']}".encode()).hexdigest()[:16]


def _texts(name: str, row: Row) -> Iterator[tuple[str, str, str]]:
    """(kind, field, text) of every answer of a row that is scored."""
    yield "answer", "answer", row["answer"]
    if name == "holdout" or "perturbed_answer" not in row:
        return
    if name in PARAPHRASED:
        yield "paraphrase", "paraphrased_answer", row["paraphrased_answer"]
    for text in row["perturbed_answer"]:
        yield "perturbed", "perturbed_answer", text
