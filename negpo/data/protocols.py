"""Protocol cards: everything that must be equal before two MATH or AIME numbers may be compared.

A card fixes the literal prompt, the sampling parameters, the number of samples and the grader of a published result
(sources are the papers' evaluation scripts). Its hash goes into every result, and samples drawn under one card cannot
be continued under another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from negpo.data.chat import chat_ids, render, text_ids
from negpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{{input}}\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN25_MATH_COT = (
    f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n{{input}}<|im_end|>\n<|im_start|>assistant\n"
)
REDI_THINK = (
    f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n{{input}}<|im_end|>\n<|im_start|>assistant<think>\n"
)


@dataclass(frozen=True)
class Protocol:
    """One way to ask, sample and grade.

    `prompt` is literal text in which ``{input}`` stands for the question; None means the tokenizer's own chat template
    around ``user_suffix``. `max_new_tokens` may be lowered on the command line; that changes the hash.
    """

    name: str
    source: str
    prompt: str | None = None
    user_suffix: str = ""
    thinking: bool | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    n: int = 16
    max_new_tokens: int = 4096
    stop_strings: tuple[str, ...] = ()
    grader: str = "default"
    note: str = ""

    def ask(self, question: str) -> str | list[dict[str, str]]:
        """The prompt for one question: text, or messages for a chat template."""
        if self.prompt is not None:
            return self.prompt.replace("{input}", question)
        return [{"role": "user", "content": question + self.user_suffix}]

    def render(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        """Token ids of the prompt for one question."""
        asked = self.ask(question)
        if isinstance(asked, str):
            return text_ids(tokenizer, asked)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"protocol '{self.name}' asks through the chat template, but the tokenizer has none. "
                "Use a protocol with a literal prompt (nsr, ngrpo, qwen, lab) or set the tokenizer's chat_template."
            )
        options: dict[str, Any] = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return chat_ids(tokenizer, render(tokenizer, asked, ask=True, **options))

    def template_hash(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """SHA-256 of the text the model is really given: the literal prompt, or the tokenizer's template and suffix."""
        text = (
            self.prompt
            if self.prompt is not None
            else f"{tokenizer.chat_template}\x1f{self.user_suffix}\x1f{self.thinking}"
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def with_overrides(self, **changes: Any) -> Protocol:
        """The card with some settings replaced; its name then ends in '*', so it cannot pass for the published one."""
        changes = {key: value for key, value in changes.items() if value is not None and value != getattr(self, key)}
        return dataclasses.replace(self, **changes, name=f"{self.name.removesuffix('*')}*") if changes else self

    def hash(self) -> str:
        """Short hash of every setting except the human-readable note and source."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("note", "source")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


PROTOCOLS: dict[str, Protocol] = {
    card.name: card
    for card in (
        Protocol(
            "nsr",
            "arXiv 2506.01347, released eval script",
            QWEN_BOXED,
            n=256,
            grader="nsr",
            note="Qwen2.5-Math-7B; the Qwen3-4B settings (0.7 / 0.8 / top_k 20, n = 64) come from an issue thread only",
        ),
        Protocol("ngrpo", "arXiv 2509.18851, released eval scripts", QWEN_BOXED, n=256, grader="nsr"),
        Protocol(
            "nft",
            "arXiv 2505.18116, eval_local_7B.sh",
            QWEN_BOXED,
            top_p=0.7,
            n=32,
            max_new_tokens=3584,
            grader="qwen",
            note="the release repeats each AIME/AMC row 32 times with n = 1 (the same estimator); MATH uses n = 1. "
            "Which of its four graders fills the paper's table, and its exact prompt, are unverified",
        ),
        Protocol(
            "resrl",
            "arXiv 2605.00380, FlowRL test script",
            None,
            user_suffix=f"\n{BOXED}",
            thinking=False,
            max_new_tokens=8192,
            grader="math_verify",
            note="gold wrapped in \\boxed{}; thinking disabled; the wording of the user turn is unverified",
        ),
        Protocol(
            "redi",
            "arXiv 2505.24850, rllm evaluation",
            REDI_THINK,
            max_new_tokens=30720,
            grader="prm800k",
            note="graded on the text after </think>; AMC means the 83-problem set (amc83)",
        ),
        Protocol(
            "qwen",
            "Qwen2.5-Math, evaluation/sh/eval.sh",
            QWEN25_MATH_COT,
            temperature=0.0,
            top_p=1.0,
            n=1,
            max_new_tokens=2048,
            stop_strings=("</s>", "<|im_end|>", "<|endoftext|>"),
            grader="qwen",
        ),
        Protocol("chat", "negpo's default for instruct models", None, user_suffix=f"\n{BOXED}"),
        Protocol(
            "lab",
            "negpo.lab arithmetic models",
            "Question: {input}\nAnswer:",
            temperature=1.0,
            top_p=1.0,
            n=64,
            max_new_tokens=96,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The card of that name; ConfigError lists the known ones."""
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol '{name}'; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
