"""The example notebooks run from top to bottom, and are committed without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_support import DOCS, ROOT

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SECONDS = 300  # each needs some 20 on an idle core


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(path: Path) -> str:
    """All code cells, one after the other."""
    return "\n\n".join("".join(cell["source"]) for cell in cells(path, "code"))


def test_there_is_a_notebook_for_each_use_of_the_library():
    assert {path.stem for path in NOTEBOOKS} == {"unlearn_and_audit", "learn_from_wrong_answers", "learn_from_rejected"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path, "code"))
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_in_a_notebook_lead_to_pages(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
            assert (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    """In a process of its own and an empty folder; a kernel would add 100 MB of packages and test nothing more."""
    script = tmp_path / "notebook.py"
    script.write_text(source(path), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(path.parent)]),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check = {
        "unlearn_and_audit": _npo_forgets_and_keeps,
        "learn_from_wrong_answers": _wrong_answers_teach,
        "learn_from_rejected": _rejected_answers_become_rarer,
    }
    check[path.stem](done.stdout)


def _rows(table: str, *names: str) -> dict[str, list[float]]:
    """The numbers behind each name in a table that ``show`` of small_world.py printed."""
    words = [line.split() for line in table.splitlines()]
    return {
        line[0]: [float(word) for word in line[1:]] for line in words if line and line[0] in names and len(line) > 2
    }


def _npo_forgets_and_keeps(table: str) -> None:
    rows = _rows(table, "target", "retain", "npo", "ga")  # quality, forget probability, retain probability, ...
    assert rows["target"][1] > 0.9
    assert rows["npo"][0] > 0.05 > rows["target"][0]
    assert rows["npo"][1] < 0.1
    assert rows["npo"][2] > 0.9 > rows["ga"][2]


def _wrong_answers_teach(table: str) -> None:
    rows = _rows(table, "before", "nsr", "psr")
    assert rows["before"][0] < 0.55
    assert min(rows["nsr"][0], rows["psr"][0]) > rows["before"][0] + 0.15


def _rejected_answers_become_rarer(table: str) -> None:
    rows = _rows(table, "before", "sft", "redi", "dpo", "d2o")  # right, wrong
    for name in ("redi", "dpo", "d2o"):
        assert rows[name][1] < rows["before"][1] - 0.1, name
        assert rows[name][0] > rows["before"][0] + 0.15, name
