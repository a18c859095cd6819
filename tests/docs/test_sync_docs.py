"""Lists of methods in README, docs and mkdocs.yml are those of the method table."""

import importlib.util
import subprocess
import sys
from importlib import import_module

import pytest
from docs_support import DOCS, ROOT

from negpo.configs import CONFIGS
from negpo.methods import FAMILIES, PAPERS, TABLE, of_family
from negpo.trainers import METHODS, SCRIPTS


@pytest.fixture(scope="module")
def sync():
    spec = importlib.util.spec_from_file_location("sync_docs", ROOT / "scripts" / "sync_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_of_the_documents_are_fresh(sync):
    names = [str(path.relative_to(ROOT)) for path in sync.stale()]
    assert not names, f"{', '.join(names)} stale: run `python scripts/sync_docs.py`"


def test_every_generated_part_stands_in_exactly_one_document(sync):
    texts = [
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "mkdocs.yml", *DOCS.rglob("*.md"))
    ]
    found = [match["name"] for text in texts for match in sync.MARKERS.finditer(text)]
    assert sorted(found) == sorted(sync.PARTS)


def test_a_row_that_somebody_edits_by_hand_is_written_anew(sync, tmp_path, monkeypatch):
    for name in ("README.md", "mkdocs.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("methods/npo.md", "methods/gone.md"), encoding="utf-8")
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    monkeypatch.setattr(sync, "DOCS", tmp_path / "docs")
    assert sync.main(["--check"]) == 1
    assert "methods/gone.md" in (tmp_path / "mkdocs.yml").read_text(encoding="utf-8")
    assert sync.main([]) == 0
    assert (tmp_path / "mkdocs.yml").read_text(encoding="utf-8") == (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sync.main(["--check"]) == 0


def test_the_table_needs_neither_torch_nor_numpy():
    code = "import sys, negpo.methods; print(sorted({'torch', 'numpy', 'yaml', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("method", TABLE.values(), ids=TABLE)
def test_an_entry_of_the_table_names_what_exists(method):
    module, objectives = import_module(method.module), import_module("negpo.objectives")
    assert getattr(module, method.trainer).config_class is getattr(module, method.config)
    assert all(callable(getattr(objectives, name)) for name in method.objectives)
    assert method.family in FAMILIES
    assert method.cost.reference in ("none", "logprobs", "model")
    assert set(method.papers) <= set(PAPERS)
    assert all((CONFIGS / "recipes" / f"{recipe}.yaml").is_file() for recipe in method.recipes)


def test_every_family_is_shown_and_every_recipe_belongs_to_a_method():
    assert sorted(name for family in FAMILIES for name in of_family(family)) == sorted(TABLE)
    shipped = {f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("recipes/*/*.yaml")}
    assert {recipe for method in TABLE.values() for recipe in method.recipes} == shipped


def test_the_public_views_of_the_trainers_are_those_of_the_table():
    assert {name: (method.module, method.trainer, method.config) for name, method in TABLE.items()} == METHODS
    assert {name: f"negpo.trainers._script.{method.family}" for name, method in TABLE.items()} == SCRIPTS


def test_papers_that_nothing_uses_are_not_listed(sync):
    unused = [line for line in sync.paper_index().splitlines() if line.endswith("|  |")]
    assert unused == []
