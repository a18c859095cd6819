"""Sampling a benchmark n times, grading every sample, and saying pass@k with its uncertainty.

A run is a folder: ``manifest.json`` (what was asked, of which weights, by which engine), ``samples.jsonl`` and
``verdicts.jsonl`` (one line each, appended as they come) and ``summary.json``. A killed run is continued by starting it
again: finished samples are read back, missing ones are drawn with their own seeds, and nothing is drawn twice.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.data.io import append_jsonl, atomic_write_json, read_jsonl, repair_jsonl, strict
from negpo.data.problems import Problem
from negpo.data.protocols import Protocol
from negpo.data.rows import fingerprint_rows
from negpo.errors import ConfigError
from negpo.eval.reasoning_summary import summarise
from negpo.rewards import GradeOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from negpo.rewards import VerifierPool
    from negpo.rollout import RolloutEngine, Sample

# A continued run must agree on these; versions and times may differ and are recorded instead.
IDENTITY = ("benchmark", "problems", "protocol_hash", "template", "model", "tokenizer", "engine", "seed")

Key = tuple[str, int]  # (problem id, sample index)


@dataclass
class ReasoningRun:
    """One evaluation: who answers, what, how, and where the results go.

    Args:
        engine: draws the samples; see `negpo.rollout`.
        problems: from `negpo.data.problems`.
        manifest: identity of model, tokenizer and engine (`negpo.eval.manifest`); completed here.
        kind: answer kind handed to the grader, when the benchmark knows it.
        prompts_per_call: problems handed to the engine at once; grading of one call overlaps the next.
    """

    engine: RolloutEngine
    tokenizer: PreTrainedTokenizerBase
    problems: Sequence[Problem]
    benchmark: str
    protocol: Protocol
    out_dir: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    kind: str | None = None
    prompts_per_call: int = 32
    pool: VerifierPool | None = None
    show_progress: bool = True

    def run(self) -> dict[str, Any]:
        """Draw and grade what is missing; returns and saves the summary."""
        started = time.time()
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        samples = {(row["problem"], row["sample"]): row for row in self._read("samples.jsonl")}
        verdicts = {(row["problem"], row["sample"]): row for row in self._read("verdicts.jsonl")}
        from negpo.rewards import VerifierPool

        pool = self.pool or VerifierPool()
        try:
            self._grade([row for key, row in samples.items() if key not in verdicts], verdicts, pool)
            drawn = self._draw(samples, verdicts, pool)
        finally:
            if self.pool is None:
                pool.close()
        self._finish_manifest(drawn, time.time() - started)
        summary = summarise(self.problems, self.protocol, samples, verdicts)
        summary |= {"benchmark": self.benchmark, "protocol": self.protocol.name, "grader": self.protocol.grader}
        atomic_write_json(self.out_dir / "summary.json", summary)
        return summary

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self.out_dir / name
        return read_jsonl(path) if path.exists() else []

    def _check_manifest(self) -> None:
        """Write the manifest of a new run, or refuse to continue one that asked something else."""
        import json

        sampling = {"protocol": asdict(self.protocol), "protocol_hash": self.protocol.hash(), "seed": self.seed}
        identity = {
            "benchmark": self.benchmark,
            "problems": fingerprint_rows(asdict(problem) for problem in self.problems),
            "template": self.protocol.template_hash(self.tokenizer),
            "engine": self.engine.name,
        }
        self.manifest = strict({**self.manifest, **sampling, **identity})
        path = self.out_dir / "manifest.json"
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if changed := [key for key in IDENTITY if before.get(key) != self.manifest.get(key)]:
                raise ConfigError(
                    f"{self.out_dir} holds samples of another run: {', '.join(changed)} differ. "
                    "Give another output folder, or the settings recorded in its manifest.json."
                )
            self.manifest = {**before, **self.manifest}
        atomic_write_json(path, self.manifest)

    def _finish_manifest(self, drawn: int, seconds: float) -> None:
        sessions = [*self.manifest.get("sessions", []), {"samples_drawn": drawn, "seconds": round(seconds, 2)}]
        self.manifest["sessions"] = sessions
        atomic_write_json(self.out_dir / "manifest.json", self.manifest)

    def _draw(self, samples: dict[Key, Any], verdicts: dict[Key, Any], pool: VerifierPool) -> int:
        """Sample what is missing, call by call; a thread grades one call while the engine works on the next."""
        drawn, grading = 0, None
        with ThreadPoolExecutor(1) as background, SampleLog(self.out_dir / "samples.jsonl") as log:
            for problems in self._calls(samples):
                rows = self._generate(problems, samples, log)
                drawn += len(rows)
                _wait(grading)
                grading = background.submit(self._grade, rows, verdicts, pool)
            _wait(grading)
        return drawn

    def _calls(self, samples: dict[Key, Any]) -> Iterator[list[Problem]]:
        from negpo.progress import track

        missing = [p for p in self.problems if any((p.id, i) not in samples for i in range(self.protocol.n))]
        starts = range(0, len(missing), self.prompts_per_call)
        for start in track(starts, f"sampling {self.benchmark}", enabled=self.show_progress):
            yield missing[start : start + self.prompts_per_call]

    def _generate(self, problems: list[Problem], samples: dict[Key, Any], log: SampleLog) -> list[dict[str, Any]]:
        from negpo.rollout import Sampling

        card = self.protocol
        sampling = Sampling(
            temperature=card.temperature,
            top_p=card.top_p,
            top_k=card.top_k,
            n=card.n,
            max_new_tokens=card.max_new_tokens,
            stop_strings=card.stop_strings,
            seed=self.seed,
            logprobs=card.top_p == 1 and card.top_k == 0,  # vLLM knows them only where nothing is truncated
        )
        wanted = [(i, j) for i, p in enumerate(problems) for j in range(card.n) if (p.id, j) not in samples]
        rows: list[dict[str, Any]] = []

        def keep(sample: Sample) -> None:
            row = self._row(problems[sample.prompt].id, sample)
            log.write(row)
            samples[row["problem"], row["sample"]] = row
            rows.append(row)

        prompts = [card.render(self.tokenizer, problem.question) for problem in problems]
        self.engine.generate(prompts, sampling, prompt_keys=[p.id for p in problems], wanted=wanted, on_sample=keep)
        return rows

    def _row(self, problem: str, sample: Sample) -> dict[str, Any]:
        return {
            "problem": problem,
            "sample": sample.index,
            "text": self.tokenizer.decode(sample.token_ids, skip_special_tokens=True),
            "tokens": len(sample.token_ids),
            "logprob": sum(sample.logprobs) if sample.logprobs else None,
            "finish_reason": sample.finish_reason,
        }

    def _grade(self, rows: Sequence[dict[str, Any]], verdicts: dict[Key, Any], pool: VerifierPool) -> None:
        golds = {problem.id: problem.gold for problem in self.problems}
        rows = [row for row in rows if row["problem"] in golds]
        if not rows:
            return
        pairs = [(row["text"], golds[row["problem"]]) for row in rows]
        settings: dict[str, Any] = {"kinds": self.kind, "mode": self.protocol.grader}
        if self.protocol.grader == "default":  # a reference mode keeps the rules of its original
            choices = {problem.id: GradeOptions(choices=problem.choices) for problem in self.problems}
            settings["options"] = [choices[row["problem"]] for row in rows]
            settings["truncated"] = [row["finish_reason"] == "length" for row in rows]
        graded = []
        for row, verdict in zip(rows, pool.grade_many(pairs, **settings), strict=True):
            graded.append(
                {
                    "problem": row["problem"],
                    "sample": row["sample"],
                    "status": verdict.status,
                    "reason": verdict.reason,
                    "extracted": verdict.extracted,
                }
            )
        append_jsonl(self.out_dir / "verdicts.jsonl", *graded)
        verdicts.update({(row["problem"], row["sample"]): row for row in graded})


def _wait(grading: Future | None) -> None:
    if grading is not None:
        grading.result()


class SampleLog:
    """Appends one JSON line per finished sample. Every line reaches the operating system at once, so a killed process
    loses nothing; the disk is forced once a second, so a power cut loses a second."""

    def __init__(self, path: Path):
        repair_jsonl(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._synced = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        import json
        import os

        self._file.write(json.dumps(strict(row), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if time.monotonic() - self._synced > 1:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def read_run(folder: str | Path) -> dict[str, Any]:
    """Manifest, summary and per-problem counts of a finished run, for reports and comparisons."""
    import json

    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise ConfigError(f"{folder} holds no finished reasoning run (summary.json is missing); run `negpo eval` first")
    run = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("manifest", "summary")}
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_jsonl(folder / "samples.jsonl"):
        samples[row["problem"]].append(row)
    return {**run, "samples": dict(samples), "verdicts": read_jsonl(folder / "verdicts.jsonl")}
