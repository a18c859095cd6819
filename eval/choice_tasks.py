"""WMDP and MMLU as tasks of lm-eval, with questions from the Hub or from local files.

The task definitions are lm-eval's own YAML files: ours only ``include`` them, and for local data replace where the
questions come from. Prompt, choices and scoring therefore stay lm-eval's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from negpo.data.io import atomic_write_json
from negpo.data.rows import Row, check_rows, find_file, fingerprint_rows, read_file
from negpo.errors import ConfigError, DataError

Benchmark = Literal["wmdp", "mmlu"]
LETTERS = "ABCD"
SIZES = {"wmdp_bio": 1273, "wmdp_chem": 408, "wmdp_cyber": 1987, "wmdp": 3668, "mmlu": 14042}  # of the published sets


@dataclass(frozen=True)
class ChoiceTask:
    """One leaf task: lm-eval's ``name`` and definition file, the data set's ``subset``, and its ``category``."""

    name: str
    subset: str
    definition: Path
    category: str | None = None


@dataclass(frozen=True)
class ChoiceData:
    """Tasks to run and where their questions come from; ``files`` (test, dev) is empty for the Hub."""

    benchmark: Benchmark
    source: str
    tasks: tuple[ChoiceTask, ...]
    files: dict[str, dict[str, Path]]
    rows: dict[str, list[Row]]
    absent: tuple[str, ...] = ()

    def groups(self) -> dict[str, list[str]]:
        """Names of the tasks of each group, the whole benchmark last."""
        groups: dict[str, list[str]] = {}
        for task in self.tasks:
            if task.category:
                groups.setdefault(f"{self.benchmark}_{task.category}", []).append(task.name)
        return groups | {self.benchmark: [task.name for task in self.tasks]}

    def describe(self) -> dict[str, Any]:
        """Counts and content hashes, for the manifest."""
        return {
            "source": self.source,
            "tasks": [task.name for task in self.tasks],
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "sha256": {name: fingerprint_rows(rows) for name, rows in self.rows.items()},
        }


def load_choices(
    benchmark: Benchmark, source: str | Path | None = None, *, only: Sequence[str] = (), num_fewshot: int = 0
) -> ChoiceData:
    """Find the tasks and check local questions.

    Args:
        source: None for the Hub (cais/wmdp, cais/mmlu, through lm-eval), or a folder with ``<subset>_test`` files
            (``.json``, ``.jsonl``, ``.parquet``) or ``<subset>/test*`` as a snapshot of the Hub has.
        only: task names to keep, e.g. ``wmdp_bio``.
        num_fewshot: examples per prompt (MMLU; from the ``dev`` split).

    Raises:
        ConfigError: an unknown task, or examples where there are none. DataError: no file, or a row that is no question
            with four choices and the index of the right one.
    """
    tasks = known_tasks(benchmark)
    if unknown := [name for name in only if name not in tasks]:
        raise ConfigError(f"{unknown[0]!r} is no {benchmark} task; known: {', '.join(tasks)}")
    if num_fewshot < 0 or (num_fewshot and benchmark == "wmdp"):
        raise ConfigError(f"num_fewshot={num_fewshot}: wmdp is defined without examples, mmlu takes 0 or more")
    chosen = [tasks[name] for name in only or tasks]
    if source is None:
        return ChoiceData(benchmark, f"cais/{benchmark}", tuple(chosen), {}, {})
    folder = Path(source)
    if not folder.is_dir():
        raise DataError("there is no such folder; leave --data out to use the Hub", file=str(source))
    files: dict[str, dict[str, Path]] = {}
    for task in chosen:
        found = {split: _file(folder, task.subset, split) for split in ("test", "dev")}
        if found["test"] is None:
            continue
        if num_fewshot and found["dev"] is None:
            raise ConfigError(f"num_fewshot={num_fewshot} needs {task.subset}_dev in {folder}; add it or use 0")
        files[task.name] = {split: path for split, path in found.items() if path is not None}
    absent = tuple(task.name for task in chosen if task.name not in files)
    if not files or (only and absent):
        wanted = [tasks[name].subset for name in absent]
        raise DataError(f"no test questions of {', '.join(wanted[:3])}; expected <subset>_test.json", file=str(folder))
    rows = {name: _questions(paths["test"]) for name, paths in files.items()}
    return ChoiceData(benchmark, str(folder), tuple(tasks[name] for name in files), files, rows, absent)


@cache
def known_tasks(benchmark: Benchmark) -> dict[str, ChoiceTask]:
    """The leaf tasks that lm-eval ships for a benchmark, by name."""
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise ConfigError("wmdp and mmlu run through lm-eval: pip install 'negpo[lm-eval]'") from error
    import yaml

    folder = Path(lm_eval.tasks.__file__).parent / ("wmdp" if benchmark == "wmdp" else "mmlu/default")
    tasks = {}
    for path in sorted(folder.glob(f"{benchmark}_*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        category = content.get("tag", "").removeprefix("mmlu_").removesuffix("_tasks") or None
        tasks[content["task"]] = ChoiceTask(content["task"], content["dataset_name"], path, category)
    return tasks


def write_definitions(data: ChoiceData, folder: Path) -> None:
    """One definition per task, for ``TaskManager(include_path=folder)``. JSON is YAML."""
    for task in data.tasks:
        definition: dict[str, Any] = {"include": str(task.definition), "task": task.name}
        if paths := data.files.get(task.name):
            kind = "parquet" if paths["test"].suffix == ".parquet" else "json"
            files = {split: str(path.resolve()) for split, path in paths.items()}
            definition |= {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": files}}
            if "dev" not in files:
                definition["fewshot_split"] = None
        atomic_write_json(folder / f"{task.name}.yaml", definition)


def _file(folder: Path, subset: str, split: str) -> Path | None:
    return find_file(folder, f"{subset}_{split}") or find_file(folder, subset, split)


def _questions(path: Path) -> list[Row]:
    rows = read_file(path)
    check_rows(rows, str(path), required=("question",), required_lists=("choices",))
    for index, row in enumerate(rows):
        if len(row["choices"]) != len(LETTERS):
            raise DataError(f"{len(row['choices'])} choices; give four", file=str(path), row=index, field="choices")
        answer = row.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
            shown = json.dumps(answer, default=str)
            raise DataError(f"expected 0, 1, 2 or 3, found {shown}", file=str(path), row=index, field="answer")
    return rows
