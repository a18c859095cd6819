"""docs/metrics.md lists the telemetry that the trainers log: nothing is missing and nothing is invented.

A statistic that only one method logs may be explained on that method's page instead.
"""

import ast
import re
from importlib import import_module

from docs_support import DOCS, ROOT

from negpo.trainers import METHODS

PARTS = {
    "add_tokens": ("logp", "p_above_99", "tokens"),
    "add_log_ratio": ("log_ratio",),
    "add_weights": ("grad_weight", "dead_rows"),
}
RECORDERS = {"add", "add_masked", "record_metric"}
SIDES = ("chosen", "rejected", "samples")


def documented() -> set[str]:
    """Names in the first column of the tables under `## Telemetry`."""
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").split("## Telemetry")[1]
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def on_method_pages() -> set[str]:
    """Names of the form PART/STATISTIC in code spans of the method pages."""
    texts = [path.read_text(encoding="utf-8") for path in (DOCS / "methods").glob("*.md")]
    return {name for text in texts for name in re.findall(r"`(\w+/\w+)`", text)}


def recorded() -> set[str]:
    """Patterns of the names that trainers/**/*.py pass to a recorder; a placeholder of an f-string matches one word."""
    found = set()
    for path in (ROOT / "trainers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            name = _pattern(node.args[0])
            if name is None:
                continue
            if node.func.attr in RECORDERS and "/" in name:
                found.add(name)
            found |= {rf"{name}/{part}" for part in PARTS.get(node.func.attr, ())}
    return found


def _pattern(node: ast.expr) -> str | None:
    """The text as a regular expression; None for anything but a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in node.values)
    return r"\w+" if isinstance(node, ast.Name) else None


def stated() -> set[str]:
    """Names that the code keeps in tuples: the RL telemetry, group counts, statistics of the methods."""
    telemetry = import_module("negpo.trainers._policy.telemetry")
    names = {f"{sign}/{mean}" for sign in telemetry.SIGNS for mean in telemetry.MEANS}
    names |= {*telemetry.OVERALL, *telemetry.COUNTS, *telemetry.GroupCounts(1, 0, 0, 0, 0).metrics()}
    preference = import_module("negpo.trainers._preference.base").PreferenceTrainer
    for module, trainer, _ in METHODS.values():
        kind = getattr(import_module(module), trainer)
        part = "loss" if issubclass(kind, preference) else "forget"
        names |= {f"{part}/{stat}" for stat in getattr(kind, "logged_stats", ())}
    return names


def test_every_name_the_trainers_log_is_explained():
    names = documented() | on_method_pages()
    assert stated() <= names
    for pattern in recorded():
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_every_explained_name_is_logged_somewhere():
    patterns = recorded() - {r"\w+/\w+"}  # a name with two placeholders proves nothing
    known = stated() | {"guard/utility"} | {f"{side}/{n}" for side in SIDES for ns in PARTS.values() for n in ns}
    known |= {f"{part}/{stat}" for part in ("forget", "retain") for stat in ("mean_norm", "mean_distance")}  # rmu
    for name in documented():
        assert name in known or any(re.fullmatch(pattern, name) for pattern in patterns), name


def test_the_guard_logs_the_name_that_the_page_explains():
    source = (ROOT / "trainers" / "_run" / "callbacks.py").read_text(encoding="utf-8")
    assert '"guard/utility"' in source
