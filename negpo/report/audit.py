"""The report of an audit: verdicts, pictures, attacks, worst examples, and what everything was computed from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negpo.report import audit_figures as figures
from negpo.report._base import Card, Cards, Cell, Fold, Section, Table, Text, render_sections
from negpo.report.unlearning import number

GROUPS = {
    "forgotten": ("Forgotten", "Is it gone, as far as plain questions and membership inference can tell?"),
    "preserved": ("Preserved", "What else went?"),
    "robust": ("Robust", "Is it really gone? Each line is one attack and what it brings back."),
}
READING = (
    "Every value stands beside that of a model that never saw the forget set (retain model) and of the model before "
    "unlearning (target). Intervals are 95 %, over rows; differences between models are paired by row. Pass: the whole "
    "interval of the difference lies within the margin; fail: it lies beyond; undecided: it crosses, more rows would "
    "tell; no power: not even the target is shown to differ from the retain model, so the line counts for nothing."
)
TONES = {"pass": "good", "fail": "bad", "undecided": "warn", "no power": ""}


def render_audit(path: Path, out: Path | None = None) -> Path:
    """Render ``audit.json`` at ``path``; default: ``report.html`` beside it. Returns the report's path."""
    audit = json.loads(path.read_text(encoding="utf-8"))
    manifest = audit["manifest"]
    models = audit["models"]
    rows = manifest["data"]["rows"]
    subtitle = (
        f"{len(models)} model{'s' if len(models) > 1 else ''}, suite {manifest['settings']['suite']}, "
        f"{rows['forget']} forget rows ({manifest['data']['forget']}), seed {manifest['settings']['seed']}"
    )
    sections = [
        Section("Verdicts", "verdicts", _verdicts(audit), fixed=True),
        Section(
            "Forgetting and utility",
            "utility",
            [figures.forget_utility(audit) or note("No rows to preserve were given.")],
        ),
        Section(
            "Membership inference",
            "membership",
            [
                figures.roc_curves(audit) or note("Not measured; the reasons stand under all numbers."),
                membership_table(audit),
            ],
        ),
        Section("Attacks that bring knowledge back", "attacks", _attacks(audit)),
        Section("Worst examples", "worst", _worst(models), fixed=True),
        Section("All numbers", "numbers", _numbers(audit)),
        Section(
            "Manifest",
            "manifest",
            [
                Text("pre", "\n".join(f"{key}: {value}" for key, value in manifest["settings"].items())),
                Fold("Hashes and versions", [Text("pre", "\n".join(manifest_lines(manifest)))]),
                Fold("Seconds", [seconds_table(audit)]),
            ],
        ),
    ]
    footer = "Made by negpo. Every number above is in audit.json, every row in models/*/items.jsonl."
    place = out or path.with_name("report.html")
    return render_sections(place, "Is it gone? An unlearning audit", subtitle, sections, footer)


def note(text: str) -> Text:
    return Text("note", text)


def heading(text: str) -> Text:
    return Text("heading", text)


def _verdicts(audit: dict[str, Any]) -> list[Any]:
    cards = []
    for one in map(card, audit["models"]):
        notes = [*(f"Warning: {warning}." for warning in one["warnings"]), *one["others"]]
        cards.append(Card(one["title"], f"{one['headline']} lines passed", one["tone"], notes))
    required = requirements_table(audit)
    blocks = [Cards(cards), *([heading("Required"), required] if required else [])]
    for name, (title, question) in GROUPS.items():
        if lines_of(audit, name):
            blocks += [heading(title), note(question), verdict_table(audit, name)]
    return [*blocks, note(READING)]


def _attacks(audit: dict[str, Any]) -> list[Any]:
    curves, notes = figures.relearning(audit), attack_notes(audit)
    return [
        figures.attack_bars(audit) or note("Only the full suite attacks."),
        *([heading("Relearning"), curves] if curves else []),
        Fold("Notes of the attacks", [note(line) for line in notes]) if notes else None,
    ]


def _worst(models: Sequence[dict[str, Any]]) -> list[Fold]:
    folds = []
    for index, one in enumerate(map(worst_examples, models)):
        leaks = one["leaks"] or note("None: no forget answer comes out better than from the retain model.")
        attacked = [heading("Forget answers that attacks bring back"), one["attacked"]] if one["attacked"] else []
        losses = one["losses"] or note("None: every answer is as complete as the target's.")
        blocks = [heading("Forget answers that come out, beyond the retain model"), leaks, *attacked]
        blocks += [heading("Answers that were to stay and suffered most"), losses]
        folds.append(Fold(one["label"], blocks, open=index == 0))
    return folds


