"""Write the generated parts of README.md, docs/ and mkdocs.yml from the method table.

    python scripts/sync_docs.py            # write what is stale
    python scripts/sync_docs.py --check    # only say what is stale; exit status 1 if anything is

A generated part stands between two marker lines, ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->`` (in YAML
``# generated: NAME`` and ``# end of NAME``). NAME is a key of PARTS.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def _real_model() -> dict[str, Any]:
    return json.loads((DOCS / "data" / "real_model.json").read_text(encoding="utf-8"))


PARTS_TIMED = ("training", "evaluation")
REAL_COLUMNS = {
    "forget_quality": "forget quality",
    "model_utility": "utility",
    "forget_Q_A_Prob": "forget probability",
    "forget_Q_A_ROUGE": "forget ROUGE-L",
    "retain_Q_A_ROUGE": "retain ROUGE-L",
    "extraction_strength": "extraction",
    "mia_min_k": "Min-K% AUC",
}


def real_model_runs() -> str:
    """Every model of the real run after its last step: mean over seeds, range where there are several."""
    content = _real_model()
    seeds = list(content["runs"].values())
    titles = {"target": "target, before", "retain": "retain model, the goal"}
    rows = []
    for name in ("target", "retain", *content["chosen"]):
        found = [seed[name] for seed in seeds if name in seed]
        if not found:
            continue
        last = [one["points"][-1] for one in found]
        cells = [_spread([point[key] for point in last if key in point]) for key in REAL_COLUMNS]
        rate = f"{content['chosen'][name]:g}" if name in content["chosen"] else "–"
        rows.append((titles.get(name, found[0]["title"]), rate, *cells))
    return table(("model", "rate", *REAL_COLUMNS.values()), rows)


def real_model_trials() -> str:
    """All trials on the tuning split; the chosen ones are marked."""
    content = _real_model()
    rows = [
        (
            trial["method"],
            f"{trial['learning_rate']:g}"
            + (" *" if content["chosen"][trial["method"]] == trial["learning_rate"] else ""),
            *(f"{trial[key]:.3g}" for key in ("forget_quality", "model_utility", "forget_Q_A_Prob")),
        )
        for trial in content["trials"]
    ]
    return table(("method", "rate", "forget quality", "utility", "forget probability"), rows)


def real_model_seconds() -> str:
    """Wall-clock minutes of every model of the first seed: training, and the looks at it."""
    first = next(iter(_real_model()["runs"].values()))
    rows = [
        (run["title"], *(f"{run['seconds'][part] / 60:.1f}" if part in run["seconds"] else "–" for part in PARTS_TIMED))
        for run in first.values()
    ]
    return table(("model", *(f"{part}, minutes" for part in PARTS_TIMED)), rows)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    mean = f"{sum(values) / len(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


PARTS: dict[str, Callable[[], str]] = {
    "readme-methods": readme_methods,
    "index-methods": index_methods,
    "policy-methods": policy_methods,
    "paper-index": paper_index,
    "method-pages": navigation,
    "settings_counts": settings_counts,
    "settings_inherited": settings_inherited,
    "real_model_runs": real_model_runs,
    "real_model_trials": real_model_trials,
    "real_model_seconds": real_model_seconds,
}

if __name__ == "__main__":
    sys.exit(main())
