"""One teacher-forced pass and one generation pass that every metric of a harness shares.

An answer is scored once however many metrics need it: items are identified by their token ids. Batches are sorted by
length and filled up to a token budget, and only labelled positions ever meet the vocabulary (:mod:`negpo.logprobs`).
What is kept of an answer does not depend on batch size or padding side (float32: to about 1e-6; bf16 kernels round
differently by shape). Finished items are written to a JSON-lines file, from which a later run goes on.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from negpo.data.collate import pad_batch
from negpo.data.io import append_jsonl, read_jsonl
from negpo.data.qa import IGNORE, Item
from negpo.data.seal import opened, sealed
from negpo.errors import ConfigError
from negpo.eval.metrics import exact_memorization, extraction_strength, min_k, min_k_plus_plus, muse_min_k
from negpo.models import evaluating, vocabulary_size

logger = logging.getLogger(__name__)
Progress = Callable[[int], None]  # number of items just finished
Report = Callable[[str, int, int], None]  # (stage, finished items, all items)


@dataclass(frozen=True)
class Batching:
    """How items are grouped for the model; changes speed and memory, not results.

    max_rows, max_tokens: limits per batch, the latter on padded tokens. compat="ou-0.1" reproduces open-unlearning's
    attention mask, which hides prompt tokens equal to the pad token.
    """

    max_rows: int = 64
    max_tokens: int = 8192
    padding_side: Literal["right", "left"] = "right"
    compat: Literal["ou-0.1"] | None = None

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_tokens < 1:
            raise ConfigError(f"batch limits must be positive, not {self.max_rows} rows and {self.max_tokens} tokens")

    def split(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of ``lengths`` in batches, longest first, so that what does not fit fails at once."""
        batches: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            # the first row of a batch is its longest and sets the padded width
            fits = batches and len(batches[-1]) < self.max_rows
            if fits and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= self.max_tokens:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches


@dataclass
class ItemStore:
    """Results by key, in memory and, with a path, as JSON lines that survive a kill.

    The first line names the manifest; a file made under another manifest is refused with ConfigError. Every line is
    sealed: one that was changed after it was written is left out, with a warning, and its work done again.
    """

    path: Path | None = None
    manifest_hash: str = ""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        lines = read_jsonl(self.path) if self.path.exists() else []
        if not lines:
            append_jsonl(self.path, {"manifest": self.manifest_hash})
            return
        if lines[0].get("manifest") != self.manifest_hash:
            raise ConfigError(
                f"{self.path} holds results of another model, data or setting (manifest {lines[0].get('manifest')!r}, "
                f"now {self.manifest_hash!r}). Choose another output folder or delete the file"
            )
        kept = [row for row in map(opened, lines[1:]) if row is not None]
        if len(kept) < len(lines) - 1:
            changed = len(lines) - 1 - len(kept)
            logger.warning(
                "%s: %d lines were changed after they were written; they are computed again", self.path, changed
            )
        self.rows.update({row["key"]: row for row in kept})

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows.update({row["key"]: row for row in rows})
        if self.path is not None:
            append_jsonl(self.path, *map(sealed, rows))


