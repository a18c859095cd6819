"""Question-answer items for causal language models: ids, and labels that are -100 outside the answer.

The rules are those of locuslab/open-unlearning (`src/data/utils.py`, `configs/model/*.yaml`), so that probabilities
agree with the published ones: special tokens on, right truncation on the tag path only, and an end-of-sequence token
appended after truncation when the last id is not one already. Where answers begin: see ``LabelRule``.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from negpo.data.chat import (
    DATE,
    THINKING,
    common_length,
    fixed_date,
    split_turn,
    template_text,
    text_ids,
    turn_ids,
)
from negpo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

IGNORE = -100
HELPFUL = "You are a helpful assistant."
TEMPLATE_FILE = "negpo_template.json"

Item = dict[str, list[int]]
LabelRule = Literal["answer", "published"]
"""Which tokens of a prompt that merges with its answer are labelled (BPE base models: "Answer: " + "Paris" is one token
" Paris"). ``answer``: all that hold text of the answer; the rule for training. ``published``: from the prompt's length
on, as open-unlearning's code does, which loses the first token; the rule behind published evaluations."""


@dataclass(frozen=True)
class QATemplate:
    """How a question and an answer become one text.

    With ``chat_template`` the tokenizer's own template is used; else the tags, with ``system_prompt`` (special tokens
    included) in front. ``thinking`` matters to chat templates with think blocks only (Qwen3, GLM, DeepSeek-R1): "off"
    asks for the answer at once, an empty block belongs to the prompt; "on" asks as the template does by default, and
    the empty block is part of the answer. Dates that a template prints are always ``date_string``, or 10 Apr 2025.
    """

    chat_template: bool = False
    system_prompt: str = ""
    user_start: str = "Question: "
    user_end: str = "\n"
    assistant_start: str = "Answer: "
    assistant_end: str = "\n\n"
    date_string: str | None = None
    thinking: str = "off"

    def __post_init__(self) -> None:
        if self.thinking not in THINKING:
            raise ConfigError(f"thinking is {self.thinking!r}; choose one of {', '.join(THINKING)}")

    @classmethod
    def for_model(cls, name_or_path: str, tokenizer: Any) -> "QATemplate":
        """The template that a model was trained with, where its folder says so (``TEMPLATE_FILE``), else the published
        evaluations' one for its family, recognised by name, else by its chat template.

        Llama-2-chat uses its [INST] tags, other chat models their own template, base models "Question: … Answer: …".
        """
        return cls.saved_in(name_or_path) or cls.published(name_or_path, tokenizer)

    @classmethod
    def choose(cls, name_or_path: str, tokenizer: Any, given: "QATemplate | None" = None) -> "QATemplate":
        """``given``, or the model's own. A difference to what the model was trained with is named in a warning."""
        trained = cls.saved_in(name_or_path)
        chosen = given or cls.for_model(name_or_path, tokenizer)
        if trained is not None:
            if differing := chosen.differences(trained):
                logger.warning("%s was trained with another template (now / then): %s", name_or_path, differing)
            elif chosen.hash(tokenizer) != cls._saved(name_or_path).get("sha256"):
                logger.warning("%s was trained with another chat template of its tokenizer", name_or_path)
        return chosen

    @classmethod
    def published(cls, name_or_path: str, tokenizer: Any) -> "QATemplate":
        """The published evaluations' template for a model family."""
        name = "/".join(Path(name_or_path).parts[-2:]).lower()
        template = template_text(tokenizer)
        if ("llama-2" in name and "chat" in name) or "<<SYS>>" in template:
            return cls(user_start="[INST] ", user_end=" [/INST]", assistant_start="", assistant_end=" ")
        if not template or any(base in name for base in ("llama-2", "phi-1_5")):
            return cls()
        if "<start_of_turn>" in template:  # gemma refuses system prompts
            return cls(chat_template=True)
        dated = "<|start_header_id|>" in template or "zephyr" in name
        return cls(chat_template=True, system_prompt=HELPFUL, date_string=DATE if dated else None)

    @classmethod
    def saved_in(cls, folder: str | Path) -> "QATemplate | None":
        """What ``save`` wrote into a model's folder; None where there is none. DataError when it is unreadable."""
        saved = cls._saved(folder)
        try:
            return cls(**saved["template"]) if saved else None
        except (KeyError, TypeError) as error:
            raise DataError(f"not a template ({error}); delete it to use the family's", file=f"{folder}") from error

    @staticmethod
    def _saved(folder: str | Path) -> dict[str, Any]:
        path = Path(folder) / TEMPLATE_FILE
        if not folder or not path.is_file():
            return {}
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"not readable ({error}); delete it to use the family's", file=str(path)) from error
        if not isinstance(saved, dict):
            raise DataError("not a template; delete it to use the family's", file=str(path))
        return saved

    def save(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write the template beside a model that was trained with it."""
        from negpo.data.io import atomic_write_json

        atomic_write_json(Path(folder) / TEMPLATE_FILE, {"template": asdict(self), "sha256": self.hash(tokenizer)})

    def differences(self, other: "QATemplate") -> str:
        """The settings in which two templates differ, both values shown; empty when they are the same."""
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(f"{key}: {ours[key]!r} / {theirs[key]!r}" for key in ours if ours[key] != theirs[key])

    def hash(self, tokenizer: Any = None) -> str:
        """SHA-256 over the settings and, when they use it, the tokenizer's chat template."""
        template = getattr(tokenizer, "chat_template", None) if self.chat_template else None
        return hashlib.sha256(json.dumps([asdict(self), template], sort_keys=True).encode()).hexdigest()


def encode_qa(
    tokenizer: Any,
    template: QATemplate,
    question: str,
    answer: str,
    *,
    max_length: int = 512,
    shots: Sequence[tuple[str, str]] = (),
    generation: bool = False,
    labels: LabelRule = "answer",
) -> Item:
    """One question and answer as ``{"input_ids", "labels"}``.

    Labels are -100 on the prompt; ``labels`` is the rule for a token that holds the end of the prompt and the beginning
    of the answer. With ``generation`` the input is the prompt alone and the labels are all ids, prompt included.
    ``shots`` are solved examples in front. ``max_length`` cuts prompt and answer on the tag path only. The rule
    "published" warns when an answer token is lost to it.

    Raises DataError when a chat template's text cannot be shown to hold the whole answer.
    """
    if template.chat_template:
        prompt, full = _chat_ids(tokenizer, template, question, answer, shots)
    else:
        prompt, full = _tag_ids(tokenizer, template, question, answer, shots, max_length)
    if not full or full[-1] != tokenizer.eos_token_id:
        full = [*full, tokenizer.eos_token_id]
    start = len(prompt)
    if full[:start] != prompt:
        if labels == "published":
            warnings.warn(
                "the prompt's token ids are not the beginning of prompt plus answer; labels start at the prompt's "
                "length, as in the published evaluations: the answer's first token is not scored",
                stacklevel=2,
            )
        else:
            start = common_length(prompt, full)
    if generation:
        return {"input_ids": prompt, "labels": full}
    return {"input_ids": full, "labels": [IGNORE] * min(start, len(full)) + full[start:]}


def encode_rows(
    tokenizer: Any,
    template: QATemplate,
    rows: Sequence[dict[str, Any]],
    *,
    question: str = "question",
    answer: str = "answer",
    max_length: int = 512,
    file: str = "rows",
    drop_empty: bool = False,
    labels: LabelRule = "answer",
) -> tuple[list[Item], list[int]]:
    """Items of many rows, and the row number each comes from.

    A row whose answer has no token left after truncation raises DataError, or is left out with ``drop_empty`` (the
    returned row numbers show which).
    """
    items, kept = [], []
    for index, row in enumerate(rows):
        item = encode_qa(tokenizer, template, row[question], row[answer], max_length=max_length, labels=labels)
        if has_answer(item, tokenizer.eos_token_id, max_length):
            items.append(item)
            kept.append(index)
        elif not drop_empty:
            raise DataError(
                f"no answer token is left: the item is cut at max_length={max_length} inside the question. "
                "Raise max_length, shorten the row, or drop such rows",
                file=file,
                row=index,
                field=answer,
            )
    return items, kept


def has_answer(item: Item, eos_token_id: int, max_length: int | None = None) -> bool:
    """Whether at least one labelled token other than a final end-of-sequence token is left.

    With ``max_length`` a lone eos is accepted when nothing was cut: a one-token answer that merges with the prompt's
    last blank leaves only that, in the reference too.
    """
    labelled = labelled_ids(item)
    whole = max_length is not None and len(item["input_ids"]) <= max_length
    return len(labelled) > 1 or (len(labelled) == 1 and (whole or labelled[0] != eos_token_id))


def labelled_ids(item: Item) -> list[int]:
    """The ids that are scored."""
    return [label for label in item["labels"] if label != IGNORE]


def encode_text(
    tokenizer: Any,
    text: str,
    *,
    prefix: str = "",
    max_length: int = 2048,
    insert_space: bool = False,
    generation: bool = False,
) -> Item:
    """Running text for scoring (MUSE): labels on everything after ``prefix``, never on the first token, no eos added.

    The sequence is cut to the prefix's ids plus ``max_length``. With ``generation`` the input is the prefix alone.
    """
    prefix_ids = text_ids(tokenizer, prefix)
    joined = prefix + (" " if insert_space else "") + text
    full = text_ids(tokenizer, joined)[: len(prefix_ids) + max_length]
    start = max(1, len(prefix_ids))
    labels = [IGNORE] * min(start, len(full)) + full[start:]
    return {"input_ids": prefix_ids if generation else full, "labels": labels}


def _chat_ids(tokenizer, template, question, answer, shots) -> tuple[list[int], list[int]]:
    messages = [{"role": "system", "content": template.system_prompt}] if template.system_prompt else []
    for shot_question, shot_answer in shots:
        messages.append({"role": "user", "content": shot_question})
        messages.append({"role": "assistant", "content": shot_answer})
    messages.append({"role": "user", "content": question})
    options = {} if template.date_string is None else fixed_date(tokenizer, template.date_string)
    said = [{"role": "assistant", "content": answer}]
    return turn_ids(tokenizer, split_turn(tokenizer, messages, said, thinking=template.thinking, **options))


def _tag_ids(tokenizer, template, question, answer, shots, max_length) -> tuple[list[int], list[int]]:
    prompt = template.system_prompt
    for shot_question, shot_answer in shots:
        prompt += template.user_start + shot_question + template.user_end
        prompt += template.assistant_start + shot_answer + template.assistant_end
    prompt += template.user_start + question + template.user_end + template.assistant_start
    return text_ids(tokenizer, prompt)[:max_length], text_ids(tokenizer, prompt + answer)[:max_length]
