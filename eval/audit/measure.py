"""All stages of one model: what its rows score, what it answers, what its gradients say, what attacks bring back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from negpo.data.qa import QATemplate, labelled_ids
from negpo.eval.attacks import Attack, AttackResult, attack_data
from negpo.eval.audit.attacks import attack_identity, attack_or_reason, audit_attacks
from negpo.eval.audit.checkpoints import Checkpoint
from negpo.eval.audit.passes import generate_answers, gradient_sizes, in_stage, score_answers
from negpo.eval.audit.settings import AuditSettings
from negpo.eval.audit.sharding import Ranks
from negpo.eval.audit.stages import Stages
from negpo.eval.mia import Scores, attack_scores
from negpo.eval.scoring import Report, decode
from negpo.eval.tofu_data import TofuData
from negpo.eval.tofu_items import Answer, Encoder, Prompt
from negpo.eval.tofu_metrics import Rows
from negpo.eval.tofu_rows import add_generations, add_losses, blank_rows
from negpo.models import check_vocabulary

Role = Literal["model", "target", "retain"]
MEMBERS = ("forget", "holdout")


@dataclass(frozen=True)
class Plan:
    """What is done to every model: rows as token ids by set, settings, and the template they were encoded with."""

    data: TofuData
    settings: AuditSettings
    template: QATemplate
    template_sha256: str
    answers: dict[str, list[Answer]]
    prompts: dict[str, list[Prompt]]
    attacks: list[Attack]

    @classmethod
    def make(cls, data: TofuData, tokenizer: Any, settings: AuditSettings, name: str) -> Plan:
        """``name`` of the target: what the prompt template is recognised by. No model is needed."""
        if not settings.detailed:
            sets = {name: rows for name, rows in data.sets.items() if name != "holdout"}
            data = TofuData(data.source, data.forget, sets, data.absent | {"holdout": "not part of the quick suite"})
        template = QATemplate.choose(name, tokenizer, settings.template)
        encoder = Encoder(tokenizer, template, "open-unlearning", settings.max_length, settings.max_new_tokens)
        answers: dict[str, list[Answer]] = {name: [] for name in data.sets}
        prompts: dict[str, list[Prompt]] = {name: [] for name in data.sets if name != "holdout"}
        for answer in encoder.answers(data):
            answers[answer.set].append(answer)
        for prompt in encoder.prompts(data):
            prompts[prompt.set].append(prompt)
        attacks = audit_attacks(settings, len(data.sets["forget"]))
        return cls(data, settings, template, template.hash(tokenizer), answers, prompts, attacks)

    @property
    def encoded(self) -> list[list[int]]:
        """Token ids of everything that is scored."""
        return [answer.item["input_ids"] for answers in self.answers.values() for answer in answers]

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        return self.data.describe()["sha256"]

    @property
    def no_membership(self) -> str | None:
        """Why there is no membership inference, or None."""
        return None if self.settings.detailed and "holdout" in self.data.sets else self.data.absent["holdout"]

    def member_answers(self, name: str) -> list[Answer]:
        """The answers of a set that membership inference looks at."""
        return [answer for answer in self.answers[name] if answer.kind == "answer"]


@dataclass
class Measured:
    """What was measured of one model. ``rows`` by set as in TOFU's harness; ``gradients`` (N,) by set; ``attacks``:
    results by name, ``not_attacked``: why others are not there; ``seconds`` by stage; ``unusable`` rows by set: those
    whose loss is not a number.
    """

    checkpoint: Checkpoint
    role: Role
    rows: Rows
    gradients: dict[str, list[float]] = field(default_factory=dict)
    attacks: dict[str, AttackResult] = field(default_factory=dict)
    not_attacked: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    unusable: dict[str, int] = field(default_factory=dict)

    def membership(self, name: str, plan: Plan, reference: Measured) -> Scores:
        """Attack scores (N,) of set ``name``; the reference attack compares with the losses of ``reference``."""
        tokenizer = self.checkpoint.tokenizer
        texts = [decode(tokenizer, labelled_ids(answer.item)) for answer in plan.member_answers(name)]
        losses = [row["nll"] for row in reference.rows[name]]
        scores = attack_scores(self.rows[name], texts, reference=losses)
        return scores | {"gradnorm": np.array(self.gradients[name], dtype=np.float64)}


Loader = Callable[[Checkpoint], Any]


def measure(
    checkpoint: Checkpoint,
    role: Role,
    plan: Plan,
    *,
    load: Loader,
    folder: Path,
    ranks: Ranks,
    report: Report | None = None,
) -> Measured:
    """Run, or read back, every stage of one model. The model is loaded by the first stage that needs it.

    ``role`` is part of a stage's identity: the retain model audited as a model is computed again, so that it can
    differ from itself as a control if anything in the audit is not reproducible.
    """
    identity = {
        "model": checkpoint.sha256,
        "role": role,
        "template": plan.template_sha256,
        "max_length": plan.settings.max_length,
        "dtype": plan.settings.dtype,
        "compat": plan.settings.batching.compat,
    }
    stages = Stages(folder, identity, ranks)
    runner = _Runner(checkpoint, plan, stages, ranks, load, report)
    measured = Measured(checkpoint, role, blank_rows(plan.data), seconds=stages.seconds)
    for name in plan.answers:
        runner.score(name, measured)
    for name in plan.prompts:
        runner.generate(name, measured)
    if not plan.no_membership:
        for name in MEMBERS:
            runner.gradients(name, measured)
    if plan.attacks:
        runner.attack(measured)
    return measured


class _Runner:
    """The stages of one model; ``model`` is loaded on first use."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, stages: Stages, ranks: Ranks, load: Loader, report: Report | None
    ) -> None:
        self.checkpoint, self.plan, self.stages, self.ranks = checkpoint, plan, stages, ranks
        self.load, self.report = load, report

    @cached_property
    def model(self) -> Any:
        model = self.load(self.checkpoint)
        check_vocabulary(model, self.plan.encoded)
        return model

    def score(self, name: str, measured: Measured) -> None:
        answers, settings = self.plan.answers[name], self.plan.settings

        def compute() -> Any:
            return score_answers(
                self.model,
                self.checkpoint.tokenizer,
                answers,
                detailed=settings.detailed,
                mia_k=settings.mia_k,
                batching=settings.batching,
                ranks=self.ranks,
                progress=self._progress("scoring", name, len(answers)),
            )

        detail = {"detailed": settings.detailed, "mia_k": settings.mia_k} if name in MEMBERS else {}
        results = self.stages.run(f"score-{name}", self._data(name) | detail, compute)
        add_losses(measured.rows, answers, results)
        broken = {answer.row for answer, one in zip(answers, results, strict=True) if np.isnan(float(one["nll"]))}
        if broken:
            measured.unusable[name] = len(broken)

    def generate(self, name: str, measured: Measured) -> None:
        prompts, settings = self.plan.prompts[name], self.plan.settings

        def compute() -> Any:
            progress = self._progress("answering", name, len(prompts))
            batching, tokenizer = settings.batching, self.checkpoint.tokenizer
            return generate_answers(
                self.model, tokenizer, prompts, batching=batching, ranks=self.ranks, progress=progress
            )

        detail = {"max_new_tokens": settings.max_new_tokens}
        texts = self.stages.run(f"generate-{name}", self._data(name) | detail, compute)
        add_generations(measured.rows, prompts, texts)

    def gradients(self, name: str, measured: Measured) -> None:
        answers, seed = self.plan.member_answers(name), self.plan.settings.seed

        def compute() -> Any:
            progress = self._progress("gradients", name, len(answers))
            return gradient_sizes(self.model, answers, seed=seed, ranks=self.ranks, progress=progress)

        norms = self.stages.run(f"gradients-{name}", self._data(name) | {"seed": seed}, compute)
        measured.gradients[name] = [float(norm) for norm in norms]

    def attack(self, measured: Measured) -> None:
        """Every attack by one rank: most of them train or copy the model, which cannot be dealt out row by row."""
        plan, tokenizer = self.plan, self.checkpoint.tokenizer
        data, seed = attack_data(plan.data), plan.settings.seed
        attacks = {f"attack-{attack.name}": attack for attack in plan.attacks}
        report = self._progress("attack", "", len(attacks))

        def compute(stage: str) -> Any:
            result = attack_or_reason(attacks[stage], self.model, tokenizer, data, plan.template, seed)
            if report:
                report(1)
            return result

        hashes = {"sha256": plan.data_sha256}
        tasks = {stage: hashes | attack_identity(attack, seed) for stage, attack in attacks.items()}
        for stage, found in self.stages.run_each(tasks, compute).items():
            if "reason" in found:
                measured.not_attacked[attacks[stage].name] = found["reason"]
            else:
                measured.attacks[attacks[stage].name] = AttackResult.from_json(found)

    def _data(self, name: str) -> dict[str, Any]:
        return {"set": name, "sha256": self.plan.data_sha256[name]}

    def _progress(self, stage: str, name: str, total: int) -> Any:
        if not self.ranks.main:
            return None
        return in_stage(self.report, f"{self.checkpoint.label}: {stage} {name}", total, self.ranks)
