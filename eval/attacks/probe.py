"""Attacks on hidden states: knowledge that the output no longer shows but a layer still holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from negpo.data.qa import QATemplate, encode_qa
from negpo.errors import DataError
from negpo.eval.attacks.base import AttackData, AttackItem, AttackResult, Stopwatch, Target, conclude, curve
from negpo.eval.attacks.hidden import Lens, answer_states
from negpo.eval.attacks.measure import PROBABILITY, UNCUT, check, not_finite, probability, settings_of
from negpo.eval.scoring import Batching, Report, counting, pad_token
from negpo.eval.statistics import roc_auc

TOP, RECIPROCAL = "rank_1_share", "mean_reciprocal_rank"
AUC = "auc"


@dataclass(frozen=True)
class LogitLens:
    """Read the answer out of every layer with the model's own final norm and head."""

    batching: Batching = field(default_factory=Batching)

    name = "logit_lens"

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """The value is mean answer probability (exp of the mean log p, eos included) at the layer where it is highest.

        Curves (x = layer, 0 the embeddings, the last the model's output) of this probability, of the share of answer
        tokens that are the layer's first choice, and of their mean reciprocal rank.

        Raises:
            ConfigError: the model has no final norm by a usual name, or returns no hidden states.
        """
        model, tokenizer, template = target
        watch = Stopwatch()
        items = [encode_qa(tokenizer, template, item.question, item.answer, max_length=UNCUT) for item in data.forget]
        lens = Lens(model)
        read: list[list[dict[str, float]]] = [[] for _ in items]  # per item, per layer
        advance = counting(progress, self.name, len(items))
        for states in answer_states(model, items, pad_token(tokenizer, model), self.batching):
            for layer in range(len(states.layers)):
                logps, ranks = (part.double().cpu().numpy() for part in lens.read(states, layer))
                row = states.row.cpu().numpy()
                for place, item in enumerate(states.items):
                    read[item].append(_layer_summary(logps[row == place], ranks[row == place]))
            if advance:
                advance(len(states.items))
        keys = (PROBABILITY, TOP, RECIPROCAL)
        depth = len(read[0])
        table = {key: np.array([[layer[key] for layer in layers] for layers in read]) for key in keys}  # (N, layers)
        best = int(table[PROBABILITY].mean(axis=0).argmax())
        per_item = [
            {
                "index": item.index,
                "value": float(table[PROBABILITY][place, best]),
                "finite": math.isfinite(read[place][-1]["nll"]),
                **{key: table[key][place].tolist() for key in keys},
            }
            for place, item in enumerate(data.forget)
        ]
        measured = {key: table[key][:, best].tolist() for key in keys}
        measured[f"{PROBABILITY}_output"] = table[PROBABILITY][:, -1].tolist()
        curves = {key: curve({layer: table[key][:, layer].tolist() for layer in range(depth)}) for key in keys}
        notes = [f"highest at layer {best} of {depth - 1}", *not_finite(per_item)]
        return watch.stamp(
            conclude(
                self.name,
                settings_of(self, seed),
                PROBABILITY,
                measured,
                curves=curves,
                per_item=per_item,
                notes=notes,
            )
        )


def _layer_summary(logps: np.ndarray, ranks: np.ndarray) -> dict[str, float]:
    nll = float(-logps.mean())
    if not math.isfinite(nll):  # nothing compares as larger than NaN: every rank would be 1
        return {"nll": nll, PROBABILITY: 0.0, TOP: 0.0, RECIPROCAL: 0.0}
    return {"nll": nll, PROBABILITY: probability(nll), TOP: float((ranks == 1).mean()), RECIPROCAL: (1 / ranks).mean()}


