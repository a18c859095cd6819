"""``negpo meta-eval``: how far each unlearning metric can be trusted, from pools of models that know and do not."""

from __future__ import annotations

import argparse

from negpo.cli._flags import number, output_folder, positive


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "meta-eval",
        help="rank unlearning metrics by faithfulness and robustness",
        description="AUC of each metric between models that know the forget set and models that do not; "
        "with --unlearned also whether it survives quantisation (Q) and relearning (R).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--positive", nargs="+", required=True, metavar="MODEL", help="models that know (at least 2)")
    parser.add_argument("--negative", nargs="+", required=True, metavar="MODEL", help="models that do not (at least 2)")
    parser.add_argument("--unlearned", nargs="*", default=[], metavar="MODEL", help="models that Q and R are taken on")
    parser.add_argument("--retain-model", metavar="MODEL", help="what R compares with; default: the first negative")
    parser.add_argument("--data", required=True, help="TOFU files: folder or Hub id")
    parser.add_argument("--forget", default="forget10", help="the forget set")
    parser.add_argument("--relearn-lr", type=number(0, exclude_low=True), default=2e-5)
    parser.add_argument("--relearn-epochs", type=positive, default=1)
    parser.add_argument(
        "--out", type=output_folder, default="runs/meta_eval", help="folder; measured models are kept there"
    )


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.lab.meta_eval import Pools, run_meta_eval

    pools = Pools(
        positive=tuple(args.positive),
        negative=tuple(args.negative),
        unlearned=tuple(args.unlearned),
        retain=args.retain_model,
        data=args.data,
        forget=args.forget,
        relearn_lr=args.relearn_lr,
        relearn_epochs=args.relearn_epochs,
    )
    result = run_meta_eval(pools, args.out)
    ranked = sorted(result["metrics"].items(), key=lambda item: -item[1].get("overall", item[1]["auc"]))
    print(f"{'metric':<26}{'AUC':>7}{'Q':>7}{'R':>7}{'overall':>9}{'judged':>8}")
    for name, entry in ranked:
        shown = "".join(
            f"{entry[key]:>{width}.2f}" if key in entry else f"{'–':>{width}}"
            for key, width in (("auc", 7), ("Q", 7), ("R", 7), ("overall", 9))
        )
        print(f"{name:<26}{shown}{entry['judged']:>8}")
    return 0
