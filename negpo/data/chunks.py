"""Running text for training: documents joined and cut into pieces of equal length."""

from collections.abc import Sequence
from typing import Any


def chunk_texts(tokenizer: Any, texts: Sequence[str], length: int) -> list[str]:
    """The non-empty texts joined by blank lines, cut every ``length`` tokens, as text again (the last is shorter).

    As open-unlearning prepares MUSE: encoding a piece again may move its ends by a token or two. ValueError unless
    ``length`` is positive.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1 token, not {length}")
    joined = "\n\n".join(text for text in texts if text.strip())
    ids = tokenizer(joined, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [piece for piece in pieces if piece.strip()]