def _numbers(audit: dict[str, Any]) -> list[Any]:
    missing = sorted({f"{name}: {why}" for model in audit["models"] for name, why in model["missing"].items()})
    rest = [heading("Not available"), *map(note, missing)] if missing else []
    return [Fold("Every metric with its interval", [numbers_table(audit)]), *rest]


def titles(audit: dict[str, Any]) -> list[str]:
    """Column heads: the models, then the controls."""
    return [*(model["label"] for model in audit["models"]), "retain model", "target"]


def card(model: dict[str, Any]) -> dict[str, Any]:
    """One model in a sentence: lines passed by group, and the ones that did not pass, by the way they did not."""
    groups = {name: one for name, one in model["groups"].items() if sum(one.values()) > one["no power"]}
    others: dict[str, list[str]] = {}
    for line in model["lines"]:
        if line["outcome"] in ("fail", "undecided"):
            others.setdefault(line["note"] or line["outcome"], []).append(line["title"])
    outcomes = {line["outcome"] for line in model["lines"]}
    passed = [f"{name} {one['pass']}/{sum(one.values()) - one['no power']}" for name, one in groups.items()]
    return {
        "title": model["label"],
        "tone": "bad" if "fail" in outcomes else "warn" if "undecided" in outcomes else "good",
        "headline": ", ".join(passed),
        "others": [f"{how[0].upper()}{how[1:]}: {', '.join(titles)}." for how, titles in others.items()],
        "warnings": model["warnings"],
    }


def verdict_table(audit: dict[str, Any], group: str) -> Table:
    """The lines of one group, all models side by side with the two controls; the caption spells out the rules."""
    models = audit["models"]
    header = ["line", *titles(audit)]
    rows = []
    rules: dict[str, list[str]] = {}
    for line in lines_of(audit, group):
        rules.setdefault(line["rule"], []).append(line["title"])
        twins = [twin_of(model, line["metric"]) for model in models]
        controls = [_control(line[name]) for name in ("retain", "target")]
        limit = f"limit {number(float(line['limit']))}"
        rows.append([Cell(line["title"], limit), *(_verdict(twin) for twin in twins), *controls])
    everything = len(rules) == 1
    spelt = [f"{'Rule' if everything else ', '.join(titles)}: {rule}." for rule, titles in rules.items()]
    return Table(header, rows, " ".join(spelt))


