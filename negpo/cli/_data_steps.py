"""``negpo data steps``: where wrong solutions become lost, by roll-outs from their prefixes (per-step DPO)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.cli._data_common import add_benchmark_flags, run_of, show_counts, write_rows
from negpo.cli._flags import natural, number, output_folder, positive

if TYPE_CHECKING:
    from negpo.data.problems import Problem
    from negpo.data.redi import GradedProblem
    from negpo.rollout.step_values import StepReport, StepSettings

Row = dict[str, Any]


def add_parser(kinds) -> None:
    parser = kinds.add_parser(
        "steps",
        help="pairs for per-step DPO (arXiv 2406.14532)",
        description="Value every prefix of the wrong solutions of an evaluation by roll-outs; write step_rows.jsonl. "
        "A killed call is continued by the same call.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--eval", required=True, metavar="FOLDER", help="folder written by `negpo eval`")
    parser.add_argument("--model", required=True, help="model that wrote the solutions: folder or Hub id")
    parser.add_argument("--out", type=output_folder, required=True, help="folder for step_rows.jsonl and report.json")
    add_benchmark_flags(parser)
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument(
        "--best-of", type=positive, default=5, help="K: a prefix is worth the chance of best-of-K from it"
    )
    parser.add_argument("--rollouts", type=positive, default=10, help="per prefix; the paper's number is not known")
    parser.add_argument("--max-wrong", type=positive, default=8, help="wrong solutions per question")
    parser.add_argument("--separator", default="\n", help="ends a step; default: a line")
    parser.add_argument("--temperature", type=number(0), default=1.0)
    parser.add_argument("--max-new-tokens", type=positive, default=512, help="of a roll-out")
    parser.add_argument("--seed", type=natural, default=0)


def run(args: argparse.Namespace) -> int:
    from negpo.data.io import atomic_write_json
    from negpo.data.redi import REDIFilters, REDIReport, from_eval
    from negpo.rollout.step_values import StepSettings

    settings = StepSettings(
        best_of=args.best_of,
        rollouts=args.rollouts,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        max_wrong=args.max_wrong,
        separator=args.separator,
        seed=args.seed,
    )
    manifest, problems, kind = run_of(args.eval, args)
    read = REDIReport()
    graded = from_eval(Path(args.eval), {problem.id: problem.question for problem in problems}, REDIFilters(), read)
    rows = solution_rows(graded, problems, manifest["protocol"])
    out = Path(args.out)
    found, report = _value(args, rows, settings, manifest, kind)
    write_rows(out / "step_rows.jsonl", found)
    counts = [("problems read", read.problems), ("solutions read", read.traces), *report.rows()]
    counts += [(f"dropped: {name}", count) for name, count in sorted(read.dropped.items())]
    atomic_write_json(out / "report.json", {"settings": vars(args), "counts": dict(counts)})
    show_counts("step-DPO rows", counts, [out / "step_rows.jsonl"])
    return 0 if found else 1


def solution_rows(graded: Sequence[GradedProblem], problems: Sequence[Problem], card: dict[str, Any]) -> list[Row]:
    """Rows of ``build_step_rows``, asked as the evaluation's protocol asked: with its literal prompt as text, or as a
    conversation for the chat template.

    Raises:
        ConfigError: the protocol switches a template's thinking mode, which a conversation cannot say.
    """
    from negpo.errors import ConfigError

    if card["prompt"] is None and card["thinking"] is not None:
        raise ConfigError(
            f"protocol {card['name']!r} sets the chat template's thinking mode; step rows cannot carry it. Sample with "
            "a protocol that does not"
        )
    golds = {problem.id: problem.gold for problem in problems}
    rows = []
    for item in graded:
        right = [text for text, verdict in zip(item.traces, item.right, strict=True) if verdict is True]
        wrong = [text for text, verdict in zip(item.traces, item.right, strict=True) if verdict is False]
        row: Row = {"id": item.identity, "gold": golds[item.identity], "wrong": wrong}
        if card["prompt"] is not None:
            row |= {"prompt": card["prompt"].replace("{input}", item.question), "right": right}
        else:
            row["prompt"] = [{"role": "user", "content": item.question + card["user_suffix"]}]
            row["right"] = [[{"role": "assistant", "content": text}] for text in right]
        rows.append(row)
    return rows


def _value(
    args: argparse.Namespace, rows: list[Row], settings: StepSettings, manifest: dict[str, Any], kind: str | None
) -> tuple[list[Row], StepReport]:
    """Step rows of all questions. Each question's are kept on disk as soon as they are there, under a name that
    changes with model, settings and solutions."""
    import hashlib
    import json
    from dataclasses import asdict

    from negpo.data.io import append_jsonl, read_jsonl
    from negpo.progress import track
    from negpo.rewards import VerifierPool
    from negpo.rollout import make_engine
    from negpo.rollout.step_values import StepReport, build_step_rows

    tokenizer, weights = _model(args.model)
    identity = json.dumps([weights, asdict(settings), args.engine, manifest["protocol"]["grader"], kind, rows])
    kept = Path(args.out) / f"values-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
    done = {row["id"]: row for row in read_jsonl(kept)} if kept.exists() else {}
    pool = VerifierPool()
    engine = None

    def grade(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        verdicts = pool.grade_many(pairs, kinds=kind, mode=manifest["protocol"]["grader"])
        return [{"correct": True, "wrong": False}.get(verdict.status) for verdict in verdicts]

    try:
        for row in track([row for row in rows if row["id"] not in done], "valuing prefixes"):
            engine = engine or make_engine(args.engine, args.model, tokenizer)
            found, part = build_step_rows([row], engine, tokenizer, grade, settings)
            done[row["id"]] = {"id": row["id"], "rows": found, "prefixes": part.prefixes, "dropped": part.dropped}
            append_jsonl(kept, done[row["id"]])
    finally:
        pool.close()
        if engine is not None:
            engine.close()
    report = StepReport()
    for entry in (done[row["id"]] for row in rows):
        report.pairs += len(entry["rows"])
        report.prefixes += entry["prefixes"]
        report.dropped.update(entry["dropped"])
    return [item for row in rows for item in done[row["id"]]["rows"]], report


def _model(name: str) -> tuple[Any, str]:
    """Tokenizer and a hash of the weights.

    Raises:
        ConfigError: there is no tokenizer or no checkpoint under ``name``.
    """
    import hashlib
    import json

    from negpo.models import checkpoint_tensors, local_checkpoint
    from negpo.trainers._run.model import load_tokenizer

    tensors = json.dumps(checkpoint_tensors(local_checkpoint(name)), sort_keys=True)
    return load_tokenizer(name, None), hashlib.sha256(tensors.encode()).hexdigest()
