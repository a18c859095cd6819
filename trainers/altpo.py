"""AltPO: an alternate answer, made up by the target itself, preferred over the one to forget: arXiv 2409.13474."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from negpo.errors import DataError
from negpo.objectives import dpo_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.config import UnlearnConfig
from negpo.trainers._unlearn.data import Encoded, ForgetRetainDataset, encode_rows

FIELDS = ("alternate", "sub_answer")  # open-unlearning's and the authors' name


@dataclass
class AltPOConfig(UnlearnConfig):
    """``forget_coeff * (2/beta) softplus(-beta (r(alternate) - r(answer)))`` plus a retain term."""

    retain_loss: str = field(default="nll", metadata={"help": "Term on retain rows: none, nll or kl."})
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})
    forget_coeff: float = field(default=1.0, metadata={"help": "Weight of the preference term."})

    @property
    def reads_reference_logps(self) -> bool:
        return True

    @property
    def forget_weight(self) -> float:
        return self.forget_coeff

    def validate(self) -> None:
        super().validate()
        require_positive(self, "beta")


class AltPOTrainer(UnlearnTrainer):
    """Forget rows are ``{question, answer, alternate}`` (or ``sub_answer``), one row per alternate answer.

    ``negpo data alternates`` writes them. The alternate is logged as ``idk/...``: it stands where a refusal does.
    """

    config_class = AltPOConfig
    reduction = "rows"

    def encode(self, args: Any, tokenizer: Any, train_dataset: Any, retain_dataset: Any) -> ForgetRetainDataset:
        rows = list(train_dataset)
        dataset = super().encode(args, tokenizer, rows, retain_dataset)
        pairs = [_alternate(rows[index], index) for index in dataset.row_ids]
        settings = {"template": self.template, "max_length": args.max_length, "name": "train_dataset"}
        encoded, _ = encode_rows(pairs, tokenizer, **settings)
        dataset.idk = OneEach(encoded)  # type: ignore[assignment]  # both give the rows beside a forget row
        return dataset

    def reference_parts(self, args) -> tuple[str, ...]:
        return ("forget", "idk")

    def forget_loss(self, parts: dict[str, Part]):
        forget, alternate, beta = parts["forget"], parts["idk"], self.args.beta
        winner, loser = (alternate.logps, alternate.mask), (forget.logps, forget.mask)
        return dpo_loss(*winner, *loser, alternate.ref_logps, forget.ref_logps, beta=beta, scale=2 / beta)


class OneEach(Sequence):
    """The alternate of each forget row, in their order."""

    def __init__(self, items: list[Encoded]):
        self._items = items

    def place(self, epoch: int, index: int) -> int:
        return index

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Encoded:  # type: ignore[override]
        return self._items[place]


def _alternate(row: dict[str, Any], index: int) -> dict[str, str]:
    name = next((name for name in FIELDS if name in row), None)
    if name is None or "question" not in row:
        raise DataError(
            f"found fields {sorted(row)}; altpo needs question, answer and alternate (from negpo data alternates)",
            file="train_dataset",
            row=index,
        )
    if not isinstance(row[name], str) or not row[name].strip():
        raise DataError("the alternate answer is empty or no text", file="train_dataset", row=index, field=name)
    if row[name].strip() == row["answer"].strip():
        raise DataError("the alternate is the answer to forget itself", file="train_dataset", row=index, field=name)
    return {"question": row["question"], "answer": row[name]}
