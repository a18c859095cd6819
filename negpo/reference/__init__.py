"""What the model said before training: reference log-probabilities, computed once and kept on disk.

``hash_model`` names weights by content, ``ReferenceCache`` holds one float32 log-prob for every labelled token, and
``score_rows`` computes them without ever holding full logits.
"""

from negpo.models import hash_model, hash_tokenizer
from negpo.reference.cache import ReferenceCache, ReferenceKey, build_or_open, holds
from negpo.reference.hashing import hash_rows
from negpo.reference.scoring import StepZeroCheck, score_rows

__all__ = [
    "ReferenceCache",
    "ReferenceKey",
    "StepZeroCheck",
    "build_or_open",
    "hash_model",
    "hash_rows",
    "hash_tokenizer",
    "holds",
    "score_rows",
]
