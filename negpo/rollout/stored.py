"""Rollouts from a file: completions with their verdicts or rewards, drawn and judged once and trained on many times.

One JSON object a line:

* ``prompt`` (text or messages), ``completion`` (text)
* ``verdict`` ("correct", "wrong", "unknown", or true, false, null) or ``reward`` (a number, null for unknown)
* optional: ``logprobs``, one per token of the completion and its end token, of the policy that wrote it at the
  sampling temperature; without them they are computed once with the starting model
* optional: ``token_ids``, where the text's own tokenisation is another one; ``finished``: false for an answer that was
  cut off
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from negpo.data.io import read_jsonl
from negpo.errors import ConfigError, DataError
from negpo.rewards.outcome import Rewards
from negpo.rewards.verdict import Verdict
from negpo.rollout.base import Sample, Sampling, SyncReport

logger = logging.getLogger(__name__)
VERDICTS: dict[Any, str] = {name: name for name in ("correct", "wrong", "unknown")}
VERDICTS |= {True: "correct", False: "wrong", None: "unknown"}
Text = str | list[dict[str, Any]]
Score = Callable[[list[list[int]], list[list[int]]], list[list[float]]]  # prompts, completions -> log-probs


@dataclass(frozen=True)
class StoredSample:
    """One completion: its ids, the log-prob of each where known, and what was made of it. ``row`` of the file."""

    token_ids: list[int]
    logprobs: list[float] | None
    status: str
    reward: float | None
    row: int


@dataclass
class StoredRollouts:
    """A rollout engine that draws from a file. ``prompts``: data set rows; ``groups``: completions by prompt.

    Draw r of a prompt gives its r-th group of ``n`` completions, from the start again after the last.
    """

    prompts: list[Text]
    groups: list[list[StoredSample]]
    file: str
    judged: bool  # by verdicts; else by rewards
    name: str = "stored"
    model: Any = None
    _place: dict[tuple[int, ...], int] = field(default_factory=dict)  # prompt ids -> place in prompts
    _rewards: dict[tuple[int, tuple[int, ...]], StoredSample] = field(default_factory=dict)
    _per_epoch: int = 1  # rollout batches until every prompt was drawn once

    @classmethod
    def load(cls, path: str | Path, tokenizer: Any, *, samples: int, max_tokens: int) -> StoredRollouts:
        """Read a file; prompts with fewer than ``samples`` usable completions, and completions beyond ``max_tokens``,
        are left out with a count.

        Raises:
            ConfigError: there is no such file. DataError: a row that cannot be read (row and field), or nothing left.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"rollouts={path}: there is no such file")
        rows = read_jsonl(path, repair=False)
        reader = _Reader(str(path), tokenizer)
        found: dict[str, list[StoredSample]] = defaultdict(list)
        prompts: dict[str, Text] = {}
        long = 0
        for index, row in enumerate(rows):
            prompt, sample = reader.read(row, index)
            if len(sample.token_ids) > max_tokens:
                long += 1
                continue
            found[repr(prompt)].append(sample)
            prompts[repr(prompt)] = prompt
        full = [key for key, group in found.items() if len(group) >= samples]
        for what, count in (
            (f"completions longer than max_completion_length={max_tokens}", long),
            (f"prompts with fewer than num_generations={samples} completions", len(found) - len(full)),
        ):
            if count:
                logger.warning("%s: %d %s are left out", path, count, what)
        if not full:
            raise DataError(f"no prompt has {samples} completions of at most {max_tokens} tokens", file=str(path))
        judged = any("verdict" in row for row in rows)
        return cls([prompts[key] for key in full], [found[key] for key in full], str(path), judged)

    # ---- before training ------------------------------------------------------------------------------------------

    def bind(self, prompt_ids: Sequence[Sequence[int]], prompts_per_rollout: int) -> None:
        """Learn the token ids of ``prompts``, in order, and how many of them a rollout batch holds."""
        self._place = {tuple(ids): place for place, ids in enumerate(prompt_ids)}
        self._per_epoch = max(1, len(prompt_ids) // prompts_per_rollout)
        self._rewards = {
            (place, tuple(sample.token_ids)): sample for place, group in enumerate(self.groups) for sample in group
        }

    def fill(self, score: Score) -> int:
        """Compute the log-probs that the file lacks; returns how many completions had none."""
        prompts = [ids for ids, _ in sorted(self._place.items(), key=lambda item: item[1])]
        places = [(p, k) for p, group in enumerate(self.groups) for k, s in enumerate(group) if s.logprobs is None]
        if places:
            texts = [self.groups[p][k].token_ids for p, k in places]
            scored = score([list(prompts[p]) for p, _ in places], texts)
            for (p, k), values in zip(places, scored, strict=True):
                self.groups[p][k] = replace(self.groups[p][k], logprobs=values)
        return len(places)

    # ---- as an engine ---------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        prompt_keys: Sequence[Any] | None = None,
        wanted: Any = None,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> list[list[Sample]]:
        """``sampling.n`` stored completions per prompt; keys are ``ROLLOUT:PROMPT``, as the trainers write them."""
        drawn = []
        for number, (ids, key) in enumerate(zip(prompt_ids, prompt_keys or [], strict=True)):
            place = self._place.get(tuple(ids))
            rollout = str(key).partition(":")[0]
            if place is None or not rollout.isdigit():
                raise ConfigError(
                    f"{self.file} has no completions for a prompt that was drawn; evaluation needs an engine"
                )
            group = self.groups[place]
            first = int(rollout) // self._per_epoch % (len(group) // sampling.n) * sampling.n
            samples = [
                Sample(number, k, list(one.token_ids), list(one.logprobs or []), "stop")
                for k, one in enumerate(group[first : first + sampling.n])
            ]
            for sample in samples if on_sample else ():
                on_sample(sample)  # type: ignore[misc]
            drawn.append(samples)
        return drawn

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        raise ConfigError("stored rollouts have no model that could score")

    def sync(self, model: nn.Module) -> SyncReport:
        return SyncReport(max_gap=0.0, mean_gap=0.0, tolerance=0.0, tokens=0, seconds=0.0)

    def close(self) -> None:
        """Nothing is held."""

    # ---- as a reward function -------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return "verdict" if self.judged else ""

    @property
    def __name__(self) -> str:
        return "stored"

    def __call__(
        self, prompts: Any, completions: Any, completion_ids: Sequence[Sequence[int]], place: Sequence[int], **_: Any
    ) -> Any:
        """The stored verdicts or rewards; ``place`` is the column of :meth:`rows`."""
        found = [self._rewards.get((int(p), tuple(ids))) for p, ids in zip(place, completion_ids, strict=True)]
        if not self.judged:
            return [None if sample is None else sample.reward for sample in found]
        verdicts = [
            Verdict("unknown" if one is None else one.status, "stored", source="none")  # type: ignore[arg-type]
            for one in found
        ]
        values = [float(verdict.correct) if verdict.known else None for verdict in verdicts]
        return Rewards(values, verdicts, [False] * len(values))

    def rows(self) -> list[dict[str, Any]]:
        """The data set of a trainer: ``prompt``, and ``place`` for the reward function."""
        return [{"prompt": prompt, "place": place} for place, prompt in enumerate(self.prompts)]


class _Reader:
    def __init__(self, file: str, tokenizer: Any):
        self.file, self.tokenizer = file, tokenizer
        self._judged: dict[tuple[str, tuple[int, ...]], str] = {}

    def read(self, row: dict[str, Any], index: int) -> tuple[Text, StoredSample]:
        def wrong(field_: str, what: str) -> DataError:
            return DataError(what, file=self.file, row=index, field=field_)

        prompt, completion = row.get("prompt"), row.get("completion")
        if not prompt or not isinstance(prompt, str | list):
            raise wrong("prompt", f"is {prompt!r:.60}; need text or messages")
        if not isinstance(completion, str) or not completion:
            raise wrong("completion", f"is {completion!r:.60}; need text")
        if ("verdict" in row) == ("reward" in row):
            raise wrong("verdict", "need exactly one of verdict and reward")
        ids = self._ids(row, completion, wrong)
        status, reward = "unknown", None
        if "verdict" in row:
            verdict = row["verdict"]
            if not isinstance(verdict, str | bool | None) or verdict not in VERDICTS:
                raise wrong("verdict", f"is {verdict!r:.60}; need correct, wrong or unknown")
            status = VERDICTS[verdict]
        elif (reward := row["reward"]) is not None:
            if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
                raise wrong("reward", f"is {reward!r:.60}; need a finite number or null")
            reward = float(reward)
        key, said = (repr(prompt), tuple(ids)), f"{status} {reward}"
        if self._judged.setdefault(key, said) != said:
            raise wrong("verdict", f"the same completion was judged {self._judged[key]} before, {said} now")
        return prompt, StoredSample(ids, self._logprobs(row, len(ids), wrong), status, reward, index)

    def _ids(self, row: dict[str, Any], completion: str, wrong: Callable[[str, str], DataError]) -> list[int]:
        given, end = row.get("token_ids"), self.tokenizer.eos_token_id
        if given is None:
            ids = list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])
            return [*ids, end] if row.get("finished", True) and ids[-1:] != [end] else ids
        if not isinstance(given, list) or not given or not all(isinstance(i, int) and i >= 0 for i in given):
            raise wrong("token_ids", "need a list of whole numbers")
        text = self.tokenizer.decode(given[:-1] if given[-1] == end else given, skip_special_tokens=False)
        if max(given) >= len(self.tokenizer) or text != completion:
            raise wrong("token_ids", f"are {text!r:.60} to this tokenizer, not the completion: written by another one?")
        return given

    def _logprobs(self, row: dict[str, Any], count: int, wrong: Callable[[str, str], DataError]) -> list[float] | None:
        values = row.get("logprobs")
        if values is None:
            return None
        numbers = isinstance(values, list) and all(isinstance(v, int | float) and v <= 0 for v in values)
        if not numbers or len(values) != count:
            found = len(values) if isinstance(values, list) else type(values).__name__
            raise wrong("logprobs", f"need {count} numbers of at most 0, one per token and end token, found {found}")
        return [float(value) for value in values]
