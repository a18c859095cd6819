"""The whole audit: check, measure the two controls, measure every model, judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negpo.eval.attacks import ATTACKS
from negpo.eval.audit.attacks import line_kind
from negpo.eval.audit.checkpoints import Checkpoint, check_family, inspect_checkpoint
from negpo.eval.audit.lines import GROUPS, KINDS, judge
from negpo.eval.audit.measure import Loader, Measured, Plan, Role, measure
from negpo.eval.audit.numbers import MIA, QUICK_METRICS, STANDARD_METRICS, numbers_of
from negpo.eval.audit.require import Requirement, check_requirements, refuse_unavailable
from negpo.eval.audit.resampling import Resampler
from negpo.eval.audit.result import Audit, ModelAudit
from negpo.eval.audit.settings import AuditSettings
from negpo.eval.audit.sharding import Ranks
from negpo.eval.scoring import Report
from negpo.eval.tofu_data import PREFIX, TofuData
from negpo.eval.tofu_metrics import MEMBERSHIP
from negpo.models import check_complete, check_vocabulary
from negpo.versions import versions

STAGES = "stages"


def metric_names(settings: AuditSettings) -> list[str]:
    """Every name that a requirement may use in this suite."""
    standard = STANDARD_METRICS if settings.detailed else ()
    return [*QUICK_METRICS, *standard, *(ATTACKS if settings.attacked else ()), *GROUPS]


def missing_metrics(data: TofuData, settings: AuditSettings) -> dict[str, str]:
    """Metrics that the data cannot give, with the reason; known before a model is loaded."""
    missing: dict[str, str] = {}
    for name, prefix in PREFIX.items():
        if name in data.absent:
            missing |= {metric: data.absent[name] for metric in QUICK_METRICS if metric.startswith(f"{prefix}_")}
            missing["model_utility"] = data.absent[name]
    if "perturbed" in data.absent:
        missing |= dict.fromkeys(("forget_quality", "forget_truth_ratio", "model_utility"), data.absent["perturbed"])
    if settings.detailed and "holdout" in data.absent:
        missing |= dict.fromkeys((*MEMBERSHIP, *MIA), data.absent["holdout"])
    if not settings.attacked:
        missing["robust"] = f"the {settings.suite} suite has no attacks"
    return missing


def run_audit(
    models: Sequence[tuple[str, str]],
    target: str,
    retain: str,
    data: TofuData,
    settings: AuditSettings,
    *,
    out: Path,
    load: Loader,
    requirements: Sequence[Requirement] = (),
    ranks: Ranks | None = None,
    report: Report | None = None,
) -> Audit | None:
    """Audit ``models``, pairs of label and checkpoint, against the model before unlearning and the retain-only model.

    Everything that can be refused is refused before ``load`` is called for the first time. Finished stages are kept
    under ``out/stages``; a second call goes on from there. Returns the audit on rank 0, None on the others.
    """
    ranks = ranks or Ranks()
    refuse_unavailable(requirements, missing_metrics(data, settings))
    before, control = inspect_checkpoint(target, "target"), inspect_checkpoint(retain, "retain")
    checkpoints = [inspect_checkpoint(name, label) for label, name in models]
    warnings = check_family(checkpoints, before, control)
    plan = Plan.make(data, before.tokenizer, settings, before.name)
    for checkpoint in (before, control, *checkpoints):
        check_vocabulary(checkpoint.shape["vocab_size"], plan.encoded, name=checkpoint.name)
    for checkpoint in (before, control, *checkpoints):
        check_complete(checkpoint.name)

    def run(checkpoint: Checkpoint, role: Role) -> Measured:
        folder = out / STAGES / checkpoint.sha256[:12]
        return measure(checkpoint, role, plan, load=load, folder=folder, ranks=ranks, report=report)

    measured = [run(control, "retain"), run(before, "target"), *(run(one, "model") for one in checkpoints)]
    if not ranks.main:
        return None
    return _judge_all(measured, plan, warnings, requirements)


def _judge_all(
    measured: list[Measured], plan: Plan, warnings: dict[str, list[str]], requirements: Sequence[Requirement]
) -> Audit:
    """Numbers and verdicts from what was measured: retain model, target, then the models."""
    settings = plan.settings
    sizes = {name: len(rows) for name, rows in plan.data.sets.items()}
    resampler = Resampler.make(sizes, settings.resamples, settings.seed, settings.confidence)
    control = measured[0]
    kinds = [*KINDS, *(line_kind(attack) for attack in plan.attacks)]
    found = [ModelAudit(one, numbers_of(one, control, plan, resampler)) for one in measured]
    retain, target, *models = found
    for one in found:
        own = one.numbers.estimates
        controls = retain.numbers.estimates, target.numbers.estimates
        lines = (judge(kind, own, *controls, settings=settings, resampler=resampler) for kind in kinds)
        one.lines = [line for line in lines if line is not None]
        one.warnings = warnings.get(one.label, []) + _unusable(one.measured)
    audit = Audit(_manifest(measured, plan), models, target, retain)
    for one in models:
        audit.outcomes += check_requirements(requirements, one.label, one.values(), target.values(), retain.values())
    return audit


def _unusable(measured: Measured) -> list[str]:
    return [
        f"{count} of {len(measured.rows[name])} rows of {name} have a loss that is not a number"
        for name, count in measured.unusable.items()
    ]


def _manifest(measured: list[Measured], plan: Plan) -> dict[str, Any]:
    return {
        "settings": plan.settings.describe(),
        "data": plan.data.describe(),
        "absent": plan.data.absent,
        "template": vars(plan.template),
        "template_sha256": plan.template_sha256,
        "tokenizer_sha256": measured[0].checkpoint.tokenizer_sha256,
        "models": {
            f"{one.role}: {one.checkpoint.label}": {"name": one.checkpoint.name, "sha256": one.checkpoint.sha256}
            for one in measured
        },
        "versions": versions(),
    }
