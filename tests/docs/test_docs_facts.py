"""Names and numbers in the guides are those of the code."""

import re
from importlib import import_module

import pytest
from docs_support import DOCS

from negpo.cli.launch import LAUNCHES
from negpo.data.protocols import PROTOCOLS
from negpo.eval.attacks import ATTACKS


def words(page: str) -> set[str]:
    """Everything that stands in a code span of a page."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text(encoding="utf-8")))


def test_the_audit_guide_explains_every_attack_and_no_other():
    explained = {word for word in words("audit.md") if re.fullmatch(r"relearn_\w+|quantise_\w+", word)}
    assert explained == {name for name in ATTACKS if name.startswith(("relearn", "quantise"))}
    assert set(ATTACKS) <= words("audit.md")


def test_the_audit_guide_states_the_margins_that_are_the_default():
    settings = import_module("negpo.eval.audit.settings").AuditSettings()
    text = (DOCS / "audit.md").read_text(encoding="utf-8")
    assert f"{settings.leak_margin:.0%}".replace("%", " %") in text
    assert f"{1 - settings.utility_margin:.0%}".replace("%", " %") in text
    assert f"p-value above {settings.alpha}" in text
    assert f"{settings.confidence:.0%} interval".replace("%", " %") in text


def test_every_metric_of_an_audit_is_explained():
    numbers = import_module("negpo.eval.audit.numbers")
    assert {*numbers.QUICK_METRICS, *numbers.STANDARD_METRICS, *numbers.MIA} - words("metrics.md") == set()


@pytest.mark.parametrize("card", PROTOCOLS.values(), ids=lambda card: card.name)
def test_the_protocol_table_holds_the_numbers_of_the_card(card):
    text = (DOCS / "protocols.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{card.name}` \|(.*)\|$", text, re.MULTILINE)
    sampling, n, tokens, grader, _ = (cell.strip() for cell in row[1].split("|", 4))
    assert sampling == ("greedy" if card.temperature == 0 else f"{card.temperature} / {card.top_p}")
    assert (int(n), int(tokens), grader) == (card.n, card.max_new_tokens, card.grader)


def test_the_scaling_guide_explains_every_launch_name():
    assert set(LAUNCHES) <= words("scaling.md")


def test_the_paper_index_is_sorted_and_names_each_paper_once():
    numbers = re.findall(r"^\| \[(\d{4}\.\d{5})\]", (DOCS / "papers.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert numbers == sorted(set(numbers))
