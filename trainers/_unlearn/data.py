"""Rows in, nested batches out.

Everything random here is a pure function of (seed, epoch, index): the order of the forget rows, the retain partner of
each and its "I don't know" answer. A resumed run therefore sees exactly the batches it would have seen.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from negpo.data.chat import Turn, chat_ids, common_length, row_tools, split_turn, template_options, text_ids
from negpo.data.collate import pad_batch
from negpo.data.preference import UNREAD, is_messages
from negpo.data.qa import IGNORE, QATemplate, encode_qa, encode_text
from negpo.errors import DataError
from negpo.trainers._run.rows import Encoded, draw

logger = logging.getLogger(__name__)

Row = dict[str, Any]
FORMATS = ("question", "answer"), ("prompt", "completion"), ("text",), ("input_ids", "labels")
PARTS = ("forget", "retain", "idk")


def check_rows(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows as a list, or DataError naming the argument, row and field that is missing, empty or no text."""
    rows = list(rows)
    if not rows:
        raise DataError("there are no rows", file=name)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"expected a dict with fields, found {type(row).__name__}", file=name, row=index)
        fields = _format_of(row, name, index)
        _check_columns(row, fields, name, index)
        if fields[0] == "input_ids":
            _check_ids(row, name, index)
        elif fields[0] != "prompt" or not all(is_messages(row[key]) for key in fields):
            for key in fields:
                _check_text(row[key], name, index, key)
    return rows


def _check_text(value: Any, name: str, index: int, key: str) -> None:
    if not isinstance(value, str):
        hint = "; prompt and completion must both be texts or both be messages" if is_messages(value) else ""
        raise DataError(f"expected text, found {type(value).__name__}{hint}", file=name, row=index, field=key)
    if not value.strip():
        raise DataError("the text is empty; fill it in or remove the row", file=name, row=index, field=key)


def _check_columns(row: Row, fields: tuple[str, ...], name: str, index: int) -> None:
    """DataError for a column that TRL reads and this row's format does not."""
    chat = fields[0] == "prompt" and is_messages(row["prompt"])
    for key in (UNREAD.keys() | {"tools", "chat_template_kwargs", "messages"}) & row.keys() - set(fields):
        if row[key] in (None, [], {}, "") or (chat and key in ("tools", "chat_template_kwargs")):
            continue
        reason = UNREAD.get(key, "it belongs to a prompt and a completion that are conversations")
        raise DataError(f"the column would not be used ({reason}); remove it", file=name, row=index, field=key)


def _check_ids(row: Row, name: str, index: int) -> None:
    for key in ("input_ids", "labels"):
        values = row[key]
        if not isinstance(values, Sequence) or not all(type(value) is int for value in values):
            raise DataError("expected a list of whole numbers", file=name, row=index, field=key)
    if len(row["input_ids"]) != len(row["labels"]) or not row["input_ids"]:
        raise DataError(
            f"{len(row['input_ids'])} input_ids and {len(row['labels'])} labels; one label for each id, -100 where "
            "none is trained",
            file=name,
            row=index,
            field="labels",
        )
    if min(row["input_ids"]) < 0 or min(row["labels"]) < IGNORE:
        raise DataError("negative ids; labels that are not trained are -100", file=name, row=index, field="labels")


def _format_of(row: Row, name: str, index: int) -> tuple[str, ...]:
    for fields in FORMATS:
        if fields[0] in row:
            if missing := [key for key in fields if key not in row]:
                raise DataError("the field is missing", file=name, row=index, field=missing[0])
            return fields
    shapes = ", or ".join(" and ".join(fields) for fields in FORMATS)
    raise DataError(f"found fields {sorted(row)}; a row needs {shapes}", file=name, row=index)


def check_disjoint(forget: Sequence[Row], retain: Sequence[Row]) -> None:
    """DataError when a row stands in both sets: its two terms would cancel, and the run would measure nothing."""
    places = {_identity(row): index for index, row in enumerate(retain)}
    shared = [(index, places[key]) for index, row in enumerate(forget) if (key := _identity(row)) in places]
    if not shared:
        return
    if len(shared) == len(forget) == len(retain):
        raise DataError("the forget set and the retain set are the same rows", file="retain_dataset")
    raise DataError(
        f"{len(shared)} of {len(forget)} forget rows also stand in the retain set, first forget row {shared[0][0]} = "
        f"retain row {shared[0][1]}. Remove them from one of the two",
        file="retain_dataset",
        row=shared[0][1],
    )


