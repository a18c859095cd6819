"""Bad inputs, drawn from a seed: commands, rows, rewards, checkpoints and configs must refuse them in one message.

    python scripts/fuzz.py --cases 5000 [--seed 0] [--only rows,configs] [--json report.json]

A case passes when it ends in time and either raises one of negpo's errors, whose message is a plain sentence, or is
accepted with exactly the value that was given. It fails on an error of another library, on a value that changed without
a word, and on files left behind. What is drawn depends on (seed, number of the case) alone, so a failure is repeated by
``--seed S --case N``. Cases run in this process; a sample of the commands also runs as a process of its own.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS = 60.0  # of one case
SURROGATE = "\ud800"
TEXTS = [
    "",
    " ",
    "x",
    "[/red]",
    "$HOME",
    "../..",
    "a\nb",
    SURROGATE,
    "\x00",
    "é" * 300,
    "1e-5",
    "nan",
    "None",
    "{",
    "[1",
]
NUMBERS = [0, -1, 1, 2**40, -(2**63), 10**400, 0.5, -0.5, float("nan"), float("inf"), -float("inf"), 1e308]
OTHERS = [None, True, False, [], [1], ["x"], {}, {"a": 1}, [[]], [None], {"": None}]


@dataclass
class Outcome:
    """What became of a case: "refused", "accepted", or why it failed."""

    kind: str
    case: int
    verdict: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict not in ("refused", "accepted")


def bad_value(rng: random.Random) -> Any:
    return rng.choice([rng.choice(TEXTS), rng.choice(NUMBERS), rng.choice(OTHERS)])


# ---- kinds of cases: each takes a generator and an empty folder, and raises or says what was silently changed -------


def configs(rng: random.Random, folder: Path) -> str:
    """One field of one method's config set to anything."""
    from negpo.methods import TABLE

    method = TABLE[rng.choice(list(TABLE))]
    config = getattr(import_module(method.module), method.config)
    name = rng.choice([item.name for item in fields(config) if item.init and item.name != "output_dir"])
    value = bad_value(rng)
    made = config(**{"output_dir": str(folder / "out"), "use_cpu": True, "report_to": "none", name: value})
    kept = getattr(made, name)
    kept = getattr(kept, "value", kept)
    resolved = value is None or isinstance(value, str | dict)  # texts and null are resolved: enums, JSON, defaults
    return "" if resolved or kept == value or [value] == kept else f"{name}={value!r} became {kept!r}"


def recipes(rng: random.Random, folder: Path) -> str:
    """A YAML recipe with one broken value, key or byte."""
    import yaml

    from negpo.methods import TABLE
    from negpo.trainers._script import parse

    method = rng.choice(list(TABLE))
    path = folder / "recipe.yaml"
    given = {
        rng.choice(["learning_rate", "max_steps", "beta", "seed", "output_dir", "lora_r", "nosuch", ""]): bad_value(rng)
    }
    with contextlib.suppress(yaml.YAMLError):
        path.write_text(yaml.safe_dump(given, allow_unicode=False), encoding="utf-8", errors="replace")
    if not path.exists():
        path.write_bytes(b"a: 1")
    if rng.random() < 0.4:
        path.write_bytes(
            rng.choice([b"\xff\xfe", b"a: [", b"- 1", b"", b"null", b"a: !!python/object:os.system x", b"\x00"])
        )
    parse(method, ["--config", str(path), "--use_cpu", "true"])
    return ""


def flags(rng: random.Random, folder: Path) -> str:
    """Flags of `negpo train` with values of any kind."""
    from negpo.methods import TABLE
    from negpo.trainers._script import parse

    method = rng.choice(list(TABLE))
    config = getattr(import_module(TABLE[method].module), TABLE[method].config)
    name = rng.choice([item.name for item in fields(config) if item.init])
    value = str(rng.choice([*TEXTS[:8], -1, 0, "nan", "inf", "true", "maybe", 10**30]))
    given = ["--output_dir", str(folder / "out"), "--use_cpu", "true", "--model_name_or_path", "m"]
    given += ["--forget_dataset", "f"] if TABLE[method].family == "unlearn" else ["--dataset", "d"]
    parse(method, [*given, f"--{name}", value])
    return ""


