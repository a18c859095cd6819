"""``negpo eval tofu``: forget quality, model utility, memorisation and membership inference on TOFU."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from negpo.cli._evaluation import Bars, add_model_flags, load_model, membership_note, show_metrics
from negpo.cli._flags import output_folder, positive
from negpo.errors import ConfigError

if TYPE_CHECKING:
    from negpo.eval.retain_log import RetainLog
    from negpo.eval.tofu import TofuData, TofuSettings

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
    parser.add_argument(
        "--out", type=output_folder, required=True, help="result folder; an interrupted run in it goes on"
    )
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
    parser.add_argument("--limit", type=positive, help="first rows of every set only")
    parser.add_argument("--no-generate", action="store_true", help="skip generation: no ROUGE, no model utility")
    parser.add_argument("--max-new-tokens", type=positive, default=200, help="per answer (open-unlearning)")
    parser.add_argument("--question-key", default="question", choices=("question", "paraphrased_question"))
    parser.add_argument("--template", default="auto", choices=("auto", "chat", "tags"), help="prompt template")
    parser.add_argument("--eos-hole", action="store_true", help="mask eos inside prompts where pad = eos, as published")
    parser.add_argument("--batch-rows", type=positive, default=64, help="rows per batch; does not change results")
    parser.add_argument("--batch-tokens", type=positive, default=8192, help="padded tokens per batch")
    add_model_flags(parser)
    parser.set_defaults(eval_run=run_tofu)


def run_tofu(args: argparse.Namespace) -> int:
    """Cheap refusals first: the retain side, settings, equal weights and data are checked before a model is loaded."""
    if not (args.retain_log or args.retain_model or args.is_retain):
        raise ConfigError(
            "forget quality compares with a model that never saw the forget set, and none was given. Pass --retain-log "
            "FILE or --retain-model NAME, or --is-retain if --model is that model"
        )
    from negpo.eval.manifest import refuse_unchanged
    from negpo.eval.tofu import RetainLog, evaluate_tofu, load_tofu
    from negpo.models import local_checkpoint

    settings = _settings(args)
    log = RetainLog.load(args.retain_log, forget=args.forget, mode=args.mode) if args.retain_log else None
    if args.target:
        refuse_unchanged(local_checkpoint(args.model), local_checkpoint(args.target))
    data = load_tofu(args.data, forget=args.forget)
    if args.retain_model:
        log = _compute_retain_log(args, data, settings)
    model, tokenizer = load_model(args.model, args)
    reference = load_model(args.reference_model, args)[0] if args.reference_model else None
    with Bars(args.model) as report:
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
    show_metrics(f"TOFU {args.forget}, {args.mode}", result, _note, args.out)
    return 0


def _settings(args: argparse.Namespace) -> "TofuSettings":
    from negpo.data.qa import HELPFUL, QATemplate
    from negpo.eval.scoring import Batching
    from negpo.eval.tofu import TofuSettings

    templates = {"auto": None, "chat": QATemplate(chat_template=True, system_prompt=HELPFUL), "tags": QATemplate()}
    compat: Literal["ou-0.1"] | None = "ou-0.1" if args.eos_hole else None
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
    model, tokenizer = load_model(args.retain_model, args)
    with Bars(args.retain_model) as report:
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