def lines_of(audit: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """The lines of a group that any model has, each once."""
    found: dict[str, dict[str, Any]] = {}
    for model in audit["models"]:
        for line in model["lines"]:
            if line["group"] == group:
                found.setdefault(line["metric"], line)
    return list(found.values())


def twin_of(model: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """The model's line on a metric, if it has one."""
    return next((line for line in model["lines"] if line["metric"] == metric), None)


def _verdict(line: dict[str, Any] | None) -> Cell:
    if line is None:
        return Cell("–", "not measured")
    notes = [interval(line)]
    share = float(line["share"])
    if line["type"] == "leak" and line["outcome"] != "no power" and share > 0:
        notes.append(f"{share:.0%} of the way to the target")
    return Cell(
        f"{line['outcome']} {number(float(line['value']))}",
        "; ".join([*notes, *filter(None, [line["note"]])]),
        TONES[line["outcome"]],
    )


def _control(one: dict[str, Any]) -> Cell:
    return Cell(number(float(one["value"])), interval(one))


def interval(one: dict[str, Any]) -> str:
    """``low … high``, or nothing where there is none."""
    if "low" not in one:
        return ""
    return f"{number(float(one['low']))} … {number(float(one['high']))}"


def requirements_table(audit: dict[str, Any]) -> Table | None:
    """Conditions of ``--require`` and whether each model meets them."""
    if not audit["requirements"]:
        return None
    rows = [
        [
            Cell(one["model"]),
            Cell(one["requirement"]),
            Cell(number(float(one["value"]))),
            Cell(number(float(one["bound"]))),
            Cell("met" if one["met"] else "not met", "", "good" if one["met"] else "bad"),
        ]
        for one in audit["requirements"]
    ]
    return Table(["model", "condition", "value", "bound", ""], rows)


def membership_table(audit: dict[str, Any]) -> Table | None:
    """AUC with interval and true positive rates at low false positive rates, by attack and model."""
    attacks = list(audit["retain"]["roc"])
    if not attacks:
        return None
    sides = [*audit["models"], audit["retain"], audit["target"]]
    rows = []
    for attack in attacks:
        cells = []
        for side in sides:
            detail = side["details"][f"mia_{attack}"]
            rates = ", ".join(
                f"{float(value):.0%} at {float(rate):.1%}" for rate, value in detail["tpr_at_fpr"].items()
            )
            low, high = (number(float(end)) for end in detail["interval"])
            cells.append(Cell(number(float(side["metrics"][f"mia_{attack}"]["value"])), f"{low} … {high}; TPR {rates}"))
        rows.append([Cell(attack.replace("_", " ")), *cells])
    caption = (
        "AUC with DeLong's 95 % interval on the logit scale, and the share of forget rows found (TPR) while at most "
        "that share of unseen rows is accused. The goal is the retain model's value, not 0.5."
    )
    return Table(["attack", *titles(audit)], rows, caption)


def attack_notes(audit: dict[str, Any]) -> list[str]:
    """What the attacks say about themselves, each once."""
    notes = {
        f"{name.replace('_', ' ')}: {note} ({model['label']})": None
        for model in (*audit["models"], audit["retain"], audit["target"])
        for name, result in model["attacks"].items()
        for note in result["notes"]
    }
    return list(notes)


def worst_examples(model: dict[str, Any]) -> dict[str, Any]:
    """Rows with the models' answers, by what went wrong. Plain text: the template escapes it."""
    worst = model["worst"]
    return {
        "label": model["label"],
        "leaks": _examples(worst["forget"], "set", ("model", "retain", "target")),
        "attacked": _examples(worst["attacked"], "attack", ("model", "retain")),
        "losses": _examples(worst["preserved"], "set", ("model", "retain", "target")),
    }


def _examples(rows: Sequence[dict[str, Any]], place: str, sides: Sequence[str]) -> Table | None:
    if not rows:
        return None
    titles = {"model": "this model", "retain": "retain model", "target": "target"}
    shown = [
        [Cell(row[place].replace("_", " "), f"row {row['row']}"), Cell(row["question"]), Cell(row["answer"])]
        + [Cell(row[side] or "(nothing)") for side in sides]
        for row in rows
    ]
    return Table([place, "question", "true answer", *(titles[side] for side in sides)], shown)


def numbers_table(audit: dict[str, Any]) -> Table:
    """Every metric and attack of every model with its interval."""
    sides = [*audit["models"], audit["retain"], audit["target"]]
    names = dict.fromkeys(name for side in sides for name in (*side["metrics"], *side["attacks"]))
    rows = []
    for name in names:
        found = [side["metrics"].get(name) or side["attacks"].get(name) for side in sides]
        rows.append([Cell(name), *(_control(one) if one else Cell("–") for one in found)])
    return Table(["number", *titles(audit)], rows)


def seconds_table(audit: dict[str, Any]) -> Table:
    """Wall-clock seconds of every stage of every model."""
    sides = [*audit["models"], audit["retain"], audit["target"]]
    names = dict.fromkeys(name for side in sides for name in side["seconds"])
    rows = [
        [Cell(name), *(Cell(number(float(side["seconds"].get(name, math.nan)))) for side in sides)] for name in names
    ]
    rows.append([Cell("all"), *(Cell(number(sum(side["seconds"].values()))) for side in sides)])
    return Table(["stage", *titles(audit)], rows)


def manifest_lines(manifest: dict[str, Any]) -> list[str]:
    """Data, models and versions as ``key: value`` lines."""
    data = manifest["data"]
    lines = [f"data: {data['source']}"]
    lines += [f"{name}: {count} rows, sha256 {data['sha256'][name]}" for name, count in data["rows"].items()]
    lines += [f"{role}: {one['name']}, sha256 {one['sha256']}" for role, one in manifest["models"].items()]
    lines += [f"{key}: {manifest[key]}" for key in ("template_sha256", "tokenizer_sha256")]
    return lines + [f"{name} {version}" for name, version in manifest["versions"].items()]
