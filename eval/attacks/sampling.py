"""Sampling attack: greedy decoding shows one answer, a patient attacker draws many.

A model whose likeliest answer is a refusal may still say the truth once in twenty draws; probability mass and the best
of n samples see that, greedy scores do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from negpo.data.collate import pad_batch
from negpo.eval.attacks.base import AttackData, AttackResult, Stopwatch, Target, conclude, curve
from negpo.eval.attacks.measure import PROBABILITY, ROUGE, Ask, Asker, check, not_finite, probability, settings_of
from negpo.eval.metrics import rouge_recall
from negpo.eval.scoring import Batching, Report, counting, decode, pad_token
from negpo.models import check_vocabulary, evaluating

MASS, WITHIN = "sequence_probability", "said_within_n"


@dataclass(frozen=True)
class Sample:
    """Draw ``n`` answers per question at ``temperature``, without truncation.

    max_rows: completions decoded together.
    """

    n: int = 16
    temperature: float = 1.0
    max_new_tokens: int = 200
    max_rows: int = 256
    batching: Batching = field(default_factory=Batching)

    name = "sampling"

    def __post_init__(self) -> None:
        check(self.n, lambda n: n >= 1, "n must be at least 1 sample")
        check(self.temperature, lambda temperature: temperature > 0, "temperature must be positive")
        check(self.max_rows, lambda rows: rows >= 1, "max_rows must be at least 1")

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """The value is mean ROUGE-L recall of the best of n samples; the curve gives the best of k = 1 … n.

        Also at this temperature: ``answer_probability``, exp(mean log p) over the answer's tokens;
        ``sequence_probability``, exp(sum), the mass on exactly this answer; ``said_within_n``, the chance that it is
        among n draws. A sample's randomness depends on seed, row and sample number only.

        Raises:
            EngineError: a generation ran into logits that are not finite, or out of memory.
        """
        model, tokenizer, template = target
        watch = Stopwatch()
        asker = Asker.for_model(model, tokenizer, template, self.max_new_tokens)
        asks = [asker.ask(item) for item in data.forget]
        rows = tempered(model, tokenizer, asks, self.temperature, self.batching)
        alive = [ask for ask, row in zip(asks, rows, strict=True) if row["finite"]]
        said = self._draw(model, tokenizer, alive, seed, progress)
        recalls = np.zeros((len(asks), self.n))
        for place, (ask, row) in enumerate(zip(asks, rows, strict=True)):
            texts = said.get(ask.index, [])
            recalls[place, : len(texts)] = [rouge_recall(ask.truth, text) for text in texts]
            best = int(recalls[place].argmax())
            row |= {
                "value": float(recalls[place, best]),
                "generation": texts[best] if texts else "",
                "rougeL_recall_by_sample": recalls[place].tolist(),
                WITHIN: -math.expm1(self.n * math.log1p(-min(row[MASS], 1 - 1e-16))),
            }
        by_k = best_of_k(recalls)
        measured = {ROUGE: recalls.max(axis=1), f"{ROUGE}_one_sample": recalls.mean(axis=1)}
        measured |= {key: np.array([row[key] for row in rows]) for key in (PROBABILITY, MASS, WITHIN)}
        curves = {f"best_of_k:{ROUGE}": curve({k + 1: by_k[:, k].tolist() for k in range(self.n)})}
        settings = settings_of(self, seed)
        del settings["max_rows"]
        notes = not_finite(rows)
        return watch.stamp(
            conclude(
                self.name,
                settings,
                ROUGE,
                {key: values.tolist() for key, values in measured.items()},
                curves=curves,
                per_item=rows,
                notes=notes,
            )
        )

    def _draw(
        self, model: Any, tokenizer: Any, asks: Sequence[Ask], seed: int, progress: Report | None
    ) -> dict[int, list[str]]:
        """n texts by row index."""
        if not asks:
            return {}
        from negpo.rollout import Sampling
        from negpo.rollout.transformers_engine import TransformersEngine

        advance = counting(progress, self.name, len(asks) * self.n)
        sampling = Sampling(
            temperature=self.temperature,
            n=self.n,
            max_new_tokens=max(ask.limit for ask in asks),
            seed=seed,
            logprobs=False,
        )
        drawn = TransformersEngine(model, tokenizer, max_rows=self.max_rows).generate(
            [ask.prompt for ask in asks],
            sampling,
            prompt_keys=[ask.index for ask in asks],
            on_sample=None if advance is None else lambda _: advance(1),
        )
        return {
            ask.index: [decode(tokenizer, sample.token_ids[: ask.limit]).strip() for sample in samples]
            for ask, samples in zip(asks, drawn, strict=True)
        }


def tempered(
    model: Any, tokenizer: Any, asks: Sequence[Ask], temperature: float, batching: Batching
) -> list[dict[str, Any]]:
    """``index``, ``answer_probability``, ``sequence_probability`` and ``finite`` per ask, at a temperature."""
    from negpo.logprobs import model_token_logprobs

    check_vocabulary(model, (ask.item["input_ids"] for ask in asks))
    rows: list[dict[str, Any]] = [{} for _ in asks]
    device = next(model.parameters()).device
    for places in batching.split([len(ask.item["input_ids"]) for ask in asks]):
        items = [asks[place].item for place in places]
        batch = pad_batch(items, pad_token(tokenizer, model), side=batching.padding_side)
        ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
        with evaluating(model):
            scored = model_token_logprobs(model, ids, mask, labels, temperature=temperature)
        sums, counts = scored.logps.double().sum(1).tolist(), scored.mask.sum(1).tolist()
        for place, total, count in zip(places, sums, counts, strict=True):
            rows[place] = {
                "index": asks[place].index,
                PROBABILITY: probability(-total / count),
                MASS: probability(-total),
                "finite": math.isfinite(total),
            }
    return rows


def best_of_k(values: np.ndarray) -> np.ndarray:
    """Expected maximum of k of the n values (N, n) drawn without replacement, for k = 1 … n: (N, n).

    The i-th smallest of n is the largest of k with probability C(i − 1, k − 1) / C(n, k): pass@k (arXiv 2107.03374)
    for scores instead of successes, unbiased for every k.
    """
    n = values.shape[1]
    weights = [[math.comb(i, k) / math.comb(n, k + 1) for k in range(n)] for i in range(n)]
    return np.sort(values, axis=1) @ np.array(weights)
