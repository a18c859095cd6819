"""Report of one or several reasoning runs: pass@k curves with bands, difference tests, levels, lengths, protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negpo.errors import ConfigError
from negpo.eval.passk import default_ks, paired_difference
from negpo.eval.reasoning import read_run
from negpo.report._base import (
    COLORS,
    Cell,
    Picture,
    Section,
    Table,
    Text,
    as_picture,
    line_with_band,
    new_figure,
    outside_legend,
    render_sections,
    style,
)

EXAMPLES = 6  # blocks per run and verdict, two an answer
SHOWN_CHARACTERS = 600


def render_reasoning_report(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write one self-contained HTML page about the runs in `folders`; the first is what the others are tested against.

    Raises:
        ConfigError: a folder without a finished run, or runs of different benchmarks.
    """
    runs = [{**read_run(folder), "name": name} for folder, name in zip(folders, _names(folders), strict=True)]
    benchmarks = {run["summary"]["benchmark"] for run in runs}
    if len(benchmarks) > 1:
        raise ConfigError(f"the runs answer different benchmarks ({', '.join(sorted(benchmarks))}); report them apart")
    first = runs[0]["summary"]
    examples = [block for run in runs for block in (Text("heading", run["name"]), *_examples(run))]
    sections = [
        Section("pass@k", "curves", [curves(runs), _numbers(runs), _rates(runs)]),
        Section("Differences", "differences", [_differences(runs)]),
        Section("Levels and subjects", "levels", [_groups(runs, field) for field in ("level", "subject")]),
        Section("Lengths", "lengths", [lengths(runs)]),
        Section("Protocols", "protocols", [_protocols(runs)]),
        Section("Examples", "examples", examples),
    ]
    subtitle = f"{first['problems']} problems, {len(runs)} run{'s' if len(runs) > 1 else ''}"
    versions = ", ".join(f"{name} {value}" for name, value in runs[0]["manifest"].get("versions", {}).items())
    return render_sections(path, f"{first['benchmark']}: pass@k", subtitle, sections, versions)


def _names(folders: Sequence[str | Path]) -> list[str]:
    """Last folder names, lengthened from the left until they differ."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a folder is named twice; name every run once")


def _estimates(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in run["summary"]["pass_at_k"] if "value" in entry]


def curves(runs: Sequence[dict[str, Any]]) -> Picture:
    """pass@k (solid, with 95 % band) and maj@k (dotted) against k."""
    figure, axis = new_figure(width=8.6, height=4.8)
    for index, run in enumerate(runs):
        ks, *band = ([entry[name] for entry in _estimates(run)] for name in ("k", "value", "low", "high"))
        line_with_band(axis, ks, band, style(index), run["name"])
        votes = run["summary"]["maj_at_k"]
        axis.plot([v["k"] for v in votes], [v["value"] for v in votes], color=style(index)["color"], ls=":", lw=1.2)
    axis.set_xscale("log", base=2)
    axis.set(ylim=(0, 1), xlabel="k", ylabel="pass@k")
    outside_legend(axis)
    caption = (
        "Solid: unbiased pass@k with the 95 % interval of a bootstrap over problems. Dotted: majority vote over k "
        "samples."
    )
    return as_picture(figure, "pass@k against k", caption)


def lengths(runs: Sequence[dict[str, Any]]) -> Picture:
    """Histogram of completion lengths in tokens, right and wrong apart."""
    figure, axes = new_figure(columns=len(runs), width=max(4.4, min(3.6 * len(runs), 14)), height=3.2)
    for axis, run in zip(np.atleast_1d(axes), runs, strict=True):
        status = {(row["problem"], row["sample"]): row["status"] for row in run["verdicts"]}
        rows = [row for samples in run["samples"].values() for row in samples]
        edges = np.linspace(0, max((row["tokens"] for row in rows), default=1) + 1, 30)
        for name, color in (("correct", COLORS[4]), ("wrong", COLORS[0])):
            values = [row["tokens"] for row in rows if status.get((row["problem"], row["sample"])) == name]
            axis.hist(values, bins=edges, color=color, alpha=0.6, label=name)
        axis.set(title=run["name"], xlabel="tokens", ylabel="samples")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7, frameon=False)
    return as_picture(figure, "completion lengths", "Lengths of right and wrong answers.")


def _numbers(runs: Sequence[dict[str, Any]]) -> Table:
    ks = sorted({entry["k"] for run in runs for entry in run["summary"]["pass_at_k"]})
    rows = []
    for run in runs:
        entries = {entry["k"]: entry for entry in run["summary"]["pass_at_k"]}
        rows.append([Cell(run["name"]), *(_estimate(entries.get(k)) for k in ks)])
    caption = (
        "pass@k; pass@1 is avg@n. Small print: 95 % interval over problems, then the standard error over "
        "samples alone. Unknown verdicts leave n."
    )
    return Table(["run", *(f"k = {k}" for k in ks)], rows, caption)


def _estimate(entry: dict[str, Any] | None) -> Cell:
    if entry is None:
        return Cell("")
    if "value" not in entry:
        bounds = f"{entry['unknown_as_wrong']:.3f} to {entry['unknown_as_correct']:.3f}"
        return Cell("unknown", f"between {bounds}")
    note = f"{entry['low']:.3f} to {entry['high']:.3f}, ± {entry['sampling_stderr']:.3f}"
    return Cell(f"{entry['value']:.4f}", note)


def _rates(runs: Sequence[dict[str, Any]]) -> Table:
    names = list(runs[0]["summary"]["rates"])
    rows = [
        [
            Cell(run["name"]),
            Cell(str(run["summary"]["samples"])),
            *(
                Cell(f"{run['summary']['rates'][name]['value']:.2%}", _range(run["summary"]["rates"][name]))
                for name in names
            ),
            Cell(f"{run['summary']['maj_at_k'][-1]['value']:.4f}", _range(run["summary"]["maj_at_k"][-1])),
        ]
        for run in runs
    ]
    header = ["run", "samples", *(name.replace("_", " ") for name in names), "maj@n"]
    return Table(
        header, rows, "Truncated: stopped by the length limit. No answer: nothing to extract. Unknown: not judged."
    )


def _range(entry: dict[str, float]) -> str:
    return f"{entry['low']:.3f} to {entry['high']:.3f}"


def _differences(runs: Sequence[dict[str, Any]]) -> Table | None:
    """Paired bootstrap of every run against the first, on the problems both judged at least once."""
    if len(runs) < 2:
        return None
    rows = []
    for run in runs[1:]:
        this, first = _aligned(run, runs[0])
        ks = default_ks(int(min(this[0].min(), first[0].min())))
        for difference in paired_difference(this, first, ks):
            clear = difference.p_value < 0.05
            tone = ("good" if difference.value > 0 else "bad") if clear else ""
            interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
            cells = [str(difference.k), f"{difference.value:+.4f}", interval, f"{difference.p_value:.4f}"]
            rows.append([Cell(run["name"]), *(Cell(text, tone=tone) for text in cells)])
    caption = (
        f"Minus {runs[0]['name']}; the same problems are resampled for both runs. Not corrected for the number of k."
    )
    return Table(["run", "k", "difference in pass@k", "95 % interval", "p"], rows, caption)


def _aligned(run: dict[str, Any], other: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(n, c) of both runs over the problems that both judged at least once, in one order."""
    tables = [{row["problem"]: row for row in side["summary"]["counts"] if row["n"] > 0} for side in (run, other)]
    common = [problem for problem in tables[0] if problem in tables[1]]
    if not common:
        raise ConfigError(f"the runs {run['name']} and {other['name']} share no problem")
    return [(np.array([table[p]["n"] for p in common]), np.array([table[p]["c"] for p in common])) for table in tables]


