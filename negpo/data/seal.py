"""Stored results that say when they were changed: a digest of the content, written into it.

Results that a later run takes over instead of computing them are believed only while their seal holds. It guards
against rot, half-copied files and edits by hand, not against someone who wants to deceive and can compute a SHA-256.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from negpo.data.io import strict

KEY = "seal"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` as strict JSON with its digest under ``seal``."""
    plain = strict(dict(content))
    return {**plain, KEY: _digest(plain)}


def opened(content: Any) -> dict[str, Any] | None:
    """The content behind a seal, or None when it has none or was changed after it was sealed."""
    if not isinstance(content, dict) or KEY not in content:
        return None
    plain = {key: value for key, value in content.items() if key != KEY}
    return plain if content[KEY] == _digest(plain) else None


def _digest(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