def score_items(
    model: Any,
    items: Sequence[Item],
    pad_id: int,
    *,
    detailed: Sequence[bool] | None = None,
    k: float = 0.4,
    shares: Sequence[float] = (),
    batching: Batching | None = None,
    store: ItemStore | None = None,
    name: str = "model",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Score every item once; returns one result per item, in order.

    Each result has ``nll`` (sum over the labelled tokens, eos included, by their number; NaN without labels) and
    ``tokens``. Where ``detailed`` is True also ``exact_memorization``, ``extraction_strength``, ``min_k`` and
    ``min_k_plus_plus``, which leave the last labelled token out as open-unlearning does. With ``shares`` every result
    has ``muse_min_k``: MUSE's own Min-K% over all labelled tokens for each share, in order. ``name`` keeps several
    models apart in one store; ``progress`` is called with the number of items just finished.
    """
    batching, store = batching or Batching(), store or ItemStore()
    detailed = detailed or [False] * len(items)
    keys = [item_key(name, item, k if more else None, shares) for item, more in zip(items, detailed, strict=True)]
    todo = {key: index for index, key in enumerate(keys) if key not in store.rows}
    if progress and len(todo) < len(items):
        progress(len(items) - len(todo))
    # plain and detailed items are batched apart: the statistics cost a second look at the vocabulary
    for more in (True, False):
        todo_part = [(key, items[i]) for key, i in todo.items() if bool(detailed[i]) == more]
        for batch in batching.split([len(item["input_ids"]) for _, item in todo_part]):
            part = [todo_part[i] for i in batch]
            scores = _score_batch(model, [item for _, item in part], pad_id, batching, k if more else None, shares)
            store.add([{"key": key, **score} for (key, _), score in zip(part, scores, strict=True)])
            if progress:
                progress(len(part))
    return [{name: value for name, value in store.rows[key].items() if name != "key"} for key in keys]


def _score_batch(model: Any, items: list[Item], pad_id: int, batching: Batching, k: float | None, shares) -> list[dict]:
    from negpo.logprobs import model_token_logprobs, model_token_stats

    batch = pad_batch(items, pad_id, side=batching.padding_side, compat=batching.compat)
    batch = {key: value.to(next(model.parameters()).device) for key, value in batch.items()}
    arguments = (batch["input_ids"], batch["attention_mask"], batch["labels"])
    with evaluating(model):
        if k is None:
            plain = model_token_logprobs(model, *arguments)
            mask, columns = plain.mask.cpu(), [plain.logps]
        else:
            stats = model_token_stats(model, *arguments)
            mask, columns = stats.mask.cpu(), [stats.logps, stats.correct, stats.mean, stats.std]
    table = [column.cpu().double().numpy() for column in columns]
    scores = []
    for row, item in enumerate(items):
        where = mask[row].numpy()
        tokens = sum(label != IGNORE for label in item["labels"])
        scores.append(summarise(tokens, *(column[row][where] for column in table), k=k, shares=shares))
    return scores


def summarise(
    tokens, logps, correct=None, mean=None, std=None, *, k: float | None = None, shares: Sequence[float] = ()
) -> dict[str, Any]:
    """What is kept of one answer, from its labelled tokens' log-probs (N,) and, with ``k``, their statistics (N,).

    ``tokens`` counts labels before the shift: a label on the very first position has no log-prob but is counted, as in
    the reference. ``correct``: whether the argmax is the label; ``mean``, ``std``: of log p over the vocabulary.
    """
    score = {"tokens": tokens, "nll": float(-logps.sum() / tokens) if tokens else float("nan")}
    if k is not None:
        lp, hit, mean, std = (values[:-1] for values in (logps, correct, mean, std))  # without the last token, "eos"
        labels = hit * 0 + 1  # a hit is a prediction equal to its label
        score["exact_memorization"] = exact_memorization(hit, labels)
        score["extraction_strength"] = extraction_strength(hit, labels)
        score["min_k"] = min_k(lp, k)
        score["min_k_plus_plus"] = min_k_plus_plus(lp, mean, std, k)
    if shares:
        score["muse_min_k"] = [muse_min_k(logps, share) for share in shares]
    return score


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: Sequence[int],
    stop_words: Sequence[str] = (),
    batching: Batching | None = None,
    store: ItemStore | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy continuations as text, one per prompt (token ids), in order; equal prompts are continued once.

    Left-padded with explicit masks, longest first. Each prompt has its own limit of new tokens. The model's generation
    configuration is kept (its eos ids, a repetition penalty) except for everything about sampling.
    """
    batching, store = batching or Batching(), store or ItemStore()
    items = [{"input_ids": prompt, "labels": [limit]} for prompt, limit in zip(prompts, max_new_tokens, strict=True)]
    keys = [item_key("generate", item, None) for item in items]
    todo = [(key, items[i]) for key, i in {key: i for i, key in enumerate(keys) if key not in store.rows}.items()]
    if progress and len(todo) < len(items):
        progress(len(items) - len(todo))
    for batch in batching.split([len(item["input_ids"]) for _, item in todo]):
        part = [todo[i] for i in batch]
        limits = [item["labels"][0] for _, item in part]
        texts = _generate_batch(model, tokenizer, [item["input_ids"] for _, item in part], limits, batching)
        texts = [cut_at_stop_words(text, [tokenizer.decode([tokenizer.eos_token_id]), *stop_words]) for text in texts]
        store.add([{"key": key, "text": text} for (key, _), text in zip(part, texts, strict=True)])
        if progress:
            progress(len(part))
    return [store.rows[key]["text"] for key in keys]


def _generate_batch(model, tokenizer, prompts, limits, batching) -> list[str]:
    pad_id = pad_token(tokenizer, model)
    batch = pad_batch([{"input_ids": prompt} for prompt in prompts], pad_id, side="left", compat=batching.compat)
    device = next(model.parameters()).device
    width = batch["input_ids"].shape[1]
    config = generation_config(model, tokenizer, max(limits))
    with evaluating(model):
        output = model.generate(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            generation_config=config,
        )
    # greedy: the first tokens of a longer continuation are the shorter one
    rows = [ids[: width + limit][width:] for ids, limit in zip(output.cpu().tolist(), limits, strict=True)]
    return [decode(tokenizer, row) for row in rows]


def generation_config(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """The model's own generation configuration made greedy, with tokenizer eos where it names none."""
    config = copy.deepcopy(model.generation_config)
    settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
    settings |= {"max_new_tokens": max_new_tokens, "max_length": None, "use_cache": True}
    settings["pad_token_id"] = pad_token(tokenizer, model)
    settings["eos_token_id"] = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    for key, value in settings.items():
        setattr(config, key, value)
    return config


def pad_token(tokenizer: Any, model: Any) -> int:
    """The pad id, else the eos id: any id does, since masks come from lengths.

    Some tokenizers bring a pad token of their own that the model has no embedding for; then it is eos as well.
    """
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None or pad >= vocabulary_size(model) else pad


def counting(report: Report | None, stage: str, total: int) -> Progress | None:
    """A callback that adds up finished items and passes the sum on to ``report``."""
    if report is None:
        return None
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total)

    return advance


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text without special tokens, blanks before punctuation and contractions removed as in the published runs.

    The clean-up is called by hand: transformers 5 skips it for BPE tokenizers, transformers 4.45 did not.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    clean_up = getattr(tokenizer, "clean_up_tokenization", None)
    return clean_up(text) if clean_up else text


def ground_truth(tokenizer: Any, prompt: Sequence[int], full: Sequence[int]) -> str:
    """The answer's text as open-unlearning compares it: every occurrence of the prompt's text deleted, stripped."""
    return decode(tokenizer, full).replace(decode(tokenizer, prompt), "").strip()


def cut_at_stop_words(text: str, stop_words: Sequence[str]) -> str:
    """``text`` up to the first occurrence of each stop word in turn, stripped."""
    for word in stop_words:
        text = text.split(word)[0] if word else text
    return text.strip()


def item_key(name: str, item: Item, k: float | None, shares: Sequence[float] = ()) -> str:
    """Identity of one piece of work: the same ids, labels and statistics give the same key in every run."""
    content = json.dumps([name, item["input_ids"], item["labels"], k, *shares], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:32]
