"""Reading of the documentation as text: pages, code blocks, links, headings. No mkdocs needed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def navigation() -> list[str]:
    """Pages of mkdocs.yml's nav, in order, relative to docs/."""
    return list(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _leaves(child)
    else:
        for child in node:
            yield from _leaves(child)


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def code_blocks(path: Path, language: str | None = None) -> list[str]:
    """Bodies of fenced blocks, of one language or of all."""
    found = _FENCE.findall(path.read_text(encoding="utf-8"))
    return [body for name, body in found if language is None or name == language]


def links(path: Path) -> list[str]:
    """Targets of all links outside code."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8"))))


def anchors(path: Path) -> set[str]:
    """Ids that mkdocs gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def commands(path: Path) -> list[list[str]]:
    """Arguments of every `negpo ...` line in the page's code blocks; comments and line continuations are resolved."""
    lines = "\n".join(code_blocks(path)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("negpo ")]
