"""What `negpo demo rlvr` looks at while a policy trains: its rollouts, and the right answers it could give before.

Both are measured in the same way for every method. The trainers' own telemetry is not: it covers the rows a method
trains on, which for NSR are the wrong ones and for PSR the right ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from negpo.rewards import grade

if TYPE_CHECKING:
    from negpo.data.problems import Problem
    from negpo.data.protocols import Protocol
    from negpo.lab.problem_lab import ProblemWorld
    from negpo.rollout import RolloutEngine, Sample, Sampling

PROBE_BATCH = 256  # rows scored at once


@dataclass(frozen=True)
class Known:
    """Gold answer, level and question of a problem, found by its prompt."""

    gold: str
    level: str
    question: str


class WatchedEngine:
    """A rollout engine that keeps a summary of everything it draws; in all else the engine it is made from.

    Its verdicts are those of the verifier itself, whatever errors the training's verifier makes.
    """

    def __init__(self, engine: RolloutEngine, tokenizer: Any, known: Mapping[str, Known], world: ProblemWorld):
        self.engine, self.tokenizer, self.known, self.world = engine, tokenizer, known, world
        self.rollouts: list[dict[str, Any]] = []
        self.prompts: list[str] = []  # asked for so far, in order: equal for methods with equal rollouts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> list[list[Sample]]:
        """See `RolloutEngine.generate`."""
        groups = self.engine.generate(prompt_ids, sampling, **options)
        prompts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        self.prompts += prompts
        self.rollouts.append(self._summary(prompts, groups))
        return groups

    def _summary(self, prompts: Sequence[str], groups: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        levels: dict[str, list[dict[str, float]]] = defaultdict(list)
        for prompt, group in zip(prompts, groups, strict=True):
            levels[self.known[prompt].level].append(self._group(self.known[prompt], group))
        every = [group for members in levels.values() for group in members]
        return {"samples": sum(map(len, groups)), **_means(every)} | {
            "levels": {level: _means(members) for level, members in sorted(levels.items())}
        }

    def _group(self, known: Known, group: Sequence[Sample]) -> dict[str, float]:
        """One group of answers."""
        texts = [self.tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in group]
        right = [grade(text, known.gold, kind=self.world.kind).status == "correct" for text in texts]
        return {
            "right": float(np.mean(right)),
            "all_wrong": float(not any(right)),
            "all_right": float(all(right)),
            "complete": float(np.mean([self.world.in_style(text, known.question) for text in texts])),
            "distinct": len(set(texts)) / len(texts),
            "logp": float(np.mean([sum(sample.logprobs) for sample in group])),
            "tokens": float(np.mean([len(sample.token_ids) for sample in group])),
        }


def _means(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over groups; `entropy` is an unbiased estimate of the entropy per token, in nats."""
    means = {name: float(np.mean([group[name] for group in groups])) for name in groups[0]}
    return means | {"entropy": -means["logp"] / means["tokens"]}


@dataclass(frozen=True)
class ProbeAnswer:
    """A right answer that the model gave before any training; ids hold prompt, answer and end.

    complete: whether it is in the style of its world; arithmetic answers can be right by leaving out what adds nothing.
    """

    problem: str
    prompt_tokens: int
    ids: tuple[int, ...]
    complete: bool


class Probe:
    """How probable the policy finds right answers to test problems that the model gave before training.

    Where a method pushes wrong answers down and right ones sink along with them (likelihood displacement, arXiv
    2505.18830), it shows here, on problems the method never trained on.
    """

    def __init__(self, answers: Sequence[ProbeAnswer], pad_id: int):
        self.answers, self.pad_id = answers, pad_id

    def score(self, model: Any) -> np.ndarray:
        """(N,) log-prob of every answer in nats, in the order of `answers`; float64."""
        from negpo.models import evaluating

        order = sorted(range(len(self.answers)), key=lambda index: len(self.answers[index].ids))
        scores = np.empty(len(order))
        with evaluating(model):
            for start in range(0, len(order), PROBE_BATCH):
                part = order[start : start + PROBE_BATCH]
                scores[part] = self._score_batch(model, [self.answers[index] for index in part])
        return scores

    def _score_batch(self, model: Any, answers: Sequence[ProbeAnswer]) -> np.ndarray:
        import torch

        from negpo.logprobs import model_token_logprobs

        width = max(len(answer.ids) for answer in answers)
        ids = torch.full((len(answers), width), self.pad_id)
        labels = torch.full((len(answers), width), -100)
        mask = torch.zeros((len(answers), width), dtype=torch.long)
        for row, answer in enumerate(answers):
            tokens = torch.tensor(answer.ids)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, answer.prompt_tokens : len(tokens)] = tokens[answer.prompt_tokens :]
        return model_token_logprobs(model, ids, mask, labels).logps.double().sum(1).numpy()


def probe_answers(
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    card: Protocol,
    tokenizer: Any,
    in_style: Callable[[str, str], bool],
    most: int = 4,
) -> list[ProbeAnswer]:
    """Up to `most` different right answers per problem, those drawn first.

    Args:
        rows: right samples (`problem`, `text`) in the order they were drawn.
        card: how a question becomes a prompt. in_style: of the world.
    """
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        if len(texts[row["problem"]]) < most:
            texts[row["problem"]][row["text"]] = None
    answers = []
    for problem in problems:
        prompt = card.render(tokenizer, problem.question)
        for text in texts[problem.id]:
            ids = (*prompt, *tokenizer(text)["input_ids"], tokenizer.eos_token_id)
            answers.append(ProbeAnswer(problem.id, len(prompt), ids, in_style(text, problem.question)))
    return answers
