"""The tables of docs/benchmarks.md from the JSON of gpu_check.py. No number is written that the JSON does not hold."""

from __future__ import annotations

from typing import Any

GIB = 2**30
Entry = dict[str, Any]


def tables(results: dict[str, Any]) -> str:
    entries: list[Entry] = results["results"]
    device = results["device"]["gpu"] or "a CPU, at toy size: a rehearsal, not a measurement"
    lines = [
        "## On a GPU",
        "",
        f"`python scripts/gpu_check.py` on {device}, torch {results['device']['torch']}, {results['date']}.",
        "",
        *_state(results["parts"]),
    ]
    for title, part, make in (
        ("What the cost model assumes", "a", _constants),
        ("Log-prob core", "a", _head),
        ("Training steps", "b", _steps),
        ("Adapters", "c", _steps),
        ("Memory against `negpo plan`", "b", _plan),
        ("vLLM rollouts", "e", _rollouts),
        ("bf16 against float32", "f", _curves),
    ):
        rows = make([entry for entry in entries if entry["part"] == part])
        if len(rows) > 2:
            lines += ["", f"### {title}", "", *rows]
    missing = [entry for entry in entries if "skipped" in entry or "failed" in entry]
    if missing:
        lines += ["", "### Not measured", "", *(f"* {_case(entry)}: {_reason(entry)}" for entry in missing)]
    return "\n".join(lines) + "\n"


def _state(parts: dict[str, str]) -> list[str]:
    return [f"Parts: {', '.join(f'{name} {state}' for name, state in sorted(parts.items()))}."]


def _case(entry: Entry) -> str:
    names = ("part", "model", "method", "variant", "vocab", "hidden", "tokens", "share", "cuda_graphs")
    return ", ".join(f"{name} {entry[name]}" for name in names if name in entry)


def _reason(entry: Entry) -> str:
    return f"skipped, {entry['skipped']}" if "skipped" in entry else f"failed, {entry['failed']}"


def _table(header: tuple[str, ...], rows: list[list[Any]]) -> list[str]:
    lines = [header, ("---",) * len(header), *(["" if x is None else str(x) for x in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _gib(value: int | None) -> str | None:
    return None if value is None else f"{value / GIB:.2f}"


def _measured(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if "seconds" in entry]


def _constants(entries: list[Entry]) -> list[str]:
    rows = [[e["constant"], f"{e['measured']:.2e}", f"{e['assumed']:.2e}"] for e in entries if "constant" in e]
    return _table(("constant of negpo.logprobs.row_plan", "measured", "assumed"), rows)


def _head(entries: list[Entry]) -> list[str]:
    header = ("V", "H", "tokens", "labelled", "head", "variant", "ms", "peak GiB", "log p error", "gradient error")
    rows = [
        [
            f"{e['vocab']:,}", e["hidden"], f"{e['tokens']:,}", f"{e['share']:.0%}",
            "trained" if e["head_trained"] else "frozen", e["variant"], f"{1000 * e['seconds']:.2f}",
            _gib(e["peak_bytes"]), f"{e['logp_error']:.1e}", f"{e['grad_error']:.1e}",
        ]
        for e in _measured(entries)
    ]  # fmt: skip
    return _table(header, rows)


def _steps(entries: list[Entry]) -> list[str]:
    header = ("model", "method", "variant", "checkpointing", "s", "tokens/s", "MFU", "peak GiB")
    rows = [
        [
            e.get("model"), e["method"], e["variant"], {True: "yes", False: "no", None: ""}[e.get("checkpointing")],
            f"{e['seconds']:.3f}", None if "tokens_per_second" not in e else f"{e['tokens_per_second']:.0f}",
            None if e.get("mfu") is None else f"{e['mfu']:.0%}", _gib(e.get("peak_bytes")),
        ]
        for e in _measured(entries)
    ]  # fmt: skip
    return _table(header, rows)


def _plan(entries: list[Entry]) -> list[str]:
    rows = [
        [
            e["model"], e["method"], "yes" if e["checkpointing"] else "no", _gib(e["planned_bytes"]),
            _gib(e["peak_bytes"]), f"{e['planned_bytes'] / e['peak_bytes'] - 1:+.1%}",
        ]
        for e in entries
        if e.get("planned_bytes")
    ]  # fmt: skip
    return _table(("model", "method", "checkpointing", "planned GiB", "measured GiB", "off by"), rows)


def _rollouts(entries: list[Entry]) -> list[str]:
    names = ("start_seconds", "tokens_per_second", "sync_seconds", "sync_gap", "sleep_seconds", "wake_seconds")
    rows = [
        [e["model"], "yes" if e["cuda_graphs"] else "no", *(None if n not in e else f"{e[n]:.3g}" for n in names)]
        for e in entries
        if "tokens_per_second" in e
    ]
    return _table(("model", "CUDA graphs", *(name.replace("_", " ") for name in names)), rows)


def _curves(entries: list[Entry]) -> list[str]:
    rows = [
        [e["model"], e["steps"], *(f"{e['losses'][name][-1]:.4f}" for name in ("float32", "bf16")),
         f"{e['largest_difference']:.1e}"]
        for e in entries
        if "losses" in e
    ]  # fmt: skip
    return _table(("model", "steps", "last loss, float32", "last loss, bf16", "largest difference"), rows)
