"""WMDP (arXiv 2403.03218) and MMLU (arXiv 2009.03300) through lm-eval as a library.

lm-eval asks and scores; its summed log-probabilities of the four letters are kept, and accuracies, standard errors
and group values are computed from them here. Tasks run one by one, so that an interrupted run goes on. What must not be
ignored silently is passed explicitly and recorded: batch size, chat template, examples, and the dtype of the logits.
"""

import copy
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.eval.choice_tasks import LETTERS, SIZES, ChoiceData, load_choices, write_definitions
from negpo.eval.manifest import build_manifest
from negpo.eval.result import EvalResult
from negpo.eval.scoring import ItemStore, Report, counting
from negpo.eval.statistics import binomial_interval, mean_stderr, pooled_stderr, weighted_mean
from negpo.models import check_vocabulary, evaluating

__all__ = ["ChoiceData", "ChoiceSettings", "evaluate_choices", "load_choices"]

CHANCE = 1 / len(LETTERS)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ChoiceSettings:
    """How the questions are asked. batch_size changes speed and memory only; limit: first questions of every task."""

    batch_size: int = 16
    chat_template: bool = False
    num_fewshot: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")


def evaluate_choices(
    model: Any,
    tokenizer: Any,
    data: ChoiceData,
    settings: ChoiceSettings | None = None,
    *,
    out_dir: str | Path | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> EvalResult:
    """Accuracy of a causal LM on every task of ``data`` and on its groups.

    ``metrics`` holds ``<task>_acc``; ``details`` its standard error, interval, size (and the published size), whether
    it is at chance, ties, and non-finite log-probs. Rows keep choices and log-probs but not the questions: WMDP asks
    that they are not spread. Raises ConfigError when the model cannot be asked as told.
    """
    settings = settings or ChoiceSettings()
    if settings.chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the tokenizer has no chat template; leave --chat-template out")
    texts = [row["question"] for rows in data.rows.values() for row in rows]
    check_vocabulary(model, (tokenizer(text)["input_ids"] for text in [*texts, "Answer: A B C D"]))
    identity = {key: value for key, value in asdict(settings).items() if key != "batch_size"}
    template = QATemplate(chat_template=settings.chat_template)
    manifest = build_manifest(
        model,
        tokenizer,
        benchmark=data.benchmark,
        settings=identity,
        data=data.describe(),
        template=template,
        name=name,
    )
    store = ItemStore(Path(out_dir) / "items.jsonl" if out_dir else None, manifest["hash"])
    _ask(model, tokenizer, data, settings, store, report)

    rows = {task.name: store.rows[task.name]["rows"] for task in data.tasks}
    result = summarise(rows, data, limited=settings.limit is not None)
    result.manifest = manifest
    result.details["asked"] = {
        "batch_size": settings.batch_size,
        "chat_template": settings.chat_template,
        "num_fewshot": settings.num_fewshot,
        "dtype": manifest["dtype"],
    }
    result.details["warnings"] = _warnings(manifest["dtype"], result, data)
    if out_dir is not None:
        result.save(out_dir)
    return result


def summarise(rows: Mapping[str, Rows], data: ChoiceData, *, limited: bool = False) -> EvalResult:
    """Task and group values from the rows of every task. Groups weight by size and pool errors, as lm-eval does."""
    result = EvalResult({}, {}, {}, [row for part in rows.values() for row in part], {})
    for name, part in rows.items():
        _add(result, name, part, mean_stderr([row["acc"] for row in part]), limited)
    for name, tasks in data.groups().items():
        part = [row for task in tasks for row in rows[task]]
        sizes = [len(rows[task]) for task in tasks]
        errors = [mean_stderr([row["acc"] for row in rows[task]]) for task in tasks]
        _add(result, name, part, pooled_stderr(errors, sizes) if min(sizes) > 1 else math.nan, limited)
        if f"{name}_acc" in result.metrics:
            accuracies = [result.metrics[f"{task}_acc"] for task in tasks]
            result.metrics[f"{name}_acc"] = weighted_mean(accuracies, sizes)
    if data.absent:
        result.details["absent_tasks"] = list(data.absent)
    return result


def _add(result: EvalResult, name: str, rows: Rows, stderr: float, limited: bool) -> None:
    key, size = f"{name}_acc", len(rows)
    broken = sum(not all(math.isfinite(float(value)) for value in row["logps"]) for row in rows)
    if broken:  # the argmax of NaN is the first choice: an accuracy near chance that means nothing
        result.missing[key] = f"{broken} of {size} questions have log-probs that are not finite"
        return
    correct = sum(row["acc"] for row in rows)
    low, high = binomial_interval(correct, size)
    published = SIZES.get(name)
    result.metrics[key] = correct / size
    result.details[key] = {
        "stderr": stderr,
        "interval": [low, high],
        "interval_method": "Clopper-Pearson, 95 %",
        "n": size,
        "published_n": published,
        "size_differs": published is not None and not limited and size != published,
        "at_chance": low <= CHANCE <= high,
        "ties": sum(sorted(row["logps"])[-1] == sorted(row["logps"])[-2] for row in rows),
        "chosen": dict(sorted(Counter(LETTERS[row["chosen"]] for row in rows).items())),
    }


def _warnings(dtype: str, result: EvalResult, data: ChoiceData) -> list[str]:
    """What makes the accuracies doubtful, in words."""
    found = []
    if dtype in ("float16", "bfloat16"):
        ties = sum(detail.get("ties", 0) for name, detail in result.details.items() if name.endswith("_acc"))
        found.append(
            f"logits are {dtype}: log-probs of close choices may tie ({ties} do); compare with --dtype float32"
        )
    whole = result.details.get(f"{data.benchmark}_acc")
    if whole and whole["at_chance"]:
        meaning = "nothing else it answers can be trusted" if data.benchmark == "mmlu" else "check MMLU beside it"
        found.append(f"{data.benchmark} is at chance ({CHANCE:.0%} lies in the 95 % interval): {meaning}")
    for name, detail in result.details.items():
        if isinstance(detail, dict) and detail.get("size_differs"):
            found.append(f"{name}: {detail['n']} questions, the published set has {detail['published_n']}")
    return found


def _ask(model: Any, tokenizer: Any, data: ChoiceData, settings: ChoiceSettings, store: ItemStore, report) -> None:
    """Every task that is not in the store yet, through ``lm_eval.simple_evaluate``."""
    todo = [task.name for task in data.tasks if task.name not in store.rows]
    progress = counting(report, "asking", len(data.tasks))
    if progress and len(todo) < len(data.tasks):
        progress(len(data.tasks) - len(todo))
    if not todo:
        return
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # a copy, because HFLM gives its tokenizer a pad token
    wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=settings.batch_size)
    with tempfile.TemporaryDirectory() as folder, evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        write_definitions(data, Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        for name in todo:
            output = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=[name],
                task_manager=manager,
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                apply_chat_template=settings.chat_template,
                bootstrap_iters=0,  # accuracies need none
                # its other seeds would reseed the caller's global generators; nothing here draws from them
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )
            store.add([{"key": name, "rows": _rows(name, output["samples"][name])}])
            if progress:
                progress(1)


def _rows(task: str, samples: Sequence[Mapping[str, Any]]) -> Rows:
    rows = []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        logps = [float(response[0]) for response in sample["filtered_resps"]]
        chosen = max(range(len(logps)), key=lambda index: (logps[index], -index))  # ties: the lowest, as in lm-eval
        right = int(sample["target"])
        row = {"set": task, "row": sample["doc_id"], "chosen": chosen, "answer": right, "acc": int(chosen == right)}
        rows.append(row | {"logps": logps})
    return rows