def _identity(row: Row) -> tuple:
    fields = next(fields for fields in FORMATS if fields[0] in row)
    return tuple(row[key].strip() if isinstance(row[key], str) else tuple(row[key]) for key in fields)


def encode_rows(
    rows: Sequence[Row], tokenizer: Any, template: QATemplate, *, max_length: int, name: str, label_stride: int = 1
) -> tuple[list[Encoded], list[int]]:
    """Token ids and labels of each row, and the row numbers they came from.

    A row whose answer is cut away by ``max_length`` raises DataError. With ``label_stride`` k > 1 only labels at
    positions k, 2k, ... stay; rows too short to keep one are left out and counted in a warning.
    """
    encoded, kept, cut = [], [], 0
    for index, row in enumerate(rows):
        try:
            item = _encode(row, tokenizer, template, max_length)
        except DataError as error:
            raise DataError(str(error), file=name, row=index) from error
        cut += len(item["input_ids"]) > max_length + 1  # the template may append one eos after its own truncation
        if len(item["input_ids"]) > max_length + 1:
            item = {key: values[:max_length] for key, values in item.items()}
        if not has_target(item, row, tokenizer, max_length):
            raise DataError(
                f"no answer token is left after cutting to max_length={max_length}; raise it or shorten the row",
                file=name,
                row=index,
                field="answer" if "answer" in row else "completion" if "completion" in row else None,
            )
        if label_stride > 1:
            item["labels"] = [
                label if position and position % label_stride == 0 else IGNORE
                for position, label in enumerate(item["labels"])
            ]
        if any(label != IGNORE for label in item["labels"][1:]):
            encoded.append(item)
            kept.append(index)
    if cut:
        logger.warning("%s: %d of %d rows are longer than max_length=%d and were cut", name, cut, len(rows), max_length)
    if len(kept) < len(rows):
        logger.warning("%s: %d rows have no label at a multiple of %d", name, len(rows) - len(kept), label_stride)
    if not encoded:
        raise DataError(f"label_stride={label_stride} leaves no label in any row; lower it", file=name)
    return encoded, kept


def _encode(row: Row, tokenizer: Any, template: QATemplate, max_length: int) -> Encoded:
    if "question" in row:
        return encode_qa(tokenizer, template, row["question"], row["answer"], max_length=max_length)
    if "prompt" in row:
        return _encode_completion(row, tokenizer)
    if "text" in row:
        # encode_text counts max_length after the (here empty) prefix, whose ids may hold a bos
        return {
            key: ids[:max_length] for key, ids in encode_text(tokenizer, row["text"], max_length=max_length).items()
        }
    return {"input_ids": list(row["input_ids"]), "labels": list(row["labels"])}


def _encode_completion(row: Row, tokenizer: Any) -> Encoded:
    """Texts end with the end token; conversations end as their template does."""
    if is_messages(row["prompt"]):
        options = template_options(row.get("chat_template_kwargs"))
        tools = row_tools(row.get("tools"))
        turn: Turn = split_turn(tokenizer, row["prompt"], row["completion"], thinking="off", tools=tools, **options)
        prompt, whole = chat_ids(tokenizer, turn.prompt), chat_ids(tokenizer, turn.prompt + turn.answer)
    else:
        prompt = text_ids(tokenizer, row["prompt"])
        whole = text_ids(tokenizer, row["prompt"] + row["completion"])
        whole += [] if whole[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
    start = common_length(prompt, whole)
    return {"input_ids": whole, "labels": [IGNORE] * start + whole[start:]}


def has_target(item: Encoded, row: Row, tokenizer: Any, max_length: int) -> bool:
    """Whether a label is left that belongs to the answer; a lone end token does not, unless nothing was cut."""
    labelled = [label for label in item["labels"][1:] if label != IGNORE]
    cut = len(item["input_ids"]) > max_length
    return bool(labelled) and not ("question" in row and cut and labelled == [tokenizer.eos_token_id])


@dataclass
class ForgetRetainDataset(torch.utils.data.Dataset):
    """Forget rows with their partners. Indexed by ``(epoch, index)``, so worker processes need no shared state.

    ``idk`` holds, for every forget row, its question with each candidate "I don't know" answer, encoded.
    ``references`` maps a part to a callable from its reference row number to log-probs.
    """

    forget: list[Encoded]
    retain: list[Encoded] | None
    seed: int
    fixed_pairing: bool
    row_ids: list[int]
    idk: "IdkRows | None" = None
    references: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, dict[str, Any]]:
        epoch, index = key
        parts = {"forget": self._part("forget", self.forget[index], index) | {"row_id": self.row_ids[index]}}
        drawn_in = 0 if self.fixed_pairing else epoch
        if self.retain is not None:
            partner = draw(self.seed, drawn_in, index, len(self.retain), "retain")
            parts["retain"] = self._part("retain", self.retain[partner], partner) | {"row_id": partner}
        if self.idk is not None:
            place = self.idk.place(drawn_in, index)
            parts["idk"] = self._part("idk", self.idk[place], place) | {"row_id": index}
        return parts

    def _part(self, name: str, item: Encoded, place: int) -> dict[str, Any]:
        reference = self.references.get(name)
        return dict(item) if reference is None else item | {"ref_logps": reference[place]}


