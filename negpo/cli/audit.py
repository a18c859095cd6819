"""``negpo audit``: is it gone, is it really gone, and what else went?"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negpo.cli._flags import natural, number, output_folder, positive
from negpo.errors import ConfigError

if TYPE_CHECKING:
    from negpo.eval.audit.checkpoints import Checkpoint
    from negpo.eval.audit.settings import AuditSettings

EXAMPLE = (
    "negpo audit npo=runs/npo ga=runs/ga --target runs/target --retain runs/retain --forget locuslab/TOFU --suite full "
    "--out runs/audit --require 'forget_quality>0.05' --require 'utility>=0.9*target'"
)
SUITES = "quick: probability, ROUGE, forget quality, utility; standard: + memorisation, membership; full: + attacks"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "audit",
        help="audit unlearned models against the model before and one that never saw the forget set",
        description=__doc__,
        epilog=f"example: {EXAMPLE}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint folder or Hub id, or LABEL=MODEL")
    parser.add_argument("--target", required=True, help="the model before unlearning")
    parser.add_argument("--retain", required=True, help="a model that never saw the forget set: the control")
    parser.add_argument("--suite", default="standard", choices=("quick", "standard", "full"), help=SUITES)
    parser.add_argument(
        "--out", type=output_folder, default=Path("runs/audit"), help="folder; an interrupted audit goes on in it"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--forget", default="locuslab/TOFU", help="folder or Hub id in TOFU's schema, or a file of rows")
    data.add_argument("--split", default="forget10", help="forget split of a folder or Hub id")
    data.add_argument("--retain-data", help="file of rows to preserve; default: the folder's own")
    data.add_argument("--holdout", help="file of rows that no model was trained on; default: the folder's own")
    data.add_argument("--limit", type=positive, help="first rows of every set only")
    verdict = parser.add_argument_group("verdict")
    verdict.add_argument(
        "--require", action="append", default=[], metavar="CONDITION", help="exit with 1 unless every model meets it"
    )
    verdict.add_argument(
        "--leak-margin", type=number(0, 1), default=0.2, help="share of the target's knowledge that may stay"
    )
    verdict.add_argument(
        "--utility-margin", type=number(0, 1), default=0.1, help="share of the retain model's that may go"
    )
    verdict.add_argument("--seed", type=natural, default=0, help="of the bootstrap and of the attacks")
    how = parser.add_argument_group("how it is run; results do not depend on batches")
    how.add_argument("--max-new-tokens", type=positive, default=200, help="per answer")
    how.add_argument("--template", default="auto", choices=("auto", "chat", "tags"), help="prompt template")
    how.add_argument("--batch-rows", type=positive, default=64)
    how.add_argument("--batch-tokens", type=positive, default=8192, help="padded tokens per batch")
    how.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    how.add_argument("--device", help="default: cuda if there is one, else cpu")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """0: done, and every condition is met; 1: a condition is not met."""
    models = labelled(args.models)
    from negpo.eval.audit.data import load_audit_data
    from negpo.eval.audit.require import parse_requirements
    from negpo.eval.audit.run import metric_names, run_audit
    from negpo.eval.audit.sharding import Ranks

    settings = _settings(args)
    requirements = parse_requirements(args.require, metric_names(settings))
    data = load_audit_data(
        args.forget, split=args.split, retain=args.retain_data, holdout=args.holdout, limit=args.limit
    )
    ranks = Ranks.start()
    with _Progress(enabled=ranks.main) as report:
        audit = run_audit(
            models,
            args.target,
            args.retain,
            data,
            settings,
            out=args.out,
            load=lambda checkpoint: _load(checkpoint, args, ranks.local),
            requirements=requirements,
            ranks=ranks,
            report=report,
        )
    if audit is None:
        return 0
    from negpo.report.audit import render_audit
    from negpo.report.audit_terminal import print_audit

    path = audit.save(args.out)
    print_audit(audit.as_dict(), path, render_audit(path))
    return 0 if audit.accepted else 1


def labelled(models: Sequence[str]) -> list[tuple[str, str]]:
    """(label, model) of each argument: ``LABEL=MODEL``, else the shortest ends of the paths that tell them apart."""
    from negpo.eval.audit.result import folder_name

    named = ["=" in model and not Path(model).exists() for model in models]
    pairs = [model.split("=", 1) if given else ["", model] for given, model in zip(named, models, strict=True)]
    parts = [Path(name).parts for _, name in pairs]
    for size in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(path[-size:]) for path in parts]
        if len(set(ends)) == len(ends):
            break
    labels = [label or end for (label, _), end in zip(pairs, ends, strict=True)]
    if len(set(map(folder_name, labels))) < len(labels) or {"target", "retain"} & set(labels):
        raise ConfigError(
            f"the models are called {', '.join(labels)}: give each a label of its own, other than target and retain, "
            "as LABEL=MODEL"
        )
    return [(label, name) for label, (_, name) in zip(labels, pairs, strict=True)]


def _settings(args: argparse.Namespace) -> "AuditSettings":
    from negpo.data.qa import HELPFUL, QATemplate
    from negpo.eval.audit.settings import AuditSettings
    from negpo.eval.scoring import Batching

    templates = {"auto": None, "chat": QATemplate(chat_template=True, system_prompt=HELPFUL), "tags": QATemplate()}
    return AuditSettings(
        suite=args.suite,
        leak_margin=args.leak_margin,
        utility_margin=args.utility_margin,
        seed=args.seed,
        limit=args.limit,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        template=templates[args.template],
        batching=Batching(max_rows=args.batch_rows, max_tokens=args.batch_tokens),
    )


def _load(checkpoint: "Checkpoint", args: argparse.Namespace, local_rank: int) -> Any:
    """The model on this process's device. ConfigError when its files do not fit together."""
    import torch

    from negpo.models import load_causal_lm

    device = args.device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
    return load_causal_lm(checkpoint.name, dtype=args.dtype).to(device).eval()


class _Progress:
    """One line of progress, of the stage at hand; as a context it gives the ``report`` callback, or None."""

    def __init__(self, *, enabled: bool):
        self.enabled = enabled

    def __enter__(self):
        if not self.enabled:
            return None
        from negpo.progress import progress_bar

        self.bar = progress_bar(transient=True, stderr=True)
        self.task = self.bar.add_task("reading models", total=None)
        self.bar.start()
        return self.report

    def __exit__(self, *exception):
        if self.enabled:
            self.bar.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=stage, completed=done, total=total)
