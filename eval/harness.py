"""What the TOFU and MUSE harnesses share: their settings, the identity of a measurement, and the passes of a run.

A run scores all texts in one pass and generates from all prompts in another; both keep finished items, so that an
interrupted run goes on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from negpo.data.qa import Item, QATemplate
from negpo.errors import ConfigError
from negpo.eval.manifest import build_manifest
from negpo.eval.scoring import (
    Batching,
    ItemStore,
    Progress,
    Report,
    counting,
    generate_texts,
    generation_config,
    pad_token,
    score_items,
)


@dataclass(frozen=True)
class HarnessSettings:
    """Settings of every harness: see the subclasses for what each means there."""

    mode: str = "open-unlearning"
    generate: bool = True
    limit: int | None = None
    mia_k: float = 0.4
    template: QATemplate | None = None
    batching: Batching = field(default_factory=Batching)
    modes: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if self.mode not in self.modes:
            raise ConfigError(f"mode={self.mode!r} is not one of {', '.join(self.modes)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} must be at least 1 row")
        if not 0 < self.mia_k <= 1:
            raise ConfigError(f"mia_k={self.mia_k} is a share of the tokens: above 0, at most 1")


class Described(Protocol):
    """Data that tells what it holds: counts and content hashes."""

    def describe(self) -> Mapping[str, Any]: ...


class Prompt(Protocol):
    """Token ids that are to be continued, by at most so many tokens."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def max_new_tokens(self) -> int: ...


def model_name(model: Any, name: str | None) -> str:
    """``name``, or where the model was loaded from; "" when it was made in memory."""
    return name or str(getattr(model.config, "_name_or_path", ""))


def identity(
    settings: HarnessSettings, names: Iterable[str], template: QATemplate, generation: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings that change results, in full: those in ``names``, the template, and how texts are generated."""
    values = {name: getattr(settings, name) for name in names}
    values |= {"template": asdict(template), "compat": settings.batching.compat}
    return values | ({"generation": dict(generation)} if settings.generate else {})


def generation_settings(
    model: Any, tokenizer: Any, max_new_tokens: int, *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """What differs from transformers' defaults, whatever its version; ``without`` the named ones."""
    config = generation_config(model, tokenizer, max_new_tokens).to_diff_dict()
    return {key: value for key, value in config.items() if key not in ("transformers_version", *without)}


class HarnessRun:
    """The model's side of one evaluation, collected into ``rows`` by set."""

    def __init__(
        self,
        benchmark: str,
        model: Any,
        tokenizer: Any,
        settings: HarnessSettings,
        *,
        data: Described,
        identity: Mapping[str, Any],
        template: QATemplate,
        name: str,
        out_dir: str | Path | None,
        report: Report | None,
    ):
        """``out_dir``: a file of another measurement there is refused with ConfigError."""
        self.model, self.tokenizer, self.settings, self.report = model, tokenizer, settings, report
        self.out_dir = out_dir
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.manifest = build_manifest(
            model,
            tokenizer,
            benchmark=benchmark,
            settings=identity,
            data=data.describe(),
            template=template,
            name=name or None,
        )
        self.store = ItemStore(Path(out_dir) / "items.jsonl" if out_dir else None, self.manifest["hash"])

    def losses(self, items: Sequence[Item], *, model: Any = None, **options: Any) -> list[dict[str, Any]]:
        """Losses and token statistics, one result per item; ``model`` in the place of the one that is measured."""
        model = self.model if model is None else model
        return score_items(
            model,
            items,
            pad_token(self.tokenizer, model),
            k=self.settings.mia_k,
            batching=self.settings.batching,
            store=self.store,
            progress=counting(self.report, "scoring", len(items)),
            **options,
        )

    def texts(
        self, prompts: Sequence[Prompt], progress: Progress | None = None, *, stop_words: Sequence[str] = ()
    ) -> list[str]:
        """Greedy continuations."""
        return generate_texts(
            self.model,
            self.tokenizer,
            [prompt.ids for prompt in prompts],
            max_new_tokens=[prompt.max_new_tokens for prompt in prompts],
            stop_words=stop_words,
            batching=self.settings.batching,
            store=self.store,
            progress=progress or counting(self.report, "generating", len(prompts)),
        )

    def per_item(self) -> list[dict[str, Any]]:
        return [row for rows in self.rows.values() for row in rows]

    def finish(self, result: Any) -> Any:
        """``result``, an EvalResult, saved where the run has a folder."""
        if self.out_dir is not None:
            result.save(self.out_dir)
        return result