def without_first_labels(dataset: ForgetRetainDataset, n: int) -> ForgetRetainDataset:
    """Forget rows without their first ``n`` labels; rows that have no other are left out with a warning.

    Raises DataError when no row is left.
    """
    kept = []
    for place, item in enumerate(dataset.forget):
        labelled = [i for i, label in enumerate(item["labels"]) if label != IGNORE]
        for i in labelled[:n]:
            item["labels"][i] = IGNORE
        if any(label != IGNORE for label in item["labels"][1:]):
            kept.append(place)
    if not kept:
        raise DataError(f"no answer is longer than the {n} tokens that are left out; lower that number")
    if len(kept) < len(dataset.forget):
        logger.warning("%d forget rows have no more than %d answer tokens", len(dataset.forget) - len(kept), n)
    dataset.forget = [dataset.forget[place] for place in kept]
    dataset.row_ids = [dataset.row_ids[place] for place in kept]
    return dataset


def all_tokens_labelled(dataset: ForgetRetainDataset) -> ForgetRetainDataset:
    """Forget rows whose prompt tokens are labels too."""
    for item in dataset.forget:
        item["labels"] = list(item["input_ids"])
    return dataset


class IdkRows(Sequence):
    """The (question, "I don't know" answer) pairs that a run will draw, each encoded once.

    ``rows`` are the forget rows, ``encode(row, answer)`` gives ids and labels. Because draws are pure, all pairs of all
    ``epochs`` are known before the first step and their reference log-probs can be cached like any others.
    """

    def __init__(self, rows: Sequence[Row], answers: Sequence[str], encode: Any, *, seed: int, epochs: int):
        self._seed, self._answers = seed, answers
        pairs = sorted({(i, self._answer(epoch, i)) for epoch in range(epochs) for i in range(len(rows))})
        self._places = {pair: place for place, pair in enumerate(pairs)}
        self._items = [encode(rows[index], answers[answer]) for index, answer in pairs]

    def _answer(self, epoch: int, index: int) -> int:
        return draw(self._seed, epoch, index, len(self._answers), "idk")

    def place(self, epoch: int, index: int) -> int:
        return self._places[index, self._answer(epoch, index)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Encoded:  # type: ignore[override]
        return self._items[place]


def collate(items: Sequence[dict[str, dict[str, Any]]], pad_id: int) -> dict[str, dict[str, torch.Tensor]]:
    """Items to ``{"forget": {...}, "retain": {...}}`` with input_ids, labels, attention_mask (B, T) and row_id (B,).

    ``ref_logps`` becomes (B, T-1) float32, 0 where nothing is labelled. The nesting keeps ``labels`` off the top level:
    transformers would otherwise sum micro-batch means over accumulation steps instead of averaging them.
    """
    batch = {}
    for name in PARTS:
        if name not in items[0]:
            continue
        rows = [item[name] for item in items]
        part = pad_batch(rows, pad_id)
        part["row_id"] = torch.tensor([row["row_id"] for row in rows])
        if "ref_logps" in rows[0]:
            mask = part["labels"][:, 1:] != IGNORE
            part["ref_logps"] = torch.zeros(mask.shape, dtype=torch.float32)
            part["ref_logps"][mask] = torch.cat([torch.tensor(row["ref_logps"]) for row in rows])
        batch[name] = part
    return batch
