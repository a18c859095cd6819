"""``negpo eval pairs``: does a model rank the preferred answer above the rejected one, and did training change that."""

import argparse
from typing import Any

from negpo.cli._evaluation import Bars, add_model_flags, load_model, show_metrics
from negpo.cli._flags import number, output_folder, positive

EXAMPLE = "negpo eval pairs --model runs/dpo --reference base --data pairs.jsonl --out results"


def add_pairs_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "pairs",
        help="ranking accuracy of preference pairs, flips against a reference",
        description=__doc__,
        epilog=f"example: {EXAMPLE}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id to measure")
    parser.add_argument("--reference", help="the model before training: flips, alignment gap, margin")
    parser.add_argument("--data", required=True, help="file, folder or Hub id of preference rows")
    parser.add_argument("--name", help="configuration of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=output_folder, required=True, help="result folder; an interrupted run goes on")
    parser.add_argument("--limit", type=positive, help="first rows only")
    parser.add_argument("--beta", type=number(0, exclude_low=True), default=0.1, help="of the idealised policy")
    parser.add_argument("--max-length", type=positive, default=2048, help="longer answers are left out, counted")
    parser.add_argument("--batch-rows", type=positive, default=64, help="rows per batch; does not change results")
    parser.add_argument("--batch-tokens", type=positive, default=8192, help="padded tokens per batch")
    add_model_flags(parser)
    parser.set_defaults(eval_run=run_pairs)


def run_pairs(args: argparse.Namespace) -> int:
    from negpo.data.rows import load_rows
    from negpo.eval.pairs import PairsSettings, evaluate_pairs
    from negpo.eval.scoring import Batching

    batching = Batching(max_rows=args.batch_rows, max_tokens=args.batch_tokens)
    settings = PairsSettings(limit=args.limit, beta=args.beta, max_length=args.max_length, batching=batching)
    rows = load_rows(args.data, name=args.name, split=args.split, required=())
    model, tokenizer = load_model(args.model, args)
    reference, other = load_model(args.reference, args) if args.reference else (None, None)
    with Bars("pairs") as report:
        result = evaluate_pairs(
            model,
            tokenizer,
            rows,
            settings,
            reference=reference,
            reference_tokenizer=other,
            out_dir=args.out,
            name=args.model,
            report=report,
        )
    show_metrics(f"pairs, {args.model}", result, _note, args.out)
    return 0


def _note(name: str, detail: dict[str, Any]) -> str:
    if "interval" not in detail:
        return ""
    low, high = detail["interval"]
    return f"95 % {low:.3f} to {high:.3f}, {detail['n']} pairs"
