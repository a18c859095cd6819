"""docs/how_it_works.md names functions and classes that exist, a few on every line."""

import re
from importlib import import_module

import pytest
from docs_support import DOCS

TEXT = (DOCS / "how_it_works.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\d+\. (.*)$", TEXT, re.MULTILINE)
NAME = re.compile(r"`(negpo(?:\.\w+)+)`")


def find(name: str):
    """The object under a dotted name: the longest module, then attributes."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("line", LINES)
def test_every_line_names_what_does_it(line):
    names = NAME.findall(line)
    assert names
    assert all(callable(find(name)) for name in names)


def test_each_way_fits_on_one_screen():
    for way in TEXT.split("\n## ")[1:]:
        assert 5 < len(way.splitlines()) <= 40
