"""The TOFU harness (arXiv 2401.06121) in two modes: ``open-unlearning`` and ``tofu-original``.

One scoring pass over every distinct answer and one generation pass over every question; all metrics are computed from
their per-row results. Works on a live model too, e.g. inside a training callback with ``limit`` or ``generate=False``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from negpo.data.qa import QATemplate, labelled_ids
from negpo.errors import ConfigError
from negpo.eval.harness import HarnessRun, HarnessSettings, generation_settings, identity, model_name
from negpo.eval.mia import Scores, attack_scores, gradient_norms
from negpo.eval.result import EvalResult
from negpo.eval.retain_log import RetainLog
from negpo.eval.scoring import Report, decode
from negpo.eval.tofu_data import TofuData, load_tofu
from negpo.eval.tofu_items import MAX_LENGTH, Answer, Encoder, Mode, row_id
from negpo.eval.tofu_metrics import (
    MEMBERSHIP,
    add_forget_quality,
    add_membership,
    as_retain_log,
    summarise_rows,
    truth_ratios,
)
from negpo.eval.tofu_rows import add_generations, add_losses, blank_rows
from negpo.models import check_vocabulary, hash_model

__all__ = ["RetainLog", "TofuData", "TofuResult", "TofuSettings", "evaluate_tofu", "load_tofu"]

ORIGINAL_ROWS = 300  # the original evaluator scores at most this many rows of a set


@dataclass(frozen=True)
class TofuSettings(HarnessSettings):
    """What is measured.

    mode: whose definitions and item building. generate: without it there is no ROUGE and no model utility. limit: rows
    per set, the first ones. max_length: None is the mode's own (512, 200). max_new_tokens: open-unlearning only.
    question_key: ``paraphrased_question`` asks the forget and retain questions differently. mia_k: share of tokens in
    Min-K%. gradnorm: also the gradient-norm attack, one backward pass per row. template: None finds it from the model.
    """

    mode: Mode = "open-unlearning"
    max_length: int | None = None
    max_new_tokens: int = 200
    question_key: str = "question"
    gradnorm: bool = False
    modes: ClassVar[Sequence[str]] = tuple(MAX_LENGTH)

    @property
    def row_limit(self) -> int | None:
        if self.mode == "open-unlearning":
            return self.limit
        return min(self.limit or ORIGINAL_ROWS, ORIGINAL_ROWS)


@dataclass
class TofuResult(EvalResult):
    """The result of TOFU; a model that never saw the forget set can serve as the reference of others."""

    retain: RetainLog | None = None

    def retain_log(self) -> RetainLog:
        """This result as the reference of other evaluations, for a model that never saw the forget set."""
        if self.retain is None:
            raise ConfigError("the forget set has no perturbed answers, so this result cannot serve as a retain log")
        return self.retain


def evaluate_tofu(
    model: Any,
    tokenizer: Any,
    data: TofuData,
    settings: TofuSettings | None = None,
    *,
    retain_log: RetainLog | None = None,
    reference_model: Any = None,
    out_dir: str | Path | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> TofuResult:
    """Measure a causal LM on TOFU.

    Args:
        model: a live model; its training mode and gradients are left as they were.
        retain_log: what forget quality and PrivLeak compare with; without it forget quality is reported as missing.
        reference_model: adds the reference attack of membership inference.
        out_dir: results go there; an interrupted run goes on from its ``items.jsonl``, another measurement's file is
            refused with ConfigError.
        name: the model's name in the manifest, and what its prompt template is recognised by.
        report: called with (stage, finished items, all items).
    """
    settings = settings or TofuSettings()
    if retain_log is not None:
        retain_log.check(data.forget, settings.mode)
    data, name = data.first(settings.row_limit), model_name(model, name)
    template = QATemplate.choose(name, tokenizer, settings.template)
    length = settings.max_length or MAX_LENGTH[settings.mode]
    encoder = Encoder(tokenizer, template, settings.mode, length, settings.max_new_tokens, settings.question_key)
    run = _Run(model, encoder, data, settings, name, out_dir, report)

    run.score()
    if settings.generate:
        run.generate()
    summary = summarise_rows(run.rows, settings.mode, data.absent, generated=settings.generate)
    ids = tuple(row_id(row) for row in data.sets["forget"])
    ratios = truth_ratios(run.rows["forget"], settings.mode)
    add_forget_quality(summary, ratios, ids, retain_log, run.manifest["template_sha256"])
    if reason := run.no_membership():
        summary.missing |= dict.fromkeys(MEMBERSHIP, reason)
    else:
        forget, holdout = (run.attacks(part, reference_model) for part in ("forget", "holdout"))
        add_membership(summary, forget, holdout, retain_log)
    retain = (
        None
        if ratios is None
        else as_retain_log(summary, settings.mode, data.forget, ratios, ids, run.manifest["template_sha256"])
    )
    return run.finish(
        TofuResult(summary.metrics, summary.missing, summary.details, run.per_item(), run.manifest, retain)
    )


class _Run(HarnessRun):
    """Losses, greedy answers and attack scores of one model."""

    settings: TofuSettings

    def __init__(self, model: Any, encoder: Encoder, data: TofuData, settings: TofuSettings, name, out_dir, report):
        names = ("mode", "generate", "limit", "question_key", "mia_k", "gradnorm")
        generation = generation_settings(model, encoder.tokenizer, settings.max_new_tokens) if settings.generate else {}
        values = identity(settings, names, encoder.template, generation) | {"max_length": encoder.max_length}
        options = {"data": data, "identity": values, "template": encoder.template, "name": name}
        super().__init__("tofu", model, encoder.tokenizer, settings, **options, out_dir=out_dir, report=report)
        self.encoder, self.data = encoder, data
        self.answers = encoder.answers(data)
        check_vocabulary(model, (answer.item["input_ids"] for answer in self.answers))
        self.results: list[dict[str, Any]] = []
        self.rows = blank_rows(data)

    def score(self) -> None:
        """Losses of all answers, into ``nll``, ``paraphrase_nll`` and ``perturbed_nll`` of their rows."""
        self.results = self._score(self.answers, name="model", detailed=[a.detailed for a in self.answers])
        add_losses(self.rows, self.answers, self.results)

    def generate(self) -> None:
        """Greedy answers to all questions and their ROUGE values."""
        prompts = self.encoder.prompts(self.data)
        add_generations(self.rows, prompts, self.texts(prompts))

    def no_membership(self) -> str | None:
        """Why membership inference is not possible, or None."""
        if self.settings.mode == "tofu-original":
            return "not part of tofu-original"
        return self.data.absent.get("holdout")

    def attacks(self, name: str, reference_model: Any) -> Scores:
        """Attack scores of one set's answers."""
        chosen = [i for i, answer in enumerate(self.answers) if answer.set == name and answer.kind == "answer"]
        answers = [self.answers[i] for i in chosen]
        texts = [decode(self.encoder.tokenizer, labelled_ids(answer.item)) for answer in answers]
        losses = None
        if reference_model is not None:
            work = f"reference {hash_model(reference_model)}"
            losses = [float(row["nll"]) for row in self._score(answers, model=reference_model, name=work)]
        scores = attack_scores([self.results[i] for i in chosen], texts, reference=losses)
        if self.settings.gradnorm:
            scores["gradnorm"] = gradient_norms(self.model, [answer.item for answer in answers])
        return scores

    def _score(self, answers: Sequence[Answer], **options: Any) -> list[dict[str, Any]]:
        return self.losses([answer.item for answer in answers], **options)
