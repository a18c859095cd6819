"""The documentation holds together: every page, link, command and method."""

import ast
import re
from importlib import import_module

import pytest
from docs_support import DOCS, ROOT, anchors, code_blocks, commands, links, navigation, pages

from negpo.cli import build_parser, launch
from negpo.methods import TABLE
from negpo.trainers import METHODS
from negpo.trainers._script import parse

README = ROOT / "README.md"
SECTIONS = ["Formula", "When it fails", "Recipe", "Published", "Measured here", "Deviations"]
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
COMMANDS = [(page.name, " ".join(words), words) for page in (README, *pages()) for words in commands(page)]


def test_the_navigation_lists_every_page_once_and_no_other():
    assert sorted(navigation()) == [str(page.relative_to(DOCS)) for page in pages()]


@pytest.mark.parametrize("page", [README, *pages()], ids=lambda page: page.name)
def test_every_internal_link_leads_to_a_file_and_a_heading(page):
    for target in links(page):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} (has {sorted(anchors(file))})"


def test_every_method_has_a_page_and_the_index_links_to_it():
    names = {page.stem for page in METHOD_PAGES}
    assert names == {*METHODS, "u2a"}
    assert {f"methods/{name}.md" for name in names} <= set(links(DOCS / "index.md"))


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_a_method_page_has_all_its_parts_in_order_and_names_its_trainer(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    if page.stem in METHODS:
        assert f"`{METHODS[page.stem][1]}`" in text
        assert any(words[:2] == ["train", page.stem] for words in commands(page))


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_the_objectives_that_a_method_page_names_exist(page):
    objectives = import_module("negpo.objectives")
    introduction = page.read_text(encoding="utf-8").split("## Formula")[0]
    named = re.findall(r"`(?:negpo\.objectives\.)?(\w+_(?:loss|advantages|weights|scores|mean))`", introduction)
    assert named
    assert [name for name in named if not hasattr(objectives, name)] == []


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_page_and_its_model_card_name_the_same_papers_and_objectives(method):
    text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    facts = TABLE[method]
    assert [paper for paper in facts.papers if paper not in text] == []
    assert [name for name in facts.objectives if f"`{name}`" not in text.replace("negpo.objectives.", "")] == []


def test_every_arxiv_number_of_a_method_page_is_in_the_paper_index():
    index = (DOCS / "papers.md").read_text(encoding="utf-8")
    for page in METHOD_PAGES:
        for number in re.findall(r"\b2[0-6]\d\d\.\d{5}\b", page.read_text(encoding="utf-8")):
            assert number in index, f"{page.name}: {number}"


@pytest.mark.parametrize(("page", "line", "words"), COMMANDS, ids=[f"{page}: {line}" for page, line, _ in COMMANDS])
def test_every_command_in_the_documentation_parses(page, line, words):
    if "..." in words:
        pytest.skip("an abbreviated command")
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args(words)
        assert stop.value.code == 0
        return
    args, extra = build_parser().parse_known_args(words)
    if args.command != "train":
        assert not extra
        return
    _, settings = launch.split([*args.settings, *extra])
    parse(args.method, [*settings, "--use_cpu", "true"])  # recipes with bf16 refuse a machine without a GPU


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_python_in_the_documentation_compiles_and_imports_names_that_exist(page):
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("negpo"):
                module = import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_no_page_names_a_path_of_one_machine_or_a_registry():
    for page in (README, ROOT / "mkdocs.yml", *pages()):
        assert not re.search(r"/(?:work|tmp|home|root|Users)/", page.read_text(encoding="utf-8")), page.name
