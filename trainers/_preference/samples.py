"""The model's own answers to the training prompts: drawn once and kept on disk, or drawn again while training."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from negpo.data.io import append_jsonl, read_jsonl
from negpo.data.preference_encode import Group
from negpo.rollout import RolloutEngine, Sample, Sampling

logger = logging.getLogger(__name__)

Ids = list[int]


@dataclass(frozen=True)
class SampleRequest:
    """``k`` answers for every prompt. ``prompts[p]`` are the ways in which prompt p is asked (one, or one for each
    prefix); answer i comes from way ``i % len(prompts[p])``. ``keys`` name the prompts for the random numbers."""

    prompts: list[list[Ids]]
    keys: list[str]
    k: int
    sampling: Sampling

    def select(self, places: Sequence[int]) -> "SampleRequest":
        return replace(self, prompts=[self.prompts[p] for p in places], keys=[self.keys[p] for p in places])

    def digest(self, weights: str) -> str:
        key = [self.prompts, self.keys, self.k, asdict(self.sampling), weights]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def draw(
    engine: RolloutEngine, request: SampleRequest, keep: Callable[[int, int, Ids], None] | None = None
) -> list[list[Ids]]:
    """Token ids of all answers, (prompt, answer). ``keep(prompt, answer, ids)`` sees each as soon as it is complete."""
    found: list[list[Ids]] = [[[] for _ in range(request.k)] for _ in request.prompts]
    flat = [(p, way) for p, ways in enumerate(request.prompts) for way in range(len(ways))]
    ways = max(map(len, request.prompts))
    sampling = replace(request.sampling, n=-(-request.k // ways))

    def take(sample: Sample) -> None:
        p, way = flat[sample.prompt]
        answer = sample.index * len(request.prompts[p]) + way
        found[p][answer] = list(sample.token_ids)
        if keep is not None:
            keep(p, answer, found[p][answer])

    engine.generate(
        [request.prompts[p][way] for p, way in flat],
        sampling,
        prompt_keys=[f"{request.keys[p]}/{way}" for p, way in flat],
        wanted=[(i, s) for i, (_, way) in enumerate(flat) for s in range(sampling.n) if s * ways + way < request.k],
        on_sample=take,
    )
    return found


def cached_draw(
    make_engine: Callable[[], RolloutEngine], request: SampleRequest, folder: Path, weights: str
) -> list[list[Ids]]:
    """``draw`` once for these weights, prompts and settings; an interrupted one is continued, not repeated."""
    path = folder / f"{request.digest(weights)[:24]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(row["prompt"], row["answer"]): row["ids"] for row in read_jsonl(path)} if path.exists() else {}
    missing = [p for p in range(len(request.prompts)) if any((p, a) not in known for a in range(request.k))]
    if missing:
        logger.info("samples: drawing answers to %d of %d prompts into %s", len(missing), len(request.prompts), path)

        def keep(place: int, answer: int, ids: Ids) -> None:
            if (missing[place], answer) not in known:
                known[missing[place], answer] = ids
                append_jsonl(path, {"prompt": missing[place], "answer": answer, "ids": ids})

        draw(make_engine(), request.select(missing), keep)
    return [[known[p, a] for a in range(request.k)] for p in range(len(request.prompts))]


def with_samples(group: Group, answers: list[list[int]]) -> Group:
    """The group's rejected completions and, in the place of earlier ones, these samples."""
    rejected = group.select([k for k, sign in enumerate(group.signs) if sign < 0])
    n = len(answers)
    return replace(
        rejected,
        completion_ids=rejected.completion_ids + answers,
        signs=rejected.signs + [0] * n,
        scores=rejected.scores + [None] * n,
        cuts=rejected.cuts + [min(rejected.cuts)] * n,
    )


def samples_of(group: Group) -> list[list[int]]:
    """Token ids of the group's samples."""
    return [ids for ids, sign in zip(group.completion_ids, group.signs, strict=True) if sign == 0]
