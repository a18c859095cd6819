"""Content hash of encoded rows, so that a cache can never be used for other ones."""

import hashlib
import json
from collections.abc import Sequence


def hash_rows(rows: Sequence[dict[str, list[int]]]) -> str:
    """SHA-256 over the ids and labels of encoded rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["input_ids"], row["labels"]], separators=(",", ":")).encode())
    return digest.hexdigest()
