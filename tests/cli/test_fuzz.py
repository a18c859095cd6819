"""scripts/fuzz.py on its first cases: bad inputs end in one message, in time, and change nothing silently."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import fuzz  # type: ignore[import-not-found]

CASES = 50  # of every kind


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_bad_inputs_are_refused_in_one_message_or_taken_as_they_are(kind):
    found = [fuzz.run_case(kind, 7, case) for case in range(CASES)]
    assert not [outcome for outcome in found if outcome.failed]
    assert Counter(outcome.verdict for outcome in found)["refused"] > 0 or kind == "commands"


def test_whole_commands_with_bad_arguments_end_in_one_message():
    found = [fuzz.run_process(argv) for argv in fuzz.COMMANDS[:3]]
    assert [outcome.verdict for outcome in found] == ["refused"] * 3


def test_a_case_that_fails_is_seen(monkeypatch):
    def broken(rng, folder):
        raise KeyError("x")

    monkeypatch.setitem(fuzz.KINDS, "broken", broken)
    monkeypatch.setitem(fuzz.KINDS, "silent", lambda rng, folder: "a became b")
    assert [fuzz.run_case(kind, 0, 0).verdict for kind in ("broken", "silent")] == ["foreign error", "changed"]
