"""The retain model's side of forget quality and PrivLeak: computed here, or read from published logs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from negpo.data.io import atomic_write_json
from negpo.errors import ConfigError, DataError
from negpo.eval.metrics import original_truth_ratio

KIND = "negpo-retain-log"


@dataclass(frozen=True)
class RetainLog:
    """Forget-set truth ratios (N,) of a model that never saw the forget set, and its membership-inference AUCs.

    ``row_ids`` name the rows (empty for published logs, which do not say); ``mode`` is the evaluation mode, since the
    two modes define the ratio differently; ``template`` is the hash of how the questions were asked, "" where unknown.
    """

    mode: str
    forget: str
    truth_ratio: tuple[float, ...]
    aucs: dict[str, float] = field(default_factory=dict)
    row_ids: tuple[str, ...] = ()
    source: str = "computed"
    template: str = ""

    def save(self, path: str | Path) -> Path:
        return atomic_write_json(path, {"kind": KIND, **vars(self)})

    @classmethod
    def load(cls, path: str | Path, *, forget: str, mode: str) -> "RetainLog":
        """Read our own file, an open-unlearning ``TOFU_EVAL.json``, or a locuslab/tofu aggregated log.

        ``forget`` and ``mode`` are what the run at hand uses; a file that names others raises ConfigError.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"--retain-log {path}: there is no such file") from error
        except ValueError as error:
            raise DataError(f"not readable as JSON ({error})", file=str(path)) from error
        try:
            log = _read(content, str(path), forget)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a retain log lacks or misuses {error}; write it again", file=str(path)) from error
        log.check(forget, mode)
        return log

    def check(self, forget: str, mode: str) -> None:
        """Raise ConfigError unless this log belongs to the same forget set and mode."""
        for what, own, other in (("forget set", self.forget, forget), ("mode", self.mode, mode)):
            if own != other:
                raise ConfigError(f"the retain log {self.source} has {what} {own!r}, this evaluation uses {other!r}")

    def other_template(self, template: str) -> str | None:
        """What to say when this log's questions were asked in another template than ``template``; None: in the same,
        or it is not known."""
        if not self.template or self.template == template:
            return None
        return (
            f"the retain log {self.source} was measured with another prompt template: what differs may be the template "
            "and not what the models know. Measure the retain model again with --retain-model and the same --template"
        )

    def ratios_for(self, row_ids: Sequence[str]) -> np.ndarray:
        """Truth ratios to compare with those of the rows ``row_ids``: of the same rows, where the log names its rows.

        A log without names is used whole: the two samples of a KS test may differ in size.
        """
        if not self.row_ids:
            return np.array(self.truth_ratio, dtype=np.float64)
        known = dict(zip(self.row_ids, self.truth_ratio, strict=True))
        if missing := [row for row in row_ids if row not in known]:
            raise ConfigError(
                f"the retain log {self.source} lacks {len(missing)} of the {len(row_ids)} forget rows: "
                "it was computed on other data. Compute it again with --retain-model"
            )
        return np.array([known[row] for row in row_ids], dtype=np.float64)


def _read(content: Any, source: str, forget: str) -> RetainLog:
    if not isinstance(content, dict):
        raise TypeError("the top level, which must be an object")
    if content.get("kind") == KIND:
        ratios = tuple(float(value) for value in content["truth_ratio"])
        aucs = {name: float(value) for name, value in content["aucs"].items()}
        names, template = tuple(content["row_ids"]), str(content.get("template", ""))
        return RetainLog(content["mode"], content["forget"], ratios, aucs, names, source, template)
    if "forget_truth_ratio" in content:
        return _read_open_unlearning(content, source, forget)
    if "eval_log_forget.json" in content:
        log = content["eval_log_forget.json"]
        paraphrase = _in_row_order(log["avg_paraphrased_loss"])
        original = original_truth_ratio(paraphrase, _in_row_order(log["average_perturb_loss"]))
        return RetainLog("tofu-original", forget, tuple(original.tolist()), source=source)
    raise KeyError("forget_truth_ratio")


def _read_open_unlearning(content: dict[str, Any], source: str, forget: str) -> RetainLog:
    rows = _in_row_order(content["forget_truth_ratio"]["value_by_index"])
    ratios = tuple(float(row["score"]) for row in rows)
    aucs = {}
    for key, value in content.items():
        if key.startswith("mia_") and isinstance(value, dict) and value.get("agg_value") is not None:
            aucs[key.removeprefix("mia_")] = float(value["agg_value"])
    return RetainLog("open-unlearning", forget, ratios, aucs, source=source)


def _in_row_order(values: Any) -> list[Any]:
    """Published logs hold ``{"0": …, "1": …}`` or, in NPO's fork, lists."""
    return [values[key] for key in sorted(values, key=int)] if isinstance(values, dict) else list(values)