def forget_rows(rng: random.Random, folder: Path) -> str:
    """Rows for unlearning with one broken cell."""
    from negpo.trainers._unlearn.data import check_rows

    rows: list[Any] = [{"question": "Who?", "answer": "Bo."} for _ in range(3)]
    where = rng.randrange(3)
    change = rng.random()
    if change < 0.2:
        rows[where] = bad_value(rng)
    elif change < 0.6:
        rows[where] = rows[where] | {rng.choice(["question", "answer", "images", "tools", "messages"]): bad_value(rng)}
    else:
        rows[where] = {"input_ids": bad_value(rng), "labels": bad_value(rng)}
    check_rows(rows, "rows")
    return ""


def preference_rows(rng: random.Random, folder: Path) -> str:
    """Preference and fine-tuning rows with one broken cell."""
    from negpo.data.preference import Problems, read_preferences

    row = rng.choice(
        [
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "completion": "a", "label": True},
            {"prompt": "p", "completions": ["a", "b"], "scores": [1, 0]},
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            {"question": "q", "answer": "a"},
            {"text": "t"},
        ]
    )
    key = rng.choice([*row, "tools", "chat_template_kwargs", "images"])
    read_preferences([row | {key: bad_value(rng)}], Problems("rows"), answers_only=rng.random() < 0.5)
    return ""


def files(rng: random.Random, folder: Path) -> str:
    """Data files with broken bytes, lines and types."""
    from negpo.data.rows import load_rows

    path = folder / f"rows{rng.choice(['.json', '.jsonl', '.txt', '.parquet'])}"
    good = b'{"question": "q", "answer": "a"}\n'
    path.write_bytes(
        rng.choice(
            [
                b"",
                b"\xff\xfe\x00",
                good + b'{"question": ',
                b"[1, 2",
                b"null",
                b"[]",
                good * 2 + b"[]",
                b'{"question": "\\ud800", "answer": 3}',
                b"PAR1junk",
            ]
        )
    )
    load_rows(path)
    return ""


def grades(rng: random.Random, folder: Path) -> str:
    """Responses and golds of every kind through the grader, without workers."""
    from negpo.rewards.golds import validate_golds

    validate_golds([{"answer": bad_value(rng)}, {"answer": rng.choice(["1", "x^2", r"\frac{", "(1,2)", "9" * 5000])}])
    return ""


def rewards(rng: random.Random, folder: Path) -> str:
    """What a reward function may return."""
    from negpo.trainers._policy.rewards import GuardedReward

    value = rng.choice([bad_value(rng), [bad_value(rng)], [bad_value(rng), 1.0]])
    guard = GuardedReward(lambda **_: value, "f", timeout=5, max_timeouts=2, errors="stop")
    guard(completions=["a", "b"])
    return ""


def checkpoints(rng: random.Random, folder: Path) -> str:
    """Sealed checkpoints that were cut, edited or emptied."""
    from negpo.trainers._run import checkpoint

    target = folder / "checkpoint-1"
    target.mkdir()
    (target / "weights").write_bytes(b"x" * 100)
    checkpoint.seal(target, {"rows": "a"})
    seal = target / checkpoint.SEAL
    change = rng.randrange(5)
    if change == 0:
        (target / "weights").write_bytes(b"x" * 99)
    elif change == 1:
        seal.write_text(rng.choice(["", "{", "[]", "null", '{"files": 1, "checksums": 2}', '{"files": {}}']))
    elif change == 2:
        (target / "weights").unlink()
    elif change == 3:
        seal.write_bytes(b"\xff")
    else:
        shutil.rmtree(target)
    checkpoint.resolve(str(target), folder)
    return "a damaged checkpoint was accepted"


def templates(rng: random.Random, folder: Path) -> str:
    """A model's template file with anything in it."""
    from negpo.data.qa import TEMPLATE_FILE, QATemplate

    content = {"template": rng.choice([bad_value(rng), {rng.choice(["thinking", "user_start", "no"]): bad_value(rng)}])}
    (folder / TEMPLATE_FILE).write_bytes(
        rng.choice([json.dumps(content).encode("utf-8", "replace"), b"\xff", b"[", b"3"])
    )
    QATemplate.saved_in(folder)
    return ""


