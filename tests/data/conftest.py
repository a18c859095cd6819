"""The whitespace tokenizer behind the reference numbers of prompts and label masks."""

from dataclasses import dataclass, field

import pytest

SPECIALS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<sys>": 3, "<usr>": 4, "<asst>": 5}
ROLES = {"system": "<sys>", "user": "<usr>", "assistant": "<asst>"}


@dataclass
class StubTokenizer:
    """Words are separated by blanks, a newline is a word, ids are given in order of first use."""

    pad_is_eos: bool = False
    trailing_after_eos: str | None = None
    add_bos: bool = True
    words: dict[str, int] = field(default_factory=lambda: dict(SPECIALS))
    eos_token_id: int = 2
    chat_template: str = "stub"

    def __call__(self, text, add_special_tokens=True, max_length=None, truncation=False):
        ids = [self.words.setdefault(word, len(self.words)) for word in text.replace("\n", " \\n ").split()]
        if add_special_tokens and self.add_bos:
            ids = [self.words["<s>"], *ids]
        return {"input_ids": ids[:max_length] if truncation else ids}

    def apply_chat_template(self, messages, tokenize=True, add_generation_prompt=False):
        assert not tokenize
        text = "<s> "
        for message in messages:
            text += f"{ROLES[message['role']]} {message['content']} </s> "
            if self.trailing_after_eos:
                text += self.trailing_after_eos
        text += "<asst> " if add_generation_prompt else ""
        return text


@pytest.fixture(scope="session")
def stub_tokenizer():
    """The class, so that a test can set pad, bos and what follows eos."""
    return StubTokenizer
