"""What a reader of an audit sees: escaped, self-contained, with every line, picture and reason."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from negpo.report.audit import card, render_audit, verdict_table
from negpo.report.audit_terminal import print_audit

NASTY = "<script>alert(1)</script>"


def number(value, reach=0.1):
    return {"value": value, "low": value - reach, "high": value + reach}


def line(metric, group, outcome, note=""):
    kind = {"group": group, "metric": metric, "title": f"Title of {metric}", "type": "leak", "rule": "at most 20%"}
    sides = {"retain": number(0.3), "target": number(0.9)}
    return kind | number(0.4) | {"limit": 0.42, "share": 0.17, "outcome": outcome, "note": note} | sides


def attack(value):
    curve = [[step, value, value - 0.1, value + 0.1] for step in (0, 1, 2, 4)]
    return number(value) | {"headline": "rougeL_recall", "curves": {"rougeL_recall": curve}, "notes": [f"note {NASTY}"]}


def side(label, value, lines=()):
    example = {"set": "forget", "row": 3, "question": NASTY, "answer": "a", "score": 1.0}
    said = {"model": NASTY, "retain": "", "target": "b"}
    detail = {"interval": [0.4, 0.6], "tpr_at_fpr": {"0.01": 0.1, "0.001": 0.0}}
    counted = {group: {"pass": 1, "fail": 1, "undecided": 0, "no power": 0} for group in ("forgotten", "robust")}
    metrics = ("forget_Q_A_ROUGE", "forget_quality", "model_utility", "mia_loss")
    return {
        "label": label,
        "warnings": [f"warned {NASTY}"],
        "metrics": {name: number(value) for name in metrics},
        "missing": {"privleak": f"reason {NASTY}"},
        "details": {"mia_loss": detail},
        "lines": list(lines),
        "groups": counted,
        "attacks": {"relearn_forget": attack(value), "sampling": attack(value)},
        "roc": {"loss": [[0.0, 0.0], [0.5, 0.6], [1.0, 1.0]]},
        "worst": {"forget": [example | said], "attacked": [example | said | {"attack": "sampling"}], "preserved": []},
        "seconds": {"score-forget": 1.5},
    }


@pytest.fixture
def audit():
    lines = [
        line("forget_Q_A_ROUGE", "forgotten", "pass"),
        line("mia_loss", "forgotten", "fail", "over-unlearned"),
        line("sampling", "robust", "undecided"),
        line("linear_probe", "robust", "no power", "the target is not shown to know more"),
    ]
    return {
        "manifest": {
            "settings": {"suite": "full", "seed": 0, "alpha": 0.05},
            "data": {"source": NASTY, "forget": "forget10", "rows": {"forget": 40}, "sha256": {"forget": "ab"}},
            "models": {"model: one": {"name": NASTY, "sha256": "cd"}},
            "template_sha256": "ef",
            "tokenizer_sha256": "01",
            "versions": {"negpo": "0.1.0"},
        },
        "models": [side("one", 0.4, lines), side(NASTY, 0.5, lines)],
        "target": side("target", 0.9),
        "retain": side("retain", 0.3),
        "requirements": [
            {"model": "one", "requirement": f"x>1 {NASTY}", "metric": "x", "value": "NaN", "bound": 1.0, "met": False}
        ],
    }


@pytest.fixture
def page(audit, tmp_path):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit))
    return render_audit(path).read_text()


def test_texts_of_models_data_and_users_are_never_markup(page):
    assert NASTY not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    assert "<script" not in page


def test_the_page_needs_nothing_from_outside(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png;base64,") == 4


def test_every_line_of_every_group_is_there_with_its_rule_and_both_controls(audit):
    table = verdict_table(audit, "forgotten")
    assert table.header == ["line", "one", NASTY, "retain model", "target"]
    first, second = table.rows
    assert [cell.text for cell in first] == ["Title of forget_Q_A_ROUGE", "pass 0.40", "pass 0.40", "0.30", "0.90"]
    assert first[1].note == "0.30 … 0.50; 17% of the way to the target"
    assert (second[1].tone, second[1].note.endswith("over-unlearned")) == ("bad", True)
    assert "at most 20%" in table.caption


def test_a_card_counts_lines_with_power_and_says_how_the_others_ended(audit):
    shown = card(audit["models"][0])
    assert shown["tone"] == "bad"
    assert shown["headline"] == "forgotten 1/2, robust 1/2"
    assert shown["others"] == ["Over-unlearned: Title of mia_loss.", "Undecided: Title of sampling."]


def test_pictures_and_sections_are_left_out_where_nothing_was_measured(audit, tmp_path):
    for one in (*audit["models"], audit["target"], audit["retain"]):
        one["roc"], one["attacks"] = {}, {}
        one["metrics"] = {"forget_Q_A_ROUGE": one["metrics"]["forget_Q_A_ROUGE"]}
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit))
    page = render_audit(path, tmp_path / "other.html").read_text()
    assert "data:image" not in page
    assert "No rows to preserve were given." in page
    assert "Only the full suite attacks." in page


def test_the_terminal_shows_marks_warnings_and_unmet_conditions(audit, capsys):
    print_audit(audit, Path("out/audit.json"), Path("out/report.html"))
    shown = capsys.readouterr().out
    assert "✓ 0.40" in shown
    assert "✗ 0.40" in shown
    assert "~ 0.40" in shown
    assert "? 0.40" in shown
    assert "not met" in shown
    assert "warning: warned" in shown
    assert "out/report.html" in shown


def test_the_benchmark_prints_times_and_memory_of_both_sides():
    script = Path(__file__).resolve().parents[2] / "scripts" / "bench_audit.py"
    sizes = ["--rows", "3", "--vocab", "1600", "--new-tokens", "4", "--memory-vocab", "20000", "--memory-tokens", "256"]
    done = subprocess.run([sys.executable, script, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| everything (s) |" in done.stdout
    difference = float(re.search(r"largest difference ([\d.e+-]+)", done.stdout)[1])
    assert difference < 1e-5
    full, tiled = (float(cell.replace(",", "")) for cell in re.findall(r"\| ([\d,]+) \|$", done.stdout, re.MULTILINE))
    assert full > 20000 * 256 * 4 / 2**20 > tiled
