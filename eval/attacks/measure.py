"""How much of an answer a model gives away: its probability, and ROUGE-L recall of what the model says."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from negpo.data.qa import IGNORE, Item, QATemplate, encode_qa, labelled_ids
from negpo.errors import ConfigError, DataError
from negpo.eval.attacks.base import AttackItem
from negpo.eval.metrics import rouge_recall
from negpo.eval.scoring import (
    Batching,
    Report,
    counting,
    decode,
    generate_texts,
    pad_token,
    score_items,
)
from negpo.models import check_vocabulary

UNCUT = 1 << 24  # encode_qa's limit is lifted: cutting a prompt at its end would cut the question off
ROUGE, PROBABILITY = "rougeL_recall", "answer_probability"


@dataclass(frozen=True)
class Ask:
    """One way to ask for one answer.

    item: prompt and answer ids with labels on what is to be recovered. truth: the text behind the labels. limit: new
    tokens of a generation.
    """

    index: int
    item: Item
    truth: str
    limit: int

    @property
    def prompt(self) -> list[int]:
        """The ids in front of the first label."""
        labels = self.item["labels"]
        return self.item["input_ids"][: next(t for t, label in enumerate(labels) if label != IGNORE)]


@dataclass(frozen=True)
class Asker:
    """Makes asks for one model's tokenizer and template, as the open-unlearning mode of TOFU encodes them.

    A generation may be twice as long as the answer plus ``SLACK`` tokens, at most ``max_new_tokens``: recall grows with
    what is said, and a collapsed model never stops.
    """

    tokenizer: Any
    template: QATemplate
    max_new_tokens: int
    positions: int

    SLACK = 16

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, template: QATemplate, max_new_tokens: int) -> "Asker":
        """ConfigError when the limit is not positive."""
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return cls(tokenizer, template, max_new_tokens, positions or UNCUT)

    def ask(
        self, item: AttackItem, question: str | None = None, *, shots: Sequence[tuple[str, str]] = (), given: float = 0
    ) -> Ask:
        """Ask for the item's answer, by its own question or another one.

        ``shots`` are solved examples in front; of the answer the first ``given`` (share, cut between words where there
        is a border) already stands in the prompt and the rest is to be recovered.

        Raises:
            DataError: nothing of the answer is left, or prompt and answer exceed the model's positions.
        """
        encoded = encode_qa(
            self.tokenizer, self.template, question or item.question, item.answer, max_length=UNCUT, shots=shots
        )
        if given:
            encoded = self._reveal(encoded, given)
        hidden = labelled_ids(encoded)
        truth = decode(self.tokenizer, hidden).strip()
        if not truth:
            raise DataError("no text of the answer is left to be recovered", file="attack", row=item.index)
        limit = min(self.max_new_tokens, 2 * len(hidden) + self.SLACK)
        if (length := len(encoded["input_ids"]) - len(hidden) + limit) > self.positions:
            raise DataError(
                f"prompt and generation take {length} tokens, the model has {self.positions} positions; use fewer "
                "examples, a smaller max_new_tokens, or leave the row out",
                file="attack",
                row=item.index,
            )
        return Ask(item.index, encoded, truth, limit)

    def _reveal(self, item: Item, share: float) -> Item:
        """The item with about ``share`` of its labelled tokens turned into prompt."""
        hidden = labelled_ids(item)
        text = self.tokenizer.decode(hidden, skip_special_tokens=True)
        target = min(max(1, round(share * len(hidden))), len(hidden) - 1)
        borders = [cut for cut in range(1, len(hidden)) if self._ends_word(hidden[:cut], text)]
        cut = min(borders, key=lambda border: abs(border - target), default=target)
        labels = list(item["labels"])
        start = len(labels) - len(hidden)
        return {**item, "labels": labels[:start] + [IGNORE] * cut + labels[start + cut :]}

    def _ends_word(self, ids: list[int], text: str) -> bool:
        said = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.startswith(said) and text[len(said) : len(said) + 1].isspace()


Row = dict[str, Any]


def recover(
    model: Any,
    tokenizer: Any,
    asks: Sequence[Ask],
    *,
    batching: Batching,
    stage: str,
    progress: Report | None = None,
) -> list[Row]:
    """One row per ask, in order: ``index``, ``answer_probability``, ``generation``, ``rougeL_recall``, ``finite``.

    ``answer_probability`` is exp(mean log p) over the answer's tokens, eos included, 0 where a log-prob is not finite.
    Raises ConfigError when ids go beyond the model's vocabulary.
    """
    items = [ask.item for ask in asks]
    check_vocabulary(model, (item["input_ids"] for item in items))
    advance = counting(progress, stage, 2 * len(asks))
    scores = score_items(model, items, pad_token(tokenizer, model), batching=batching, progress=advance)
    texts = generate_texts(
        model,
        tokenizer,
        [ask.prompt for ask in asks],
        max_new_tokens=[ask.limit for ask in asks],
        batching=batching,
        progress=advance,
    )
    return [
        {
            "index": ask.index,
            PROBABILITY: probability(score["nll"]),
            "generation": text,
            ROUGE: rouge_recall(ask.truth, text),
            "finite": math.isfinite(score["nll"]),
        }
        for ask, score, text in zip(asks, scores, texts, strict=True)
    ]


def probability(nll: float) -> float:
    """exp(−nll), and 0 for a loss that is NaN or infinite: a broken model has given nothing away."""
    return math.exp(-nll) if math.isfinite(nll) else 0.0


def not_finite(rows: Sequence[Mapping[str, Any]], what: str = "answers") -> list[str]:
    """A note when some rows have ``finite`` False, else nothing."""
    broken = [row["index"] for row in rows if not row["finite"]]
    if not broken:
        return []
    return [
        f"{len(broken)} of {len(rows)} {what} have NaN or infinite log-probs, the first is forget row {broken[0]}; "
        "they count as not recovered"
    ]


def settings_of(attack: Any, seed: int) -> dict[str, Any]:
    """An attack's settings and seed for its result, without the batching, which does not change results."""
    values = asdict(attack)
    del values["batching"]
    return {**values, "seed": seed}


def check(value: Any, holds: Callable[[Any], bool], message: str) -> None:
    """Raise ConfigError with ``message`` and the value unless ``holds(value)``."""
    if not holds(value):
        raise ConfigError(f"{message}, not {value!r}")
