"""``negpo eval tofu``: forget quality, model utility, memorisation and membership inference on TOFU."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.errors import ConfigError

if TYPE_CHECKING:
    from negpo.eval.retain_log import RetainLog
    from negpo.eval.tofu import TofuData, TofuResult, TofuSettings

EXAMPLE = "negpo eval tofu --model out/npo --retain-model open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90 --out r"


def add_tofu_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "tofu",
        help="TOFU: forget quality, utility, memorisation, membership inference",
        description=__doc__,
        epilog=f"example: {EXAMPLE}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id to measure")
    parser.add_argument("--out", required=True, type=Path, help="result folder; an interrupted run in it goes on")
    parser.add_argument("--data", default="locuslab/TOFU", help="Hub id, or a folder with <configuration>.json files")
    parser.add_argument("--forget", default="forget10", help="forget split")
    parser.add_argument("--mode", default="open-unlearning", choices=("open-unlearning", "tofu-original"))
    retain = parser.add_argument_group("the retain model (one of the three is needed)").add_mutually_exclusive_group()
    retain.add_argument("--retain-log", type=Path, help="its log: ours, open-unlearning's or locuslab/tofu's")
    retain.add_argument("--retain-model", help="checkpoint folder or Hub id; its log is computed first")
    retain.add_argument("--is-retain", action="store_true", help="--model is the retain model: write its log")
    parser.add_argument("--target", help="the model before unlearning; equal weights are refused")
    parser.add_argument("--reference-model", help="adds the reference attack of membership inference")
    parser.add_argument("--gradnorm", action="store_true", help="adds the gradient-norm attack (one backward per row)")
    parser.add_argument("--limit", type=int, help="first rows of every set only")
    parser.add_argument("--no-generate", action="store_true", help="skip generation: no ROUGE, no model utility")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="per answer (open-unlearning)")
    parser.add_argument("--question-key", default="question", choices=("question", "paraphrased_question"))
    parser.add_argument("--template", default="auto", choices=("auto", "chat", "tags"), help="prompt template")
    parser.add_argument("--eos-hole", action="store_true", help="mask eos inside prompts where pad = eos, as published")
    parser.add_argument("--batch-rows", type=int, default=64, help="rows per batch; does not change results")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="padded tokens per batch")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.set_defaults(eval_run=run_tofu)


def run_tofu(args: argparse.Namespace) -> int:
    """Cheap refusals first: the retain side, settings, equal weights and data are checked before a model is loaded."""
    if not (args.retain_log or args.retain_model or args.is_retain):
        raise ConfigError(
            "forget quality compares with a model that never saw the forget set, and none was given. Pass --retain-log "
            "FILE or --retain-model NAME, or --is-retain if --model is that model"
        )
    from negpo.eval.manifest import local_checkpoint, refuse_unchanged
    from negpo.eval.tofu import RetainLog, evaluate_tofu, load_tofu

    settings = _settings(args)
    log = RetainLog.load(args.retain_log, forget=args.forget, mode=args.mode) if args.retain_log else None
    if args.target:
        refuse_unchanged(local_checkpoint(args.model), local_checkpoint(args.target))
    data = load_tofu(args.data, forget=args.forget)
    if args.retain_model:
        log = _compute_retain_log(args, data, settings)
    model, tokenizer = _load(args.model, args)
    reference = _load(args.reference_model, args)[0] if args.reference_model else None
    with _progress(args.model) as report:
        result = evaluate_tofu(
            model,
            tokenizer,
            data,
            settings,
            retain_log=log,
            reference_model=reference,
            out_dir=args.out,
            name=args.model,
            report=report,
        )
    if args.is_retain:
        result.retain_log().save(args.out / "retain_log.json")
    _show(result, args.out)
    return 0


def _settings(args: argparse.Namespace) -> "TofuSettings":
    from negpo.data.qa import HELPFUL, QATemplate
    from negpo.eval.scoring import Batching
    from negpo.eval.tofu import TofuSettings

    templates = {"auto": None, "chat": QATemplate(chat_template=True, system_prompt=HELPFUL), "tags": QATemplate()}
    compat = "ou-0.1" if args.eos_hole else None
    return TofuSettings(
        mode=args.mode,
        generate=not args.no_generate,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        question_key=args.question_key,
        gradnorm=args.gradnorm,
        template=templates[args.template],
        batching=Batching(max_rows=args.batch_rows, max_tokens=args.batch_tokens, compat=compat),
    )


def _compute_retain_log(args: argparse.Namespace, data: "TofuData", settings: "TofuSettings") -> "RetainLog":
    """Only what other evaluations need of a retain model: losses of the forget and holdout sets, no generation."""
    from dataclasses import replace

    from negpo.eval.tofu import TofuData, evaluate_tofu

    sets = {name: rows for name, rows in data.sets.items() if name in ("forget", "holdout")}
    absent = {name: "not needed of a retain model" for name in data.sets if name not in sets} | data.absent
    part = TofuData(data.source, data.forget, sets, absent)
    model, tokenizer = _load(args.retain_model, args)
    with _progress(args.retain_model) as report:
        result = evaluate_tofu(
            model,
            tokenizer,
            part,
            replace(settings, generate=False, gradnorm=False),
            out_dir=args.out / "retain",
            name=args.retain_model,
            report=report,
        )
    log = replace(result.retain_log(), source=str(args.retain_model))
    log.save(args.out / "retain_log.json")
    return log


def _load(name: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer, on the device. ConfigError when they cannot be loaded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name!r} could not be loaded as a causal language model: {error}") from error
    return model.to(device).eval(), tokenizer


class _progress:
    """A bar per stage; as a context it gives the callback for ``evaluate_tofu``."""

    def __init__(self, title: str):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar, self.title, self.tasks = Progress(*columns), title, {}

    def __enter__(self):
        self.bar.start()
        return self.report

    def __exit__(self, *exception):
        self.bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(f"{stage} {self.title}", total=total)
        self.bar.update(self.tasks[stage], completed=done)


def _show(result: "TofuResult", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"TOFU {result.manifest['data']['forget']}, {result.manifest['settings']['mode']}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("note")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4g}", _note(name, result.details.get(name, {})))
    for name, reason in result.missing.items():
        table.add_row(name, "-", reason, style="dim")
    console = Console()
    console.print(table)
    console.print(f"results: {out / 'summary.json'}, per row: {out / 'rows.jsonl'}", highlight=False, soft_wrap=True)


def _note(name: str, detail: dict[str, Any]) -> str:
    """What a bare p-value or PrivLeak hides."""
    if name == "forget_quality":
        floor = "; the distributions do not overlap: the smallest p at this n" if detail["floor"] else ""
        return (
            f"KS D {detail['statistic']:.3f}, n {detail['n']} vs {detail['n_reference']}, "
            f"log10 p {detail['log10_p']:.1f}{floor}"
        )
    if name == "privleak":
        assumed = "" if detail["retain_auc_measured"] else " (assumed)"
        over = "; over-unlearned" if detail["over_unlearned"] else ""
        low, high = detail["interval"]
        return f"{low:.1f} to {high:.1f}; AUC {detail['auc']:.3f}, retain {detail['retain_auc']:.3f}{assumed}{over}"
    if "tpr_at_fpr" in detail:
        return membership_note(detail)
    return ""


def membership_note(detail: dict[str, Any]) -> str:
    """An attack's AUC interval and how many forget rows it finds while hardly ever accusing an unseen row."""
    low, high = detail["interval"]
    rates = ", ".join(f"{value:.1%} at {float(rate):.1%}" for rate, value in detail["tpr_at_fpr"].items())
    return f"95 % {low:.3f} to {high:.3f}; TPR at FPR: {rates}"
