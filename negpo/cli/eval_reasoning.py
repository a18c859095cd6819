"""``negpo eval math500 | math | aime24 | aime25 | amc23 | amc83 | gsm8k | FILE.yaml``: sample, grade, pass@k."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.cli._flags import natural, number, output_folder, positive

if TYPE_CHECKING:
    from negpo.data.problems import Problem
    from negpo.data.protocols import Protocol
    from negpo.rollout import RolloutEngine

REASONING = ("math500", "math", "aime24", "aime25", "amc23", "amc83", "gsm8k")


def add_reasoning_parsers(subparsers) -> None:
    for name in (*REASONING, "custom"):
        text = "your own problems, described by a YAML file" if name == "custom" else f"pass@k on {name.upper()}"
        parser = subparsers.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if name == "custom":
            parser.add_argument("--benchmark-file", required=True, metavar="YAML", help="name, data, fields, kind")
        parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
        parser.add_argument(
            "--out", type=output_folder, required=True, help="folder of the run; an existing one is continued"
        )
        parser.add_argument("--data", help="local file or folder instead of the Hub")
        parser.add_argument("--protocol", default="chat", help="card: nsr, ngrpo, nft, resrl, redi, qwen, chat, lab")
        parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm", "vllm-server"))
        parser.add_argument("--server", help="address of a running `vllm serve`, for --engine vllm-server")
        parser.add_argument(
            "--seed", type=natural, default=0, help="samples depend on it, the problem and the sample only"
        )
        parser.add_argument("--limit", type=positive, help="first problems only")
        parser.add_argument("--k", type=positive, nargs="+", help="refuse at once if one of these exceeds n")
        overrides = parser.add_argument_group("changes to the card (its name then ends in *)")
        overrides.add_argument("--n", type=positive)
        overrides.add_argument("--temperature", type=number(0))
        overrides.add_argument("--top-p", type=number(0, 1, exclude_low=True))
        overrides.add_argument("--top-k", type=natural)
        overrides.add_argument("--max-new-tokens", type=positive)
        overrides.add_argument("--grader", help="default, math_verify, qwen, nsr, hendrycks, prm800k")
        parser.set_defaults(eval_run=run_reasoning)


def run_reasoning(args: argparse.Namespace) -> int:
    """Everything that can be refused is refused before the model is loaded."""
    from negpo.data.problems import BENCHMARKS, custom_benchmark, load_problems, read_problems
    from negpo.data.protocols import find_protocol

    card = find_protocol(args.protocol).with_overrides(
        n=args.n,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        grader=args.grader,
    )
    _check_k(args.k, card.n)
    if args.benchmark == "custom":
        bench, source = custom_benchmark(args.benchmark_file)
        problems = read_problems(args.data or source, bench)[: args.limit]
    else:
        bench = BENCHMARKS[args.benchmark]
        problems = load_problems(args.benchmark, args.data, limit=args.limit)
    return _evaluate(args, bench.name, bench.kind, list(bench.notes), problems, card)


def _check_k(ks: list[int] | None, n: int) -> None:
    from negpo.errors import ConfigError

    if too_large := [k for k in ks or [] if k > n]:
        worst = max(too_large)
        raise ConfigError(f"pass@{worst} needs at least {worst} samples per problem, the protocol draws {n}; raise --n")


def _evaluate(
    args: argparse.Namespace, name: str, kind: str | None, notes: list[str], problems: list[Problem], card: Protocol
) -> int:
    from negpo.eval.reasoning import ReasoningRun
    from negpo.models import load_tokenizer

    tokenizer = load_tokenizer(args.model)
    manifest = _manifest(args, tokenizer, notes)
    card.render(tokenizer, problems[0].question)  # a template that is missing shows now, not after loading
    engine = _engine(args, tokenizer)
    try:
        run = ReasoningRun(
            engine, tokenizer, problems, name, card, Path(args.out), manifest=manifest, seed=args.seed, kind=kind
        )
        summary = run.run()
    finally:
        engine.close()
    _show(summary, args)
    return 0


def _manifest(args: argparse.Namespace, tokenizer: Any, notes: list[str]) -> dict[str, Any]:
    import hashlib
    import json

    from negpo.models import checkpoint_tensors, hash_tokenizer, local_checkpoint
    from negpo.versions import versions

    tensors = json.dumps(checkpoint_tensors(local_checkpoint(args.model)), sort_keys=True)
    return {
        "model": hashlib.sha256(tensors.encode()).hexdigest(),
        "model_name": args.model,
        "tokenizer": hash_tokenizer(tokenizer),
        "data_notes": notes,
        "versions": versions(),
    }


def _engine(args: argparse.Namespace, tokenizer: Any) -> RolloutEngine:
    from negpo.errors import ConfigError
    from negpo.models import local_checkpoint
    from negpo.rollout import make_engine

    if args.engine == "vllm-server":
        if not args.server:
            raise ConfigError("--engine vllm-server needs the server's address: add --server http://host:port")
        return make_engine(args.engine, args.server, tokenizer)
    return make_engine(args.engine, str(local_checkpoint(args.model)), tokenizer)


def _show(summary: dict[str, Any], args: argparse.Namespace) -> None:
    from rich.table import Table

    from negpo.progress import plain_console

    table = Table(title=f"{summary['benchmark']}, protocol {summary['protocol']}, grader {summary['grader']}")
    for heading in ("k", "pass@k", "95 % interval", "maj@k", "95 % interval"):
        table.add_column(heading, justify="right")
    for passed, voted in zip(summary["pass_at_k"], summary["maj_at_k"], strict=True):
        values = [f"{passed['value']:.4f}", _bounds(passed)] if "value" in passed else ["-", "unknown verdicts"]
        table.add_row(str(passed["k"]), *values, f"{voted['value']:.4f}", _bounds(voted))
    console = plain_console()
    console.print(table)
    rates = ", ".join(f"{name.replace('_', ' ')} {entry['value']:.2%}" for name, entry in summary["rates"].items())
    console.print(f"{summary['problems']} problems x {summary['n']} samples; {rates}")
    console.print(f"results: {args.out}; draw curves with: negpo report {args.out}", soft_wrap=True)


def _bounds(entry: dict[str, float]) -> str:
    return f"{entry['low']:.4f} to {entry['high']:.4f}"
