"""The MUSE harness (arXiv 2407.06460) in two modes: ``open-unlearning`` and ``muse-original``.

One scoring pass over every text and one generation pass over every prompt give VerbMem, KnowMem on the forget and
retain sets, PrivLeak with its AUCs, and extraction strength. The original evaluator works one example at a time in
float32; here batches have explicit masks, so that results do not depend on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from negpo.data.qa import QATemplate
from negpo.errors import ConfigError, DataError
from negpo.eval.harness import HarnessRun, HarnessSettings, generation_settings, identity, model_name
from negpo.eval.mia import Scores, attack_scores
from negpo.eval.muse_data import TEXTS, MuseData, load_muse
from negpo.eval.muse_items import KNOWMEM_STOPS, MODES, Encoder, Mode, Scored, check_context
from negpo.eval.muse_metrics import (
    SHARES,
    RetainAuc,
    Summary,
    add_extraction,
    add_original_privleak,
    add_privleak,
    add_rouge,
    original_scores,
)
from negpo.eval.result import EvalResult
from negpo.eval.scoring import Report, counting, decode
from negpo.models import check_vocabulary

__all__ = ["MuseData", "MuseResult", "MuseSettings", "RetainAuc", "evaluate_muse", "load_muse"]


@dataclass(frozen=True)
class MuseSettings(HarnessSettings):
    """What is measured.

    mode: whose definitions. generate: without it there is no VerbMem and no KnowMem. limit: rows per set, the first
    ones. max_length: tokens of a text after its first (open-unlearning only; the original does not cut). mia_k: share
    of tokens in open-unlearning's Min-K%. template: of the questions in open-unlearning mode, None finds it from the
    model; the original always writes "Question: …", "Answer: …".
    """

    mode: Mode = "open-unlearning"
    max_length: int = 2048
    modes: ClassVar[Sequence[str]] = MODES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ConfigError(f"max_length={self.max_length} leaves no token to score; give at least 2")

    @property
    def original(self) -> bool:
        return self.mode == "muse-original"


@dataclass
class MuseResult(EvalResult):
    """The result of MUSE; that of a model that never saw the forget set can serve as the reference of others."""

    def retain_auc(self, source: str = "computed") -> RetainAuc:
        """The AUC that PrivLeak compares with. ConfigError when there is none, e.g. without a holdout set."""
        if "privleak" not in self.metrics:
            raise ConfigError(f"this result has no AUC to compare with: {self.missing['privleak']}")
        mode, corpus = self.manifest["settings"]["mode"], self.manifest["data"]["corpus"]
        return RetainAuc(mode, corpus, self.details["privleak"]["auc"], source)


def evaluate_muse(
    model: Any,
    tokenizer: Any,
    data: MuseData,
    settings: MuseSettings | None = None,
    *,
    retain: RetainAuc | None = None,
    out_dir: str | Path | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> MuseResult:
    """Measure a causal LM on MUSE.

    Args:
        model: a live model; its training mode and gradients are left as they were.
        retain: AUC of a retained model for PrivLeak. Without it the original mode uses the published constant, and
            open-unlearning assumes 0.5; both are said in the details.
        out_dir: results go there; an interrupted run goes on from its ``items.jsonl``, another measurement's file is
            refused with ConfigError.
        name: the model's name in the manifest, and what its prompt template is recognised by.
        report: called with (stage, finished items, all items).
    """
    settings = settings or MuseSettings()
    for what, own, other in (
        ("mode", getattr(retain, "mode", settings.mode), settings.mode),
        ("corpus", getattr(retain, "corpus", data.corpus), data.corpus),
    ):
        if own != other:
            raise ConfigError(f"the retain model's AUC has {what} {own!r}, this evaluation uses {other!r}")
    data, name = data.first(settings.limit), model_name(model, name)
    template = QATemplate() if settings.original else QATemplate.choose(name, tokenizer, settings.template)
    encoder = Encoder(tokenizer, template, settings.mode, settings.max_length)
    run = _Run(model, encoder, data, settings, name, out_dir, report)

    run.score()
    if settings.generate:
        run.generate()
    summary = run.summarise(retain)
    if data.empty:
        summary.details["empty_rows"] = data.empty
    return run.finish(MuseResult(summary.metrics, summary.missing, summary.details, run.per_item(), run.manifest))


class _Run(HarnessRun):
    """Token statistics, greedy continuations and attack scores of one model."""

    settings: MuseSettings

    def __init__(self, model: Any, encoder: Encoder, data: MuseData, settings: MuseSettings, name, out_dir, report):
        names = ("mode", "generate", "limit") + (() if settings.original else ("max_length", "mia_k"))
        # each prompt has its own limit
        generation = generation_settings(model, encoder.tokenizer, 0, without=("max_new_tokens",))
        values = identity(settings, names, encoder.template, generation)
        options = {"data": data, "identity": values, "template": encoder.template, "name": name}
        super().__init__("muse", model, encoder.tokenizer, settings, **options, out_dir=out_dir, report=report)
        self.encoder, self.data = encoder, data
        self.prompts = encoder.prompts(data) if settings.generate else []
        self.scored = list(encoder.scored(data))
        _refuse_too_short(self.scored, data.source)
        ids = [entry.item["input_ids"] for entry in self.scored] + [prompt.ids for prompt in self.prompts]
        if not ids:
            raise ConfigError(f"nothing to evaluate: of {data.source} only {', '.join(data.sets)} is there")
        check_vocabulary(model, ids)
        check_context(model, self.prompts, self.scored)
        self.rows = {
            name: [{"set": name, "row": index} for index in range(len(rows))]
            for name, rows in data.sets.items()
            if not name.endswith("_icl")
        }

    def score(self) -> None:
        """Losses and token statistics of all texts, into their rows."""
        original = self.settings.original
        results = self.losses(
            [entry.item for entry in self.scored],
            detailed=[not original] * len(self.scored),
            shares=SHARES if original else (),
        )
        for entry, result in zip(self.scored, results, strict=True):
            row = self.rows[entry.set][entry.row]
            row |= {"lower_nll": result["nll"]} if entry.kind == "lower" else result

    def generate(self) -> None:
        """Greedy continuations, one pass over VerbMem (no stop words) and one over the questions."""
        progress = counting(self.report, "generating", len(self.prompts))
        for verbmem in (True, False):
            prompts = [prompt for prompt in self.prompts if (prompt.set == "verbmem") == verbmem]
            texts = self.texts(prompts, progress, stop_words=() if verbmem else KNOWMEM_STOPS)
            for prompt, text in zip(prompts, texts, strict=True):
                self.rows[prompt.set][prompt.row] |= {"generation": text, "ground_truth": prompt.truth}

    def summarise(self, retain: RetainAuc | None) -> Summary:
        summary, original = Summary(), self.settings.original
        add_rouge(summary, self.rows, self.data, original=original, generated=self.settings.generate)
        add_extraction(summary, self.rows, self.data, original=original)
        scores = {name: self._attacks(name) for name in TEXTS if name in self.rows}
        add = add_original_privleak if original else add_privleak
        add(summary, scores, self.rows, self.data, retain)
        return summary

    def _attacks(self, name: str) -> Scores:
        if self.settings.original:
            return original_scores(self.rows[name], [row["text"] for row in self.data.sets[name]])
        entries = [entry for entry in self.scored if entry.set == name]
        # of what was scored, after the cut at max_length
        ids = [[label for label in entry.item["labels"] if label >= 0] for entry in entries]
        return attack_scores(self.rows[name], [decode(self.encoder.tokenizer, row) for row in ids])


def _refuse_too_short(scored: Sequence[Scored], source: str) -> None:
    """A text of one token has nothing that a model predicts; its score would be made up."""
    for entry in scored:
        if len(entry.item["input_ids"]) < 2:
            raise DataError("one token is too short to be scored", file=f"{source} ({entry.set})", row=entry.row)
