"""``negpo eval muse``: VerbMem, KnowMem, PrivLeak and extraction strength on MUSE News and Books.

Scalability and sustainability: give the checkpoints of all folds, in order, to --checkpoints instead of --model.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.cli._evaluation import Bars, add_model_flags, load_model, membership_note, show_metrics
from negpo.cli._flags import number, output_folder, positive
from negpo.errors import ConfigError

if TYPE_CHECKING:
    from negpo.eval.muse import MuseData, MuseResult, MuseSettings, RetainAuc

EXAMPLE = "negpo eval muse --corpus news --model out/npo --retain-model muse-bench/MUSE-news_retrain --out results"
GOES_ON = "result folder; an interrupted run in it goes on"


def add_muse_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "muse",
        help="MUSE: verbatim and knowledge memorisation, privacy leakage, utility",
        description=__doc__,
        epilog=f"example: {EXAMPLE}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", help="checkpoint folder or Hub id to measure")
    models.add_argument("--checkpoints", nargs="+", metavar="MODEL", help="one checkpoint per fold, in order")
    parser.add_argument("--corpus", required=True, choices=("news", "books"))
    parser.add_argument("--out", type=output_folder, required=True, help=GOES_ON)
    parser.add_argument(
        "--data", help="Hub id or folder of <configuration>/<split>.json (default: the corpus's Hub id)"
    )
    parser.add_argument("--mode", default="open-unlearning", choices=("open-unlearning", "muse-original"))
    retain = parser.add_argument_group("the retain model, for PrivLeak").add_mutually_exclusive_group()
    retain.add_argument("--retain-log", type=Path, help="its log: ours, or open-unlearning's MUSE_EVAL.json")
    retain.add_argument("--retain-model", help="checkpoint folder or Hub id; its log is computed first")
    retain.add_argument("--retain-auc", type=number(0, 1), help="its AUC as a number, in the orientation of --mode")
    retain.add_argument("--is-retain", action="store_true", help="--model is the retain model: write its log")
    parser.add_argument("--target", help="the model before unlearning; equal weights are refused")
    parser.add_argument("--limit", type=positive, help="first rows of every set only")
    parser.add_argument("--no-generate", action="store_true", help="skip generation: no VerbMem, no KnowMem")
    parser.add_argument("--max-length", type=positive, default=2048, help="tokens of a text (open-unlearning)")
    parser.add_argument("--batch-rows", type=positive, default=64, help="rows per batch; does not change results")
    parser.add_argument("--batch-tokens", type=positive, default=8192, help="padded tokens per batch")
    add_model_flags(parser)
    parser.set_defaults(eval_run=run_muse)


def run_muse(args: argparse.Namespace) -> int:
    """Cheap refusals first: settings, the retain side, equal weights and data are checked before a model is loaded."""
    if args.is_retain and args.checkpoints:
        raise ConfigError("--is-retain is about one model; use --model instead of --checkpoints")
    if args.checkpoints and len(set(args.checkpoints)) < len(args.checkpoints):
        raise ConfigError("--checkpoints names a checkpoint twice; give one per fold")
    from negpo.eval.manifest import refuse_unchanged
    from negpo.eval.muse import load_muse
    from negpo.models import local_checkpoint

    settings = _settings(args)
    retain = _given_retain(args)
    if args.target:
        for model in args.checkpoints or [args.model]:
            refuse_unchanged(local_checkpoint(model), local_checkpoint(args.target))
    data = load_muse(args.corpus, args.data)
    if args.retain_model:
        retain = _compute_retain(args, data, settings)
    if args.checkpoints:
        return _run_folds(args, data, settings, retain)
    result = _measure(args, args.model, data, settings, retain, args.out)
    if args.is_retain:
        result.retain_auc().save(args.out / "retain_log.json")
    _show(args, args.model, result, args.out)
    return 0


def _settings(args: argparse.Namespace) -> "MuseSettings":
    from negpo.eval.muse import MuseSettings
    from negpo.eval.scoring import Batching

    batching = Batching(max_rows=args.batch_rows, max_tokens=args.batch_tokens)
    options = {"mode": args.mode, "limit": args.limit, "max_length": args.max_length, "batching": batching}
    return MuseSettings(generate=not args.no_generate, **options)


def _given_retain(args: argparse.Namespace) -> "RetainAuc | None":
    from negpo.eval.muse import RetainAuc

    if args.retain_log:
        return RetainAuc.load(args.retain_log, mode=args.mode, corpus=args.corpus)
    if args.retain_auc is not None:
        return RetainAuc(args.mode, args.corpus, args.retain_auc, "--retain-auc")
    return None


def _compute_retain(args: argparse.Namespace, data: "MuseData", settings: "MuseSettings") -> "RetainAuc":
    """The retain model's AUC, from forget and holdout texts alone."""
    from dataclasses import replace

    texts = data.only(("forget", "holdout"))
    result = _measure(args, args.retain_model, texts, replace(settings, generate=False), None, args.out / "retain")
    retain = result.retain_auc(str(args.retain_model))
    retain.save(args.out / "retain_log.json")
    return retain


