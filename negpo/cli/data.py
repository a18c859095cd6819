"""``negpo data redi``, ``steps``, ``rationales`` and ``alternates``: training sets from samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from negpo.cli import _data_alternates, _data_forget, _data_rationales, _data_rollouts, _data_steps
from negpo.cli._data_common import add_benchmark_flags, run_of, show_counts, write_rows
from negpo.cli._flags import natural, output_folder

if TYPE_CHECKING:
    from negpo.data.redi import GradedProblem, REDIFilters, REDIReport


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("data", help="build training data from samples and verdicts")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    redi = kinds.add_parser(
        "redi",
        help="stage 1 and stage 2 sets of REDI (arXiv 2505.24850)",
        description="Turn graded traces into right_traces.jsonl (stage 1, SFT) and pairs.jsonl (stage 2).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    source = redi.add_mutually_exclusive_group(required=True)
    source.add_argument("--eval", nargs="+", metavar="FOLDER", help="folders written by `negpo eval`")
    source.add_argument("--openr1", metavar="SOURCE", help="rows of OpenR1-Math-Raw: file, folder or Hub id")
    redi.add_argument("--tokenizer", required=True, help="folder or Hub id; lengths are counted with it")
    redi.add_argument("--out", type=output_folder, required=True, help="folder for the two files and report.json")
    add_benchmark_flags(redi)
    redi.add_argument("--split", default="train", help="--openr1: split")
    redi.add_argument("--max-prompt-tokens", type=natural, default=800, help="0: no limit")
    redi.add_argument("--max-trace-tokens", type=natural, default=19_000, help="0: no limit")
    redi.add_argument("--exclude-source", nargs="*", default=["cn_k12"], help="--openr1: sources left out")
    redi.add_argument("--keep-unfinished", action="store_true", help="--eval: keep traces cut by the sampling limit")
    redi.add_argument("--system-prompt", help="put in front of every question")
    redi.add_argument("--seed", type=natural, default=42, help="of the shuffle")
    _data_steps.add_parser(kinds)
    _data_rationales.add_parser(kinds)
    _data_alternates.add_parser(kinds)
    _data_forget.add_parser(kinds)
    _data_rollouts.add_parser(kinds)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    kinds = {
        "steps": _data_steps.run,
        "rollouts": _data_rollouts.run,
        "rationales": _data_rationales.run,
        "alternates": _data_alternates.run,
        "forget": _data_forget.run,
        "redi": _redi,
    }
    return kinds[args.kind](args)


def _redi(args: argparse.Namespace) -> int:
    from negpo.data.io import atomic_write_json
    from negpo.data.redi import REDIFilters, REDIReport, build_sets
    from negpo.errors import ConfigError
    from negpo.models import load_tokenizer

    filters = REDIFilters(
        max_prompt_tokens=args.max_prompt_tokens or None,
        max_trace_tokens=args.max_trace_tokens or None,
        excluded_sources=tuple(args.exclude_source),
        require_finished=not args.keep_unfinished,
    )
    report = REDIReport()
    problems = _problems(args, filters, report)
    tokenizer = load_tokenizer(args.tokenizer)
    if filters.max_prompt_tokens and tokenizer.chat_template is None:
        raise ConfigError(
            f"{args.tokenizer} has no chat template; prompts cannot be counted. Pass --max-prompt-tokens 0"
        )
    positives, pairs = build_sets(
        problems, tokenizer, filters, report, seed=args.seed, system_prompt=args.system_prompt
    )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "right_traces.jsonl", positives)
    write_rows(out / "pairs.jsonl", pairs)
    atomic_write_json(out / "report.json", {"settings": vars(args), "counts": dict(report.rows())})
    show_counts("REDI training sets", report.rows(), [out / f"{name}.jsonl" for name in ("right_traces", "pairs")])
    return 0 if pairs else 1


def _problems(args: argparse.Namespace, filters: REDIFilters, report: REDIReport) -> list[GradedProblem]:
    from negpo.data.redi import from_eval, from_openr1
    from negpo.data.rows import load_rows

    if args.openr1:
        rows = load_rows(args.openr1, split=args.split, required=())
        return from_openr1(rows, filters, report, args.openr1)
    questions = [
        (folder, {problem.id: problem.question for problem in run_of(folder, args)[1]}) for folder in args.eval
    ]
    return [problem for folder, asked in questions for problem in from_eval(Path(folder), asked, filters, report)]