COMMANDS = [
    ["train", "npo", "--model_name_or_path", "/nowhere", "--forget_dataset", "/nowhere.json"],
    ["train", "nope"],
    ["train", "dpo", "--config", "/nowhere.yaml"],
    ["eval", "tofu", "--model", "/nowhere"],
    ["report", "nope"],
    ["report", "/nowhere"],
    ["audit", "--target", "/nowhere"],
    ["plan", "nope"],
    ["eval", "reasoning", "--model", "/nowhere", "--limit", "-1"],
    ["data", "nope"],
    ["lab", "nope"],
    ["nope"],
]


def commands(rng: random.Random, folder: Path) -> str:
    """Whole commands, with one argument exchanged."""
    from negpo.cli import main

    argv = list(rng.choice(COMMANDS))
    if rng.random() < 0.5:
        argv[rng.randrange(len(argv))] = str(rng.choice(TEXTS[:8])).replace("\n", " ")
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(argv)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    if "Traceback" in said.getvalue():
        return f"{argv} printed a traceback"
    return "" if status else f"{argv} ended with 0"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    kind.__name__: kind
    for kind in (
        configs, recipes, flags, forget_rows, preference_rows, files, grades, rewards, checkpoints, templates, commands,
    )
}  # fmt: skip


# ---- running ---------------------------------------------------------------------------------------------------------


def run_case(kind: str, seed: int, case: int) -> Outcome:
    """One case in this process."""
    from negpo.errors import NegpoError

    rng = random.Random(f"{seed}/{kind}/{case}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = KINDS[kind](rng, folder)
        verdict, detail = ("changed", changed) if changed else ("accepted", "")
    except NegpoError as error:
        plain = str(error).strip() and "Traceback" not in str(error)
        verdict, detail = ("refused", "") if plain else ("no message", repr(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict, detail = "foreign error", f"{type(error).__module__}.{type(error).__name__}: {error}"[:300]
    finally:
        left = [path.name for path in folder.rglob("*") if path.name.startswith(".saving") or path.suffix == ".tmp"]
        shutil.rmtree(folder, ignore_errors=True)
    if left:
        verdict, detail = "left behind", ", ".join(left)
    if time.monotonic() - start > SECONDS:
        verdict, detail = "too slow", f"{time.monotonic() - start:.0f} s"
    return Outcome(kind, case, verdict, detail)


def run_process(argv: list[str]) -> Outcome:
    """One command as a process of its own."""
    command = [sys.executable, "-m", "negpo", *argv]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 3, check=False)
    except subprocess.TimeoutExpired:
        return Outcome("process", 0, "too slow", " ".join(argv))
    said = done.stderr + done.stdout
    if "Traceback" in said:
        return Outcome("process", 0, "foreign error", f"{' '.join(argv)}: {said.strip().splitlines()[-1]}")
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    if done.returncode == 0 or len(errors) != 1:
        return Outcome(
            "process", 0, "no message", f"{' '.join(argv)}: status {done.returncode}, {len(errors)} messages"
        )
    return Outcome("process", 0, "refused")


def run(cases: int, seed: int, kinds: list[str], *, processes: int = 0) -> list[Outcome]:
    logging.disable(logging.CRITICAL)
    try:
        found = [run_case(kinds[case % len(kinds)], seed, case) for case in range(cases)]
    finally:
        logging.disable(logging.NOTSET)
    return found + [run_process(argv) for argv in COMMANDS[:processes]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="repeat this one")
    parser.add_argument("--only", help="kinds, separated by commas")
    parser.add_argument("--processes", type=int, default=0, help="so many commands as processes of their own")
    parser.add_argument("--json", type=Path, help="write the failures here")
    args = parser.parse_args(argv)
    kinds = args.only.split(",") if args.only else list(KINDS)
    if args.case is not None:
        found = [run_case(kinds[args.case % len(kinds)], args.seed, args.case)]
    else:
        found = run(args.cases, args.seed, kinds, processes=args.processes)
    table = Counter((outcome.kind, outcome.verdict) for outcome in found)
    for (kind, verdict), count in sorted(table.items()):
        print(f"{kind:16} {verdict:14} {count:6}")
    failures = [outcome for outcome in found if outcome.failed]
    for outcome in failures[:50]:
        print(f"{outcome.kind} case {outcome.case}: {outcome.verdict}: {outcome.detail}")
    if args.json:
        args.json.write_text(json.dumps([vars(outcome) for outcome in failures], indent=1))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
