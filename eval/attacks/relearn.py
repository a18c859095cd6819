"""Relearning attack: a few optimiser steps on related data, and how much else of the forget set comes back.

Hu et al., "Jogging the Memory of Unlearned Models Through Targeted Relearning Attacks", arXiv 2406.13356. What counts
is knowledge of forget rows that were not fine-tuned on: a model that never knew them learns the style of the answers
too, which is why the same attack on a retain-only model is the line to compare with.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from negpo.data.collate import pad_batch
from negpo.data.qa import Item, encode_qa
from negpo.errors import ConfigError, DataError
from negpo.eval.attacks.base import (
    AttackData,
    AttackItem,
    AttackResult,
    Stopwatch,
    Target,
    conclude,
    curve,
    private_copy,
)
from negpo.eval.attacks.measure import (
    PROBABILITY,
    ROUGE,
    UNCUT,
    Asker,
    Row,
    check,
    not_finite,
    recover,
    settings_of,
)
from negpo.eval.scoring import Batching, Report, pad_token

Source = Literal["forget", "paraphrase", "retain"]
SOURCES: tuple[Source, ...] = ("forget", "paraphrase", "retain")
# Adam's best rate falls with the width (arXiv 2203.03466): 2e-5 at 4,096 hidden units, a usual rate for fine-tuning
RATE_TIMES_WIDTH = 0.08


@dataclass(frozen=True)
class Relearn:
    """Fine-tune all weights with AdamW at a constant rate and look again after 1, 2, 4, … ``steps`` steps.

    source: ``forget`` rows, other wordings (``paraphrase``) of forget rows, or ``retain`` rows only. k: rows that are
    fine-tuned on; None is half of the forget rows, or all retain rows. lr: None is 0.08 / hidden size. batch_size: rows
    per step.
    """

    source: Source = "forget"
    k: int | None = None
    steps: int = 32
    lr: float | None = None
    batch_size: int = 8
    max_new_tokens: int = 200
    batching: Batching = field(default_factory=Batching)

    def __post_init__(self) -> None:
        check(self.source, lambda source: source in SOURCES, f"source must be one of {', '.join(SOURCES)}")
        check(self.k, lambda k: k is None or k >= 1, "k must be at least 1 row or None")
        check(self.steps, lambda steps: steps >= 1, "steps must be at least 1")
        check(self.batch_size, lambda size: size >= 1, "batch_size must be at least 1")
        check(self.lr, lambda lr: lr is None or lr > 0, "lr must be positive or None")

    @property
    def name(self) -> str:
        return f"relearn_{self.source}"

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """The value is mean answer probability of forget rows not fine-tuned on, after the step where it is highest.

        An attacker keeps the best checkpoint, so a model cannot hide behind a later one. Not ROUGE: fine-tuning teaches
        every model the phrases of the answers, which overlap counts and which probability does less. Curves (x = step):
        both measures on these rows, and with the prefix ``used_`` on the rows fine-tuned on. The copy that is trained
        is float32; it needs four times its size in memory.

        Raises:
            ConfigError: ``k`` leaves no forget row to measure, or exceeds the retain rows.
            DataError: no retain rows; a row to be fine-tuned on has no paraphrase.
        """
        model, tokenizer, template = target
        watch = Stopwatch()
        material = chosen(data, self.source, self.k, seed)
        pairs = [_pair(item, self.source) for item in material]
        items = [encode_qa(tokenizer, template, *pair, max_length=UNCUT) for pair in pairs]
        used = {item.index for item in material} if self.source != "retain" else set()
        asker = Asker.for_model(model, tokenizer, template, self.max_new_tokens)
        asks = [asker.ask(item) for item in data.forget]
        student = private_copy(model).float()
        rate = self.lr or RATE_TIMES_WIDTH / student.config.get_text_config().hidden_size
        batches = list(_batches(items, self.steps, self.batch_size, random.Random(f"{self.name}-{seed}")))
        notes: list[str] = []
        history: dict[int, list[Row]] = {}
        for step, loss in _training(student, batches, rate, pad_token(tokenizer, student)):
            if not math.isfinite(loss):
                notes.append(f"the loss became {loss} at step {step}: fine-tuning ended there")
                break
            if step in _looks(self.steps):
                stage = f"{self.name}: step {step} of {self.steps}"
                history[step] = recover(
                    student, tokenizer, asks, batching=self.batching, stage=stage, progress=progress
                )
        settings = {**settings_of(self, seed), "lr": rate, "rows": sorted(item.index for item in material)}
        return watch.stamp(_summarise(self.name, settings, history, used, notes))


def chosen(data: AttackData, source: Source, k: int | None, seed: int) -> tuple[AttackItem, ...]:
    """The rows to fine-tune on: k neighbours from a seeded place on, round the end.

    Neighbours, because data sets keep rows about one subject together: rows that are measured then state facts that the
    chosen ones do not.
    """
    pool = data.retain if source == "retain" else data.forget
    if not pool:
        raise DataError("there are no retain rows to relearn from; give the retain set or leave relearn_retain out")
    count = k or (len(pool) if source == "retain" else (len(pool) + 1) // 2)
    if source != "retain" and count >= len(pool):
        raise ConfigError(
            f"fine-tuning on {count} of {len(pool)} forget rows leaves none to measure; give more rows or a smaller k"
        )
    if count > len(pool):
        raise ConfigError(f"k={k} exceeds the {len(pool)} {source} rows")
    start = random.Random(f"relearn-{seed}").randrange(len(pool))
    return tuple(pool[(start + offset) % len(pool)] for offset in range(count))


def _pair(item: AttackItem, source: Source) -> tuple[str, str]:
    if source != "paraphrase":
        return item.question, item.answer
    if not item.paraphrases and not item.paraphrased_answer:
        raise DataError(
            "neither question nor answer has another wording; leave relearn_paraphrase out",
            file="forget",
            row=item.index,
            field="paraphrased_answer",
        )
    return (item.paraphrases or (item.question,))[0], item.paraphrased_answer or item.answer


def _batches(items: Sequence[Item], steps: int, size: int, rng: random.Random) -> Iterator[list[Item]]:
    """``steps`` batches from shuffled passes over ``items``; none is repeated before all were seen."""
    queue: list[Item] = []
    for _ in range(steps):
        while len(queue) < size:
            queue += rng.sample(list(items), len(items))
        yield queue[:size]
        del queue[:size]


def _training(model: Any, batches: Sequence[list[Item]], lr: float, pad_id: int) -> Iterator[tuple[int, float]]:
    """(0, 0.0) before training, then (step, loss) after every step. Without dropout, so nothing is drawn at random."""
    from negpo.logprobs import model_token_logprobs

    yield 0, 0.0
    model.eval()
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for step, items in enumerate(batches, start=1):
        batch = {key: value.to(parameters[0].device) for key, value in pad_batch(items, pad_id).items()}
        with torch.enable_grad():
            scored = model_token_logprobs(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
            loss = -scored.logps.sum() / scored.mask.sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, float(loss.detach())


def _looks(steps: int) -> set[int]:
    """0, the powers of two below ``steps``, and ``steps``."""
    return {0, steps} | {2**power for power in range(steps.bit_length()) if 2**power < steps}


def _summarise(
    name: str, settings: dict[str, Any], history: dict[int, list[Row]], used: set[int], notes: list[str]
) -> AttackResult:
    first = history[0]
    groups = {
        "": [place for place, row in enumerate(first) if row["index"] not in used],
        "used_": [place for place, row in enumerate(first) if row["index"] in used],
    }
    values = {
        f"{prefix}{key}": {step: [rows[place][key] for place in places] for step, rows in history.items()}
        for prefix, places in groups.items()
        for key in (ROUGE, PROBABILITY)
        if places
    }
    best = max(history, key=lambda step: sum(values[PROBABILITY][step]))
    measured = {key: points[best] for key, points in values.items()}
    measured |= {f"{key}_before": values[key][0] for key in (ROUGE, PROBABILITY)}
    per_item = []
    for place, row in enumerate(first):
        path = {key: [rows[place][key] for rows in history.values()] for key in (ROUGE, PROBABILITY)}
        final = history[best][place]
        per_item.append({"index": row["index"], "used": row["index"] in used, "generation": final["generation"]} | path)
        if row["index"] not in used:
            per_item[-1]["value"] = final[PROBABILITY]
    notes = [f"highest after step {best}", *notes, *not_finite(history[best])]
    curves = {key: curve(points) for key, points in values.items()}
    settings = {**settings, "looks": list(history)}
    return conclude(name, settings, PROBABILITY, measured, curves=curves, per_item=per_item, notes=notes)