def _measure(args, model_name: str, data, settings, retain, out: Path) -> "MuseResult":
    from negpo.eval.muse import evaluate_muse

    model, tokenizer = load_model(model_name, args)
    with Bars(model_name) as report:
        options = {"retain": retain, "out_dir": out, "name": model_name, "report": report}
        return evaluate_muse(model, tokenizer, data, settings, **options)


def _run_folds(args: argparse.Namespace, data: "MuseData", settings: "MuseSettings", retain: Any) -> int:
    from negpo.eval.muse_folds import HEADLINE, fold_rows, save_folds
    from negpo.report.muse_folds import draw_folds

    results = {}
    for fold, model in enumerate(args.checkpoints, start=1):
        results[model] = _measure(args, model, data, settings, retain, args.out / f"fold_{fold}")
    rows = fold_rows(results)
    draw_folds(rows, HEADLINE, args.out)
    path = save_folds(rows, args.out)
    _show_folds(rows, HEADLINE, path)
    return 0


def _show(args: argparse.Namespace, model: str, result: "MuseResult", out: Path) -> None:
    show_metrics(f"MUSE {args.corpus}, {args.mode}: {model}", result, _note, out)


def _show_folds(rows: list[dict[str, Any]], headline: str, path: Path) -> None:
    from rich.table import Table

    from negpo.progress import plain_console

    names = [name for name in rows[0] if name not in ("fold", "model", "interval") and not name.startswith("mia_")]
    table = Table("fold", "model", *names, title=f"{headline} against the fold")
    for row in rows:
        table.add_row(str(row["fold"]), row["model"], *(f"{row[name]:.4g}" if name in row else "-" for name in names))
    console = plain_console()
    console.print(table)
    console.print(f"results: {path}", highlight=False, soft_wrap=True)


def _note(name: str, detail: dict[str, Any]) -> str:
    """What a bare number hides."""
    if "tpr_at_fpr" in detail:
        return membership_note(detail)
    if "interval" not in detail:
        return ""
    low, high = detail["interval"]
    note = f"95 % {low:.3g} to {high:.3g}"
    if name == "privleak":
        note += f"; AUC {detail['auc']:.3f}, retain {detail['retain_auc']:.3f} ({detail['retain_source']})"
        note += "; over-unlearned" if detail["over_unlearned"] else ""
        note += f"; {detail['overlap']} forget texts are in the holdout set" if detail["overlap"] else ""
    if detail.get("empty_generations"):
        note += f"; {detail['empty_generations']} of {detail['n']} answers are empty"
    return note + (f"; no in-context examples: {detail['no_examples']}" if "no_examples" in detail else "")
