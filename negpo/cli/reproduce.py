"""``negpo reproduce EXPERIMENT``: a paper's own experiment with our objective functions, claim by claim."""

import argparse

from negpo.cli._flags import output_folder, positive


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("reproduce", help="rerun a paper's own experiment and check its claims")
    experiments = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    synthetic = experiments.add_parser(
        "npo-synthetic",
        help="NPO paper (arXiv 2404.05868) section 4: logistic models on random features",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    synthetic.add_argument(
        "--out",
        type=output_folder,
        default="runs/npo-synthetic",
        help="folder for results.json, curves.png, report.html",
    )
    synthetic.add_argument("--seeds", type=positive, default=5, help="number of independent instances")
    synthetic.add_argument("--steps", type=positive, default=2000, help="unlearning steps")
    synthetic.add_argument(
        "--pretrain-steps", type=positive, default=20000, help="steps for the reference and retrained models"
    )


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Exit status 0 when the experiment ran; a claim that fails is a result and stands in the table."""
    import torch
    from rich.text import Text

    from negpo.lab.npo_synthetic import SyntheticSettings, claims_table, run_experiment, write_outputs
    from negpo.progress import plain_console

    torch.set_num_threads(1)  # 1200 x 128 features: more threads only wait for each other
    settings = SyntheticSettings(seeds=args.seeds, steps=args.steps, pretrain_steps=args.pretrain_steps)
    console = plain_console()
    with console.status(Text("NPO paper, synthetic experiment")) as status:
        result = run_experiment(settings, tell=lambda line: status.update(Text(line)))
    console.print(claims_table(result))
    for path in write_outputs(result, args.out):
        console.print(f"written: {path}", soft_wrap=True)
    return 0