@dataclass(frozen=True)
class LinearProbe:
    """Tell the right answer from its perturbed ones by a logistic regression on mean-pooled hidden states.

    folds: of cross-validation by question; neighbouring questions stay in one fold, because data sets keep rows about
    one subject together and a probe that has seen the fact in another wording would only recognise it. strength:
    inverse of the L2 penalty, on standardised features.
    """

    folds: int = 5
    strength: float = 0.01
    batching: Batching = field(default_factory=Batching)

    name = "linear_probe"

    def __post_init__(self) -> None:
        check(self.folds, lambda folds: folds >= 2, "folds must be at least 2")
        check(self.strength, lambda strength: strength > 0, "strength must be positive")

    def run(self, target: Target, data: AttackData, *, seed: int, progress: Report | None = None) -> AttackResult:
        """The value is the mean over questions of the AUC of right against wrong answers, from questions left out.

        0.5: the layers do not tell. Each fold uses the layer that is best on the other folds, so that choosing among
        layers earns nothing; the curve (x = layer, 0 the embeddings) shows all. ``auc_embeddings`` is what the words
        alone give away: facts that several questions share, or names that look unusual. The right answer is the
        paraphrased one where there is one, because perturbed answers are worded like it: a probe must not win by
        recognising the wording.

        Raises:
            DataError: no question has perturbed answers, or fewer than two per fold on average have.
        """
        model, tokenizer, template = target
        watch = Stopwatch()
        items = [item for item in data.forget if item.perturbed]
        if not items:
            raise DataError(
                "linear_probe compares the answer with perturbed answers, and no row has any",
                file="forget",
                row=data.forget[0].index,
                field="perturbed",
            )
        if len(items) < 2 * self.folds:
            raise DataError(f"{len(items)} questions with perturbed answers are too few for {self.folds} folds of two")
        pooled = self._pool(model, tokenizer, items, template, progress)
        finite = np.isfinite(pooled).all(axis=(1, 2))
        owner = np.repeat(np.arange(len(items)), [1 + len(item.perturbed) for item in items])
        broken = set(owner[~finite].tolist())
        fold = np.arange(len(items)) * self.folds // len(items)
        aucs = self._aucs(pooled, owner, fold, broken)  # (questions, layers)
        # layer 0, the embeddings, is no choice: it has read nothing but the answer's words
        picked = [1 + int(aucs[fold != own, 1:].mean(axis=0).argmax()) for own in range(self.folds)]
        values = [float(aucs[place, picked[own]]) for place, own in enumerate(fold)]
        rows = [
            {
                "index": item.index,
                "value": values[place],
                "layer": picked[fold[place]],
                "auc_by_layer": aucs[place].tolist(),
                "finite": place not in broken,
            }
            for place, item in enumerate(items)
        ]
        measured = {AUC: values, f"{AUC}_embeddings": aucs[:, 0].tolist()}
        curves = {AUC: curve({layer: aucs[:, layer].tolist() for layer in range(aucs.shape[1])})}
        notes = [*_left_out(data.forget), *not_finite(rows, "questions")]
        return watch.stamp(
            conclude(self.name, settings_of(self, seed), AUC, measured, curves=curves, per_item=rows, notes=notes)
        )

    def _pool(
        self, model: Any, tokenizer: Any, items: Sequence[AttackItem], template: QATemplate, progress: Report | None
    ) -> np.ndarray:
        """Mean state over the answer's tokens, (answers, layers, H) float32: per item the right one, then the wrong."""
        texts = [
            (item.question, text)
            for item in items
            for text in (item.paraphrased_answer or item.answer, *item.perturbed)
        ]
        encoded = [encode_qa(tokenizer, template, *pair, max_length=UNCUT) for pair in texts]
        advance = counting(progress, self.name, len(encoded))
        pooled: list[Any] = [None] * len(encoded)
        for states in answer_states(model, encoded, pad_token(tokenizer, model), self.batching):
            layers = [layer.float().cpu().numpy() for layer in states.layers]
            row = states.row.cpu().numpy()
            for place, index in enumerate(states.items):
                pooled[index] = np.stack([layer[row == place].mean(axis=0) for layer in layers])
            if advance:
                advance(len(states.items))
        return np.stack(pooled)

    def _aucs(self, pooled: np.ndarray, owner: np.ndarray, fold: np.ndarray, broken: set[int]) -> np.ndarray:
        """AUC (questions, layers) from probes that saw the other folds only; 0.5 for questions with NaN states."""
        right = np.r_[True, owner[1:] != owner[:-1]]
        usable = ~np.isin(owner, list(broken))
        aucs = np.full((len(fold), pooled.shape[1]), 0.5)
        for layer in range(pooled.shape[1]):
            features = _centred(pooled[:, layer].astype(np.float64), owner)
            for own in range(self.folds):
                seen = usable & (fold[owner] != own)
                tested = usable & (fold[owner] == own)
                if not seen.any() or not tested.any():
                    continue
                scores = self._scores(features[seen], right[seen], features[tested])
                for question in np.unique(owner[tested]):
                    mine = owner[tested] == question
                    aucs[question, layer] = roc_auc(scores[mine & ~right[tested]], scores[mine & right[tested]])
        return aucs

    def _scores(self, seen: np.ndarray, right: np.ndarray, tested: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        spread = seen.std(axis=0)
        spread[spread == 0] = 1.0
        probe = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=1000)
        return probe.fit(seen / spread, right).decision_function(tested / spread)


def _centred(features: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Features (answers, H) minus the mean of their question's answers: what differs is the answer alone."""
    sums = np.zeros((owner.max() + 1, features.shape[1]))
    np.add.at(sums, owner, features)
    return features - (sums / np.bincount(owner)[:, None])[owner]


def _left_out(every: Sequence[AttackItem]) -> list[str]:
    lacking = [item.index for item in every if not item.perturbed]
    if not lacking:
        return []
    return [
        f"{len(lacking)} of {len(every)} questions have no perturbed answers, the first is row {lacking[0]}: left out"
    ]
