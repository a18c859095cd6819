"""``negpo eval wmdp | mmlu``: multiple-choice accuracy through lm-eval, with the checks that bare numbers lack."""

import argparse
from typing import Any

from negpo.cli._evaluation import Bars, add_model_flags, load_model, show_metrics
from negpo.cli._flags import natural, output_folder, positive

ABOUT = {
    "wmdp": "WMDP: hazardous knowledge in biology, chemistry and cybersecurity (chance is one in four)",
    "mmlu": "MMLU: general knowledge in 57 subjects (chance is one in four)",
}


def add_wmdp_parsers(subparsers) -> None:
    for benchmark, text in ABOUT.items():
        parser = subparsers.add_parser(
            benchmark,
            help=text,
            description=f"{text}, through lm-eval.",
            epilog=f"example: negpo eval {benchmark} --model out/rmu --dtype float32 --out results/{benchmark}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--model", required=True, help="checkpoint folder or Hub id to measure")
        parser.add_argument(
            "--out", type=output_folder, required=True, help="result folder; an interrupted run in it goes on"
        )
        parser.add_argument("--data", help="folder of <subset>_test.json files instead of the Hub")
        parser.add_argument("--tasks", nargs="+", default=[], help=f"some tasks only, e.g. {benchmark}_…")
        parser.add_argument("--batch-size", type=positive, default=16, help="questions' choices per batch")
        parser.add_argument("--chat-template", action="store_true", help="ask through the tokenizer's chat template")
        if benchmark == "mmlu":
            parser.add_argument(
                "--num-fewshot", type=natural, default=0, help="examples per prompt, from the dev split"
            )
        parser.add_argument("--limit", type=positive, help="first questions of every task only")
        add_model_flags(parser)
        parser.set_defaults(eval_run=run_choices)


def run_choices(args: argparse.Namespace) -> int:
    """Settings and local questions are checked before the model is loaded."""
    from negpo.eval.wmdp import ChoiceSettings, evaluate_choices, load_choices

    shots = getattr(args, "num_fewshot", 0)
    settings = ChoiceSettings(args.batch_size, args.chat_template, shots, args.limit)
    data = load_choices(args.benchmark, args.data, only=args.tasks, num_fewshot=shots)
    model, tokenizer = load_model(args.model, args)
    with Bars(args.model) as report:
        options = {"out_dir": args.out, "name": args.model, "report": report}
        result = evaluate_choices(model, tokenizer, data, settings, **options)
    show_metrics(f"{args.benchmark.upper()}: {args.model}", result, _note, args.out)
    _show_warnings(result.details["warnings"])
    return 0


def _note(name: str, detail: dict[str, Any]) -> str:
    low, high = detail["interval"]
    note = f"± {detail['stderr']:.4f}, 95 % {low:.3f} to {high:.3f}, n {detail['n']}"
    note += "; at chance" if detail["at_chance"] else ""
    return note + (f"; {detail['ties']} ties" if detail["ties"] else "")


def _show_warnings(warnings: list[str]) -> None:
    from negpo.progress import plain_console

    console = plain_console()
    for warning in warnings:
        console.print(f"note: {warning}", style="yellow", soft_wrap=True)
