"""Rankings of pairs (arXiv 2405.19534): does a model find the preferred answer more likely than the rejected one.

With s the log-prob sums of a pair's answers under the model and r those under the reference:

* ranking accuracy: share of pairs with s_w >= s_l; per token the same with means over the answer's tokens
* alignment gap c = r_l - r_w, above 0 where the reference ranks wrongly
* margin m = (s_w - r_w) - (s_l - r_l): what preference losses raise. m >= 0 is the "accuracy" that trainers log, which
  is another quantity: s_w >= s_l holds exactly where m >= c, so a loss can fall while no ranking changes
* the policy that optimises the RLHF objective has s_w - s_l = -c + (1 / beta) log(a / (1 - a)), where a share a of
  raters prefers the chosen answer; its accuracy is the idealised one
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from negpo.data.preference import Problems, Row, read_preferences
from negpo.data.preference_encode import Limits, encode_groups
from negpo.data.qa import Item, QATemplate
from negpo.errors import ConfigError, DataError
from negpo.eval.harness import HarnessRun, HarnessSettings, model_name
from negpo.eval.result import EvalResult
from negpo.eval.scoring import Report
from negpo.eval.statistics import binomial_interval
from negpo.models import check_vocabulary, hash_model, hash_tokenizer


@dataclass(frozen=True)
class PairsSettings(HarnessSettings):
    """What is measured.

    limit: the first rows of the file. beta: of the idealised policy; needs ``agreement`` in the rows. max_length:
    longer answers are left out, counted: a cut answer's log-prob is another quantity.
    """

    mode: str = "pairs"
    beta: float = 0.1
    max_length: int = 2048
    modes = ("pairs",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"beta={self.beta} must be above 0")


@dataclass(frozen=True)
class Pair:
    """Places of the two answers in ``items``; ``row`` of the file; ``agreement``: share of raters for the chosen."""

    chosen: int
    rejected: int
    row: int
    agreement: float | None = None


def ranking_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of pairs with s_w >= s_l, from log-probs (N,) each."""
    return float(np.mean(np.asarray(chosen) >= np.asarray(rejected)))


def idealised_accuracy(gap: ArrayLike, agreement: ArrayLike, beta: float) -> float:
    """Ranking accuracy of the policy that optimises the RLHF objective (arXiv 2405.19534, section 3).

    gap (N,): alignment gaps of the reference, nats. agreement (N,): shares of raters in [0, 1]; unanimous pairs (0 or
    1) are ranked by them alone.
    """
    shares = np.asarray(agreement, dtype=np.float64)
    with np.errstate(divide="ignore"):
        difference = -np.asarray(gap, dtype=np.float64) + (np.log(shares) - np.log1p(-shares)) / beta
    return float(np.mean(difference >= 0))


def evaluate_pairs(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    settings: PairsSettings | None = None,
    *,
    reference: Any = None,
    reference_tokenizer: Any = None,
    out_dir: str | Path | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> EvalResult:
    """Measure how a causal LM ranks the pairs of preference ``rows``, and with a ``reference`` what changed.

    Args:
        rows: in any layout of ``negpo.data.preference`` with both signs; ``agreement`` of a row is the share of raters
            that prefer its chosen answer. Of groups every chosen answer is paired with every rejected one.
        reference: the model before training, of the same tokenizer.
        out_dir, name, report: as in ``evaluate_tofu``.

    Raises:
        ConfigError: the reference has another tokenizer. DataError: a row that cannot be read, or no pair at all.
    """
    settings = settings or PairsSettings()
    other = reference_tokenizer is not None and hash_tokenizer(reference_tokenizer) != hash_tokenizer(tokenizer)
    if reference is not None and other:
        raise ConfigError("model and reference have different tokenizers: their log-probs are not of the same tokens")
    rows = list(rows)[: settings.limit]
    items, pairs, counts = _encode(rows, tokenizer, settings)
    name = model_name(model, name)
    values = {"limit": settings.limit, "max_length": settings.max_length, "beta": settings.beta}
    run = HarnessRun(
        "pairs",
        model,
        tokenizer,
        settings,
        data=_Described({"rows": len(rows), "pairs": len(pairs), **counts}),
        identity=values,
        template=QATemplate(),
        name=name,
        out_dir=out_dir,
        report=report,
    )
    check_vocabulary(model, (item["input_ids"] for item in items))
    sides = {"": _sums(run, items)}
    if reference is not None:
        check_vocabulary(reference, (item["input_ids"] for item in items))
        sides["reference_"] = _sums(run, items, model=reference, name=f"reference {hash_model(reference)}")
    run.rows = {"pairs": [_row(pair, sides) for pair in pairs]}
    metrics, details, missing = summarise(run.rows["pairs"], settings.beta)
    details["counts"] = counts
    return run.finish(EvalResult(metrics, missing, details, run.per_item(), run.manifest))


@dataclass(frozen=True)
class _Described:
    content: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        return self.content


def _encode(
    rows: Sequence[Row], tokenizer: Any, settings: PairsSettings
) -> tuple[list[Item], list[Pair], dict[str, int]]:
    problems = Problems("pairs", mode="drop")
    limits = Limits(max_length=settings.max_length, overlong="drop")
    groups, encoded = encode_groups(read_preferences(rows, problems), tokenizer, limits, problems)
    items: list[Item] = []
    pairs: list[Pair] = []
    equal = 0
    for group in groups:
        first = len(items)
        items += [group.row(k) for k in range(len(group))]
        agreement = _agreement(rows[group.source], group.source)
        for k, sign in enumerate(group.signs):
            for j, against in enumerate(group.signs):
                if sign <= 0 or against >= 0:
                    continue
                if group.completion_ids[k] == group.completion_ids[j]:
                    equal += 1
                else:
                    pairs.append(Pair(first + k, first + j, group.source, agreement))
    if not pairs:
        raise DataError("no row has a chosen and a rejected answer that differ", file="pairs")
    return items, pairs, {**dict(encoded.counts), "pairs with equal texts, left out": equal}


def _agreement(row: Row, index: int) -> float | None:
    value = row.get("agreement")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"is {value!r}; need a share between 0 and 1", file="pairs", row=index, field="agreement")
    return float(value)


