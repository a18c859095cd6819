"""Preference for "I don't know" over the answer to forget: IdkDPO and the KTO variant of arXiv 2404.05868."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from negpo.data.rows import load_rows
from negpo.errors import ConfigError, DataError
from negpo.objectives import dpo_loss, kto_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._run.script_arguments import ScriptArguments, Source
from negpo.trainers._run.settings import LIVE, Rule
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers._unlearn.data import ForgetRetainDataset, IdkRows, encode_rows

IDK_FIELDS = ("idk", "answer", "text")
LOSS_TYPES = ("dpo", "kto_log_sigmoid", "kto_sigmoid")


@dataclass
class IdkArguments(ScriptArguments):
    """Where the answers that say "I don't know" come from."""

    idk_file: str | None = field(default=None, metadata={"help": "Texts like TOFU's idontknow.jsonl."})

    def validate(self) -> None:
        super().validate()
        if self.idk_file is None:
            raise ConfigError("idk_file is missing: idkdpo needs texts such as TOFU's idontknow.jsonl")

    def further(self) -> dict[str, Any]:
        return super().further() | {"idk_answers": read_idk_answers(str(self.idk_file))}

    def sources(self) -> dict[str, Source]:
        return super().sources() | {"idk_answers": Source("idk", self.idk_file)}


@dataclass
class IdkDPOConfig(UnlearnConfig):
    """``forget_coeff * DPO(idk > answer)`` with the unlearning papers' factor 2/beta, plus a retain term.

    The KTO types need the batch's mean log-ratio of the idk rows: like the released code they take it from the
    micro-batch, so with them the loss does depend on ``per_device_train_batch_size``.
    """

    script_arguments: ClassVar[type[ScriptArguments] | None] = IdkArguments
    inherited: ClassVar[dict[str, Rule]] = {"pairing": LIVE}  # also of the "I don't know" answers

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: none, nll (DPO+RT), kl (DPO+KL)."})
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the preference term."})
    loss_type: str = field(default="dpo", metadata={"help": "dpo, kto_log_sigmoid or kto_sigmoid."})

    @property
    def reads_reference_logps(self) -> bool:
        return True

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(f"loss_type is {self.loss_type!r}; choose one of {', '.join(LOSS_TYPES)}")


class IdkDPOTrainer(UnlearnTrainer):
    """Each forget question is also answered with one of ``idk_answers``, drawn like a retain partner.

    Further argument: ``idk_answers``, texts such as the lines of TOFU's ``idontknow.jsonl``.
    """

    config_class: ClassVar[type[UnlearnConfig]] = IdkDPOConfig
    reduction = "rows"

    def __init__(self, model: Any, *positional: Any, idk_answers: Sequence[str] | None = None, **named: Any):
        self.idk_answers = _checked(idk_answers)
        super().__init__(model, *positional, **named)

    def encode(self, args, tokenizer, train_dataset, retain_dataset) -> ForgetRetainDataset:
        rows = list(train_dataset)
        dataset = super().encode(args, tokenizer, rows, retain_dataset)
        if "question" not in rows[0]:
            raise DataError("an 'I don't know' answer needs rows with question and answer", file="train_dataset", row=0)
        encode = partial(_encode_pair, tokenizer=tokenizer, template=self.template, max_length=args.max_length)
        kept = [rows[row_id] for row_id in dataset.row_ids]
        epochs = 1 if dataset.fixed_pairing else self._epochs(args, len(kept))
        dataset.idk = IdkRows(kept, self.idk_answers, encode, seed=dataset.seed, epochs=epochs)
        return dataset

    @staticmethod
    def _epochs(args: UnlearnConfig, n: int) -> int:
        """Passes over the data that the Trainer will begin."""
        if args.max_steps <= 0:
            return math.ceil(args.num_train_epochs)
        batches = math.ceil(n / (args.per_device_train_batch_size * max(1, args.world_size)))
        return math.ceil(args.max_steps / math.ceil(batches / args.gradient_accumulation_steps))

    def reference_parts(self, args) -> tuple[str, ...]:
        return ("forget", "idk")

    def forget_loss(self, parts: dict[str, Part]):
        forget, idk, beta = parts["forget"], parts["idk"], self.args.beta
        answer, unknown = (forget.logps, forget.ref_logps, forget.mask), (idk.logps, idk.ref_logps, idk.mask)
        if self.args.loss_type != "dpo":
            return kto_loss(*answer, *unknown, beta=beta, form=self.args.loss_type.removeprefix("kto_"))
        return dpo_loss(
            idk.logps, idk.mask, forget.logps, forget.mask, idk.ref_logps, forget.ref_logps, beta=beta, scale=2 / beta
        )


def read_idk_answers(source: str) -> list[str]:
    """The texts of a file; DataError names a row without any."""
    answers = []
    for index, row in enumerate(load_rows(source, required=())):
        key = next((name for name in IDK_FIELDS if name in row), None)
        if key is None:
            raise DataError(f"found fields {sorted(row)}; need one of {IDK_FIELDS}", file=source, row=index)
        answers.append(row[key])
    return answers


def _encode_pair(row: dict[str, str], answer: str, **settings: Any) -> dict[str, list[int]]:
    pair = [{"question": row["question"], "answer": answer}]
    return encode_rows(pair, name="idk_answers", **settings)[0][0]


def _checked(answers: Sequence[str] | None) -> list[str]:
    if not answers:
        raise ConfigError("idk_answers is missing: pass texts such as the lines of TOFU's idontknow.jsonl")
    for index, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise DataError("an answer is empty or not text", file="idk_answers", row=index)
    return list(answers)
