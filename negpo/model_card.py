"""The README.md beside every saved model: what was done to it, with what, and what is known to go wrong.

``card_of(trainer)`` collects the facts, ``CardFacts.render()`` writes them as Markdown under a Hugging Face metadata
header. Whatever came from outside (names, settings) stands in code spans, and of local paths only the last part is
written: a card is made to be published.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from negpo.data.io import atomic_write
from negpo.methods import TABLE, Method
from negpo.versions import versions

CARD = "README.md"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NOT_PLAIN = re.compile(r"[^\w .-]")
LONG = 120  # characters; what is longer says less than its hash


METHOD_FACTS = TABLE  # a method in words: title, objectives, papers
# settings of transformers and TRL that decide the result; those of negpo's own config classes are all shown
SHARED_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16",
    "gradient_checkpointing", "num_generations", "max_completion_length", "temperature", "top_p", "top_k", "epsilon",
    "epsilon_high", "delta", "beta", "entropy_coef", "num_iterations", "data_seed",
)  # fmt: skip


@dataclass
class CardFacts:
    """Everything a card says. ``extra`` is further metadata given to ``create_model_card`` (license, datasets, ...)."""

    method: str
    trainer: str
    base_model: str
    adapter: bool
    steps: tuple[int, int]
    seed: int
    processes: int
    data: dict[str, str]
    datasets: list[str]
    settings: dict[str, str]
    telemetry: dict[str, float]
    versions: dict[str, str]
    name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """The YAML header. A base model is named only where it is a Hub id, a license only where it was given."""
        extra = dict(self.extra)
        tags = dict.fromkeys(["negpo", self.method, "generated_from_trainer", *_listed(extra.pop("tags", None))])
        header: dict[str, Any] = {"library_name": "peft" if self.adapter else "transformers", "tags": list(tags)}
        base_model = extra.pop("base_model", None) or self.base_model
        if HUB_ID.fullmatch(base_model):
            header["base_model"] = base_model
        if self.datasets:
            header["datasets"] = self.datasets
        if self.name:
            header["model_name"] = self.name
        header |= {key: value for key, value in extra.items() if value is not None}
        return {key: _one_line(value) for key, value in header.items()}

    def render(self) -> str:
        facts = METHOD_FACTS.get(self.method)
        step, planned = self.steps
        header = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True, width=10_000)
        papers = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in facts.papers) if facts else ""
        parts = [
            f"---\n{header}---\n",
            f"# {re.sub(NOT_PLAIN, '-', self.name or last_part(self.base_model)) or 'model'}\n",
            f"{'Adapter for' if self.adapter else 'Trained from'} {code(self.base_model)} by negpo with "
            f"{facts.title if facts else 'an objective of its own'} ({code(self.trainer)}): "
            f"step {step} of {planned}, seed {self.seed}, {self.processes} process(es).\n",
        ]
        if facts:
            names = ", ".join(code(name) for name in facts.objectives)
            parts.append(f"Objective: {names} of `negpo.objectives`; paper: arXiv {papers}.\n")
            parts += [f"## Known caveats\n\n{caveats_of(facts)}\n"]
        parts += [
            _table("Data", ("what", "value"), self.data),
            _table("Settings", ("name", "value"), self.settings),
            _table(
                f"Telemetry at step {step}",
                ("name", "value"),
                {name: f"{value:.6g}" for name, value in sorted(self.telemetry.items())},
            ),
            _table("Versions", ("package", "version"), self.versions),
            "Not evaluated by the trainer: see `negpo eval` and `negpo audit`.\n",
        ]
        return "\n".join(part for part in parts if part)


def code(text: Any) -> str:
    """``text`` in a code span that it cannot leave, on one line, safe in a table."""
    return "`" + (re.sub(r"[`\s]+", " ", str(text)).strip().replace("|", "\\|") or " ") + "`"


def last_part(name: str) -> str:
    """Hub ids as they are; of anything that may be a local path only its last part."""
    local = HUB_ID.fullmatch(name) is None or name.startswith(".") or Path(name).exists()
    return re.split(r"[\\/]+", name.rstrip("\\/"))[-1] if local else name


def caveats_of(facts: Method) -> str:
    """The `Caveat` paragraphs of the objectives' docstrings, one list item each."""
    from negpo import objectives

    items = []
    for name in facts.objectives:
        for paragraph in (inspect.getdoc(getattr(objectives, name)) or "").split("\n\n"):
            if match := re.match(r"Caveats?: (.*)", paragraph, re.DOTALL):
                items.append(f"* {code(name)}: {' '.join(match[1].split()).replace('``', '`')}")
    return "\n".join(items) or "None recorded."


