"""Stages on disk: believed while sealed, and never across a change of the code that measured them."""

import json
import logging
from pathlib import Path

import pytest

import negpo
from negpo.data.seal import opened, sealed
from negpo.eval.audit import stages
from negpo.eval.audit.sharding import Ranks
from negpo.eval.audit.stages import Stages, source_sha256


@pytest.fixture
def run(tmp_path):
    """``run(value)``: the stage's value, and whether ``compute`` was asked for it."""

    def stage(value):
        asked = []
        found = Stages(tmp_path, {"model": "m"}, Ranks()).run("score", {"k": 0.4}, lambda: asked.append(1) or value)
        return found, bool(asked)

    return stage


def test_a_stage_is_computed_once(run):
    assert run([{"nll": 0.1 + 0.2}, {"nll": float("nan")}]) == ([{"nll": 0.1 + 0.2}, {"nll": "NaN"}], True)
    assert run("other") == ([{"nll": 0.1 + 0.2}, {"nll": "NaN"}], False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("1.25", "0.01"),
        lambda text: text[: len(text) // 2],
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "seal"}),
        lambda text: json.dumps(sealed({**opened(json.loads(text)), "identity": {"stage": "another"}})),
        lambda text: "[1, 2]",
        lambda text: "",
    ],
    ids=["edited", "torn", "unsealed", "of another stage", "no object", "empty"],
)
def test_a_stage_that_is_not_what_was_written_is_computed_again_and_said(run, tmp_path, caplog, spoil):
    run([1.25])
    [file] = tmp_path.glob("*.json")
    file.write_text(spoil(file.read_text()))
    with caplog.at_level(logging.WARNING):
        assert run([1.25]) == ([1.25], True)
    assert file.name in caplog.text
    assert "computed again" in caplog.text
    assert run("other") == ([1.25], False)


def test_every_module_that_decides_a_value_is_part_of_a_stages_identity(tmp_path):
    """A change of any of these files must give another hash: passes, rollouts, attacks, model access, the kernels."""
    package = tmp_path / "negpo"
    places = [Path(negpo.__file__).parent / name for name in stages.MEASURING]
    for place in places:
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            copy = package / path.relative_to(Path(negpo.__file__).parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    before = source_sha256(package)
    assert before == source_sha256(Path(negpo.__file__).parent)
    names = ("eval/audit/passes.py", "rollout/decoding.py", "eval/attacks/relearn.py", "models.py", "logprobs/core.py")
    for name in names:
        content = (package / name).read_bytes()
        (package / name).write_bytes(content + b"\n# another\n")
        assert source_sha256(package) != before, name
        (package / name).write_bytes(content)
    assert source_sha256(package) == before


def test_a_module_that_is_renamed_or_moved_counts_as_changed(tmp_path):
    for name in stages.MEASURING:
        path = tmp_path / name if name.endswith(".py") else tmp_path / name / "one.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    before = source_sha256(tmp_path)
    (tmp_path / "eval" / "one.py").rename(tmp_path / "eval" / "two.py")
    assert source_sha256(tmp_path) != before
