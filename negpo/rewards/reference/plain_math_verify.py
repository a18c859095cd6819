"""math-verify 0.9 with its own extraction and its own defaults, as verl, lm-eval and others call it."""

from __future__ import annotations

import logging


class MathVerifyGrader:
    slow = True

    def __init__(self) -> None:
        from importlib.metadata import version

        self.name = f"math-verify {version('math-verify')}"

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        from math_verify import parse, verify

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns about running without SIGALRM
        gold_parsed = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
        parsed = parse(response, parsing_timeout=None)
        extracted = str(parsed[-1]) if parsed else None
        return bool(verify(gold_parsed, parsed, timeout_seconds=None)), extracted
