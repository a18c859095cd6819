"""``negpo eval BENCHMARK``: each benchmark brings its own parser."""

import argparse

from negpo.cli import eval_muse, eval_pairs, eval_reasoning, eval_tofu, eval_wmdp


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("eval", help="evaluate a checkpoint on a benchmark")
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    eval_tofu.add_tofu_parser(benchmarks)
    eval_muse.add_muse_parser(benchmarks)
    eval_wmdp.add_wmdp_parsers(benchmarks)
    eval_reasoning.add_reasoning_parsers(benchmarks)
    eval_pairs.add_pairs_parser(benchmarks)


def run(args: argparse.Namespace, extra: list[str]) -> int | None:
    return args.eval_run(args)