def _groups(runs: Sequence[dict[str, Any]], field: str) -> Table | None:
    names = sorted({name for run in runs for name in run["summary"][f"by_{field}"]})
    if not names:
        return None
    rows = []
    for name in names:
        entries = [run["summary"][f"by_{field}"].get(name) for run in runs]
        cells = [
            Cell("")
            if entry is None
            else Cell(f"{entry['value']:.3f}", f"{_range(entry)}; ever {entry['ever_solved']:.2f}")
            for entry in entries
        ]
        rows.append([Cell(name), Cell(str(next(e["problems"] for e in entries if e))), *cells])
    return Table(
        [field, "problems", *(run["name"] for run in runs)], rows, "avg@n; 'ever' is the share solved at least once."
    )


def _protocols(runs: Sequence[dict[str, Any]]) -> Table:
    keys = ("name", "source", "temperature", "top_p", "top_k", "n", "max_new_tokens", "grader")
    rows = []
    for run in runs:
        card, manifest = run["manifest"]["protocol"], run["manifest"]
        known = [str(manifest.get(key, ""))[:12] for key in ("protocol_hash", "template", "model")]
        rows.append(
            [Cell(run["name"]), *(Cell(str(card[key])) for key in keys), *map(Cell, known), Cell(manifest["engine"])]
        )
    header = ["run", "protocol", *keys[1:], "protocol hash", "template hash", "model hash", "engine"]
    return Table(header, rows, "A * after a protocol's name means that a setting differs from the published card.")


def _examples(run: dict[str, Any]) -> list[Text]:
    """The first sample of a few problems, as many right as wrong ones where there are."""
    chosen: dict[str, list[Text]] = {"correct": [], "wrong": []}
    texts = {(row["problem"], row["sample"]): row["text"] for rows in run["samples"].values() for row in rows}
    for row in run["verdicts"]:
        blocks = chosen.get(row["status"])
        if row["sample"] == 0 and blocks is not None and len(blocks) < EXAMPLES:
            text = texts[row["problem"], row["sample"]]
            shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
            blocks += [Text("note", f"{row['problem']}: {row['status']} ({row['reason']})"), Text("pre", shown)]
    return [block for blocks in chosen.values() for block in blocks]
