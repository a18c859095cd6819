"""Write the generated parts of README.md, docs/ and mkdocs.yml from the method table.

    python scripts/sync_docs.py            # write what is stale
    python scripts/sync_docs.py --check    # only say what is stale; exit status 1 if anything is

A generated part stands between two marker lines, ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->`` (in YAML
``# generated: NAME`` and ``# end of NAME``). NAME is a key of PARTS.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from negpo.methods import FAMILIES, PAPERS, TABLE, Method, of_family

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OTHER_MODELS = ("_llama2_7b",)  # recipes that repeat another one for another model
STAGES = {"unlearn": ("u2a",)}  # method pages that are no method of `negpo train`
MARKERS = re.compile(
    r"(?P<start>^[ ]*(?:<!--|#) generated: (?P<name>\S+)(?: -->)?\n).*?(?P<end>^[ ]*(?:<!--|#) end of (?P=name)\b)",
    re.MULTILINE | re.DOTALL,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    changed = stale()
    for path, text in changed.items():
        print(f"{path.relative_to(ROOT)} {'is stale: run `python scripts/sync_docs.py`' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(changed))


def stale() -> dict[Path, str]:
    """Files whose generated parts differ from the table, with the text they should have."""
    wanted = {}
    for path in (ROOT / "README.md", ROOT / "mkdocs.yml", *sorted(DOCS.rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        renewed = MARKERS.sub(lambda found: found["start"] + PARTS[found["name"]]() + found["end"], text)
        if renewed != text:
            wanted[path] = renewed
    return wanted


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, a line a row."""
    lines = [columns, ("---",) * len(columns), *rows]
    return (
        "\n"
        + "".join(f"| {' | '.join(cells)} |\n".replace("| --- ", "|---").replace("--- |", "---|") for cells in lines)
        + "\n"
    )


def arxiv(number: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number})"


def papers_of(method: Method) -> str:
    return ", ".join(map(arxiv, method.papers))


def readme_methods() -> str:
    """The README's table: every method, family by family."""
    rows = []
    for family, title in FAMILIES.items():
        rows.append((f"**{title}**", "", "", ""))
        for name in of_family(family):
            method = TABLE[name]
            rows.append(
                (f"[`{name}`](docs/methods/{name}.md)", method.summary, f"`{method.trainer}`", papers_of(method))
            )
    return table(("`negpo train`", "what it does with the answers it trains against", "trainer", "paper"), rows)


def index_methods() -> str:
    """docs/index.md: what each method needs."""
    words = {"none": "–", "logprobs": "log-probs", "model": "model in every step"}
    methods = {name: TABLE[name] for family in FAMILIES for name in of_family(family)}
    recipes = {name: [recipe.partition("/")[2] for recipe in method.recipes] for name, method in methods.items()}
    rows = [
        (
            f"[{name}](methods/{name}.md)",
            method.title,
            ", ".join(f"`{kind}`" for kind in method.rows),
            words[method.cost.reference],
            ", ".join(f"`{recipe}`" for recipe in recipes[name] if not recipe.endswith(OTHER_MODELS)) or "–",
        )
        for name, method in methods.items()
    ]
    return table(("method", "name", "rows", "reference", "recipes"), rows)


def policy_methods() -> str:
    """docs/rl_methods.md: how right and wrong answers are weighed."""
    rows = [
        (f"`{name}`", f"`{TABLE[name].trainer}`, `{TABLE[name].config}`", TABLE[name].summary)
        for name in of_family("policy")
    ]
    return table(("method", "trainer, config", "right and wrong answers"), rows)


def paper_index() -> str:
    """docs/papers.md: every paper, where it is used. A page uses a paper when it names its number."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")) if path.name != "papers.md"}
    rows = []
    for number, title in sorted(PAPERS.items()):
        own = [name for name, method in TABLE.items() if number in method.papers]
        own += [path.stem for path, text in pages.items() if path.parent.name == "methods" and number in text]
        links = [f"[{name}](methods/{name}.md)" for name in dict.fromkeys(own)]
        links += [
            f"[{path.stem}]({path.name})" for path, text in pages.items() if path.parent == DOCS and number in text
        ]
        rows.append((arxiv(number), title, ", ".join(links)))
    return table(("arXiv", "paper", "here"), rows)


def navigation() -> str:
    """mkdocs.yml: the method pages, family by family."""
    lines = []
    for family, title in FAMILIES.items():
        lines.append(f"      - {title}:\n")
        lines += [f"          - methods/{name}.md\n" for name in (*of_family(family), *STAGES.get(family, ()))]
    return "".join(lines)


def _configs() -> dict[str, type]:
    from importlib import import_module

    return {name: getattr(import_module(method.module), method.config) for name, method in TABLE.items()}


def settings_counts() -> str:
    """Fields of every config class, and how many of them are live, conditional or refused."""
    from negpo.trainers._run.settings import Only, Refused, inherited_names, rules_of

    rows = []
    for name, config in _configs().items():
        rules = rules_of(config)
        refused = sum(isinstance(rule, Refused) for rule in rules.values())
        conditional = sum(isinstance(rule, Only) for rule in rules.values())
        counts = (len(rules), len(inherited_names(config)), len(rules) - refused - conditional, conditional, refused)
        rows.append((f"`{name}`", f"`{config.__name__}`", *map(str, counts)))
    return table(("method", "config", "fields", "inherited", "honoured", "honoured with others", "refused"), rows)


def settings_inherited() -> str:
    """What becomes of every inherited field, for trainers on stored rows and on rollouts."""
    from negpo.trainers._run.settings import Only, Refused, inherited_names, rules_of

    def told(rules, name: str) -> str:
        rule = rules.get(name)
        if rule is None:
            return ""
        if isinstance(rule, Refused):
            return f"refused: {rule.reason}"
        return f"needs {rule.when}" if isinstance(rule, Only) else "honoured"

    stored, policy = (rules_of(config) for config in (_configs()["npo"], _configs()["nsr"]))
    names = dict.fromkeys([*inherited_names(_configs()["npo"]), *inherited_names(_configs()["nsr"])])
    rows = [(f"`{name}`", told(stored, name), told(policy, name)) for name in names]
    return table(("field", "stored rows", "rollouts"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "readme-methods": readme_methods,
    "index-methods": index_methods,
    "policy-methods": policy_methods,
    "paper-index": paper_index,
    "method-pages": navigation,
    "settings_counts": settings_counts,
    "settings_inherited": settings_inherited,
}

if __name__ == "__main__":
    sys.exit(main())