def card_of(trainer: Any, *, name: str = "", **extra: Any) -> CardFacts:
    """The facts of a trainer of negpo, at the step it is at."""
    from negpo.logprobs.head import unwrap

    args, state = trainer.args, trainer.state
    model = unwrap(trainer.model)
    base = getattr(model.config, "_name_or_path", "") or f"unnamed {type(model).__name__}"
    return CardFacts(
        method=method_of(type(trainer)),
        trainer=type(trainer).__name__,
        base_model=last_part(base),
        adapter=hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"),
        steps=(state.global_step, state.max_steps),
        seed=args.seed,
        processes=args.world_size,
        data=_data(trainer),
        datasets=_hub_ids(trainer),
        settings=_settings(args),
        telemetry=_telemetry(state.log_history),
        versions=versions(),
        name=last_part(name),
        extra=extra,
    )


def method_of(kind: type) -> str:
    """The `negpo train` name of a trainer class or of the nearest one it is made from; "own" for anything else."""
    names = {method.trainer: name for name, method in TABLE.items()}
    return next((names[base.__name__] for base in kind.__mro__ if base.__name__ in names), "own")


def write_card(trainer: Any, folder: str | Path, *, name: str = "", **extra: Any) -> Path:
    """Write the card of ``trainer`` into ``folder``."""
    return atomic_write(Path(folder) / CARD, card_of(trainer, name=name, **extra).render())


def _data(trainer: Any) -> dict[str, str]:
    """Rows and fingerprints: what the checkpoint is compared with on resume."""
    import hashlib

    found = {"rows": str(len(trainer.train_dataset))}
    for kind, (source, configuration) in trainer.data_sources.items():
        if source:
            found[f"{kind} rows from"] = f"{last_part(source)} {configuration or ''}".strip()
    for name, value in trainer._provenance().items():
        text = _plain(value)
        found[name] = text if len(text) <= LONG else f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    return {name: value for name, value in found.items() if value not in ("", "None")}


def _hub_ids(trainer: Any) -> list[str]:
    """Data sets of the run that are on the Hub, each once."""
    sources = (source for source, _ in trainer.data_sources.values() if source)
    return list(dict.fromkeys(source for source in sources if HUB_ID.fullmatch(last_part(source))))


def _settings(args: Any) -> dict[str, str]:
    """Settings of negpo's own config classes and SHARED_SETTINGS, without folders and without nested values."""
    own = {
        name
        for kind in type(args).__mro__
        if kind.__module__.startswith("negpo.")
        for name in inspect.get_annotations(kind)
    }
    shown = {}
    for item in fields(args):
        value = getattr(args, item.name)
        private = item.name.endswith(("_dir", "_kwargs", "_options", "_config")) or isinstance(value, Mapping)
        if (item.name in own or item.name in SHARED_SETTINGS) and not private and value is not None:
            shown[item.name] = _plain(getattr(value, "value", value))
    return dict(sorted(shown.items()))


def _plain(value: Any) -> str:
    """A setting as text; local paths inside lose all but their last part."""
    if isinstance(value, str):
        return last_part(value) if value.startswith(("/", "~", ".")) or re.match(r"[A-Za-z]:\\", value) else value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, Sequence):
        return ", ".join(_plain(one) for one in value)
    return str(value)


def _telemetry(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of every logged number with a sign or a part in its name, and of the loss and the reward."""
    last: dict[str, float] = {}
    for entry in history:
        for name, value in entry.items():
            if isinstance(value, int | float) and ("/" in name or name in ("loss", "grad_norm", "reward")):
                last[name] = float(value)
    return last


def _one_line(value: Any) -> Any:
    """Texts without line breaks: a line of dashes in one would end the header."""
    if isinstance(value, str):
        return " ".join(value.split())
    return [_one_line(one) for one in value] if isinstance(value, Sequence) else value


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _table(title: str, columns: tuple[str, str], rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {code(name)} | {code(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}\n", f"| {columns[0]} | {columns[1]} |", "|---|---|", *lines, ""])