def _sums(run: HarnessRun, items: Sequence[Item], **options: Any) -> list[tuple[float, int]]:
    """(log-prob sum, tokens) of every item."""
    return [(-row["nll"] * row["tokens"], row["tokens"]) for row in run.losses(items, **options)]


def _row(pair: Pair, sides: dict[str, list[tuple[float, int]]]) -> dict[str, Any]:
    row: dict[str, Any] = asdict(pair)
    for prefix, sums in sides.items():
        for side in ("chosen", "rejected"):
            row[f"{prefix}{side}_logp"], row[f"{side}_tokens"] = sums[row[side]]
    return {key: value for key, value in row.items() if key not in ("chosen", "rejected")}


def summarise(rows: Sequence[dict[str, Any]], beta: float) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
    """Metrics, details and what is missing, of pairs with ``chosen_logp``, ``rejected_logp``, ``chosen_tokens``,
    ``rejected_tokens``, and of a reference ``reference_chosen_logp``, ``reference_rejected_logp``."""
    column = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in rows[0] if key != "agreement"}
    chosen, rejected = column["chosen_logp"], column["rejected_logp"]
    right = chosen >= rejected
    per_token = chosen / column["chosen_tokens"] >= rejected / column["rejected_tokens"]
    shares = {
        "ranking_accuracy": right,
        "ranking_accuracy_per_token": per_token,
        # AFT's assessment misalignment (arXiv 2309.02144): the wrong trace has the higher mean log-prob
        "misalignment": ~per_token,
    }
    missing: dict[str, str] = {}
    details: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    if "reference_chosen_logp" in column:
        gap = column["reference_rejected_logp"] - column["reference_chosen_logp"]
        before = gap <= 0
        shares |= {
            "reference_ranking_accuracy": before,
            "margin_accuracy": chosen - rejected + gap >= 0,
            "flips_to_right": right & ~before,
            "flips_to_wrong": ~right & before,
        }
        metrics["alignment_gap"] = float(gap.mean())
        counts, edges = np.histogram(gap, bins=20)
        details["alignment_gap"] = {"counts": counts.tolist(), "edges": edges.tolist()}
        agreement = [row["agreement"] for row in rows]
        if None in agreement:
            missing["idealised_accuracy"] = "not every row says which share of raters agrees (agreement)"
        else:
            metrics["idealised_accuracy"] = idealised_accuracy(gap, agreement, beta)
    else:
        names = ("reference_ranking_accuracy", "margin_accuracy", "flips_to_right", "flips_to_wrong", "alignment_gap")
        missing |= dict.fromkeys(names, "no reference: pass the model before training")
    for name, values in shares.items():
        metrics[name] = float(values.mean())
        details[name] = {"interval": list(binomial_interval(int(values.sum()), len(values))), "n": len(values)}
    return metrics, details, missing
