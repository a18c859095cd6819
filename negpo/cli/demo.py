"""``negpo demo``: an embedded lab, unlearning, reasoning or training on verified or rejected answers, one report."""

import argparse
from pathlib import Path

from negpo.cli._flags import natural, number, output_folder, positive

JOBS = {  # module of negpo.lab, its settings, its function
    "unlearn": ("demo", "DemoSettings", "run_demo"),
    "reason": ("reason_demo", "ReasonDemoSettings", "run_reason_demo"),
    "rlvr": ("rlvr_demo", "RlvrSettings", "run_rlvr_demo"),
    "prefer": ("prefer_demo", "PreferDemoSettings", "run_prefer_demo"),
}
MODEL_JOB = ("model_demo", "ModelDemoSettings", "run_model_demo")  # unlearn --model
ONLY_WITH_MODEL = (
    *("forget", "authors", "rates", "batch", "fit_rate", "fit_steps"),
    *("limit", "max_new_tokens", "dtype", "audit", "hours"),
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job: lab, unlearning with every method, report; reason: pass@k; rlvr: RL; prefer: REDI, D2O",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    jobs = (
        "unlearn: every method on the lab's authors; reason: pass@k of the arithmetic model on every engine; rlvr: "
        "PSR, NSR, W-REINFORCE, GRPO, NGRPO, NFT and ResRL from the arithmetic model with equal rollouts; prefer: "
        "REDI and D2O against SFT, DPO, SimPO, NPO and GA on a distillation and a dispreference lab"
    )
    parser.add_argument("job", nargs="?", default="unlearn", choices=tuple(JOBS), help=jobs)
    out = "folder for labs, results and report.html (default: runs/demo or runs/JOB)"
    parser.add_argument("--out", type=output_folder, default=argparse.SUPPRESS, help=out)
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0], help="worlds to build; reason takes one")
    parser.add_argument("--size", default="default", choices=("default", "tiny"), help="tiny: seconds, learns nothing")
    parser.add_argument("--fresh", action="store_true", help="delete the folder first instead of going on")
    methods = "of unlearn, rlvr or prefer; default: all; an unknown name is answered with the list"
    parser.add_argument("--methods", nargs="+", help=methods)
    parser.add_argument("--workers", type=positive, default=2, help="child processes at once, one thread each")
    unlearn = parser.add_argument_group("unlearn")
    unlearn.add_argument("--tofu", type=Path, help="folder of the published TOFU files: the real questions, forget01")
    unlearn.add_argument(
        "--every", type=positive, default=argparse.SUPPRESS, help="optimiser steps between evaluations"
    )
    real = parser.add_argument_group("unlearn --model: the whole job on a pretrained model, in place of the lab's")
    real.add_argument("--model", help="folder or Hub id of the pretrained model")
    real.add_argument("--forget", help="TOFU split to forget, forget01 or forget05; rates are chosen on the one before")
    real.add_argument("--authors", type=positive, help="TOFU authors that are learned and kept (default: 18)")
    real.add_argument(
        "--rates",
        type=number(0, exclude_low=True),
        nargs="+",
        help="learning rates tried for every method; one: no trials",
    )
    real.add_argument("--batch", type=positive, help="rows of an optimiser step (default: 8)")
    real.add_argument(
        "--fit_rate",
        "--fit-rate",
        type=number(0, exclude_low=True),
        help="learning rate of the fine-tuning (default: 1e-4)",
    )
    real.add_argument("--fit_steps", "--fit-steps", type=positive, help="steps of the fine-tuning (default: 300)")
    real.add_argument("--limit", type=positive, help="first rows of every evaluation set only")
    real.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=positive, help="of an evaluated answer (default: 64)"
    )
    real.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16: autocast over float32 weights")
    real.add_argument("--audit", choices=("none", "quick", "standard", "full"), help="suite of the closing audit")
    real.add_argument(
        "--hours", type=number(0, exclude_low=True), help="time budget: what is finished then is reported"
    )
    reason = parser.add_argument_group("reason and rlvr")
    samples = "drawn per problem; the largest k (default: 64; 256 for rlvr --world countdown)"
    reason.add_argument("--samples", type=positive, default=argparse.SUPPRESS, help=samples)
    problems = "the first of the lab's 500 test problems (default: 100 for reason, 300 for rlvr, 150 for Countdown)"
    reason.add_argument("--problems", type=positive, default=argparse.SUPPRESS, help=problems)
    rlvr = parser.add_argument_group("rlvr")
    worlds = "arithmetic: hardly more than one right answer to a question; countdown: dozens, 3 to 5 numbers"
    rlvr.add_argument("--world", default="arithmetic", choices=("arithmetic", "countdown"), help=worlds)
    errors = "train again with a verifier that errs: 5 or 20 %% false positives (fp5, fp20) or negatives (fn5, fn20)"
    rlvr.add_argument("--errors", nargs="+", default=[], choices=("fp5", "fp20", "fn5", "fn20"), help=errors)
    rlvr.add_argument(
        "--steps", type=positive, help="optimiser steps per method; default: the recipes', unlearn --model: 50"
    )
    rlvr.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help="draws the rollouts")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Each job reads the arguments that its settings have."""
    from dataclasses import fields
    from importlib import import_module

    from negpo.errors import ConfigError

    typed = {name for name, value in vars(args).items() if value is not None}
    if args.model is not None and args.job != "unlearn":
        raise ConfigError(f"--model belongs to demo unlearn; demo {args.job} builds its own models")
    if args.model is None and (lost := sorted(typed & set(ONLY_WITH_MODEL))):
        raise ConfigError(f"--{lost[0]} would be ignored: it belongs to demo unlearn --model")
    module, settings, function = MODEL_JOB if args.model is not None else JOBS[args.job]
    home = import_module(f"negpo.lab.{module}")
    if args.job == "reason":
        if len(args.seeds) != 1:
            raise ConfigError(
                f"demo reason takes one seed, got {len(args.seeds)}: their problems differ, run them apart"
            )
        args.seed = args.seeds[0]
    kind = getattr(home, settings)
    names = {field.name for field in fields(kind)}
    given = {name: value for name, value in vars(args).items() if value is not None and name in names}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    getattr(home, function)(kind(**given))
    return 0
