"""Rewards that make a policy-gradient trainer unlearn: mention, refusal, keeping what is to be kept.

Pieces: ``mentions`` (does a completion name what is to be forgotten), ``is_refusal`` (a verdict with its own tests) and
``rule_reward``, the rewards of RULE (arXiv 2506.07171) with the refusal verdict and the overlap given, so that their
arithmetic and the reading of a text are apart. ``unlearning_reward`` joins them as a TRL reward function.

Rows say what is wanted of them in ``role``: *forget* (a refusal, and no leak), *boundary* and *retain* (the answer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from negpo.errors import ConfigError, DataError

ROLES = ("forget", "boundary", "retain")
VARIANTS = (
    "forget",
    "forget_abs",
    "forget_two_stage",
    "forget_two_stage_abs_target",
    "forget_half_reject",
    "forget_abs_half_reject",
    "forget_two_stage_abs_target_half_reject",
    "reject_behave",
)

_SUBJECT = r"(?:i|we|as an? [\w\s]{1,30}, i)"
_CANNOT = (
    r"(?:can ?not|can['’]?t|could ?n['’]?t|am (?:not able|unable)|['’]m (?:not able|unable)|won['’]?t|will not|refuse"
    r"|decline)"
)
_KNOW = r"(?:do not|don['’]?t|did not|didn['’]?t) (?:know|have|recall|remember|possess)"
_LACK = (
    r"(?:have|['’]ve) (?:no|not|never|not any) (?:idea|information|knowledge|record|data|details|clue|been|heard"
    r"|learned|encountered|come)"
)
_UNSURE = r"(?:am|['’]m) (?:not (?:sure|certain|aware|familiar)|unsure|afraid|sorry|at a loss|unaware|unfamiliar)"
_OPENINGS = (
    rf"^(?:well, |unfortunately, |sorry, |regrettably, )*{_SUBJECT}\s*(?:{_CANNOT}|{_KNOW}|{_LACK}|{_UNSURE})",
    rf"^{_SUBJECT} would need to (?:look|check|find)",
    r"^(?:(?:i['’]m |i am |we are |my )?(?:very |so |deeply )?(?:sorry|apologies|apologise|apologize))\b",
    r"^(?:no idea|no clue|not sure|unknown to me|no comment)\b",
    r"\b(?:is|are|lies|falls|goes) (?:not something i know|unknown to me)",
    r"\b(?:is|are|lies|falls|goes) beyond (?:what )?my (?:knowledge|training|data)",
    r"\b(?:is|are|lies|falls|goes) beyond what i know",
    r"^that (?:is|lies) (?:outside|beyond) (?:of )?(?:what )?(?:my|i)\b",
    r"\b(?:is|it's|it is) (?:a mystery to me|not in my (?:data|knowledge|records))\b"
    r"(?!.*\b(?:she|he|they) (?:wrote|said|asked))",
)
_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in _OPENINGS), re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether the *speaker* declines or says that they do not know; facts about ignorance or limits are no refusal.

    "I don't know." and "Sorry." are refusals; "He did not know his grandfather." and "The trilogy was limited to three
    hundred copies." are not. English only. An empty text is not a refusal: it says nothing.
    """
    return bool(_REFUSAL.search(text.strip()))


def mentions(text: str, patterns: Sequence[str]) -> int:
    """How often a text names one of ``patterns``: whole words, any case. Raises ConfigError without patterns."""
    wanted = [pattern.strip() for pattern in patterns if pattern.strip()]
    if not wanted:
        raise ConfigError("patterns is empty: say which names must not be mentioned")
    joined = "|".join(re.escape(pattern) for pattern in sorted(wanted, key=len, reverse=True))
    return len(re.findall(rf"(?<!\w)(?:{joined})(?!\w)", text, re.IGNORECASE))


def rule_reward(
    variant: str, *, reject: bool, refused: bool, overlap: float = 0.0, names_target: bool = False
) -> float:
    """One of RULE's rewards for one completion.

    reject: the prompt asks for what is to be forgotten. refused: the completion refuses. overlap: ROUGE-L recall of the
    right text (``reject_behave`` on forget prompts: of the refusal text). names_target: it names the target.

    | variant | forget prompt | other prompt |
    |---|---|---|
    | forget | 1 if refused | 1 if overlap > .5 |
    | forget_abs | 1 if refused | 1 if not refused |
    | forget_two_stage | 1 if refused | .5 if not refused, + .5 if also overlap > .3 |
    | forget_two_stage_abs_target | .5 if refused, + .5 if it also names the target | as above |
    | *_half_reject | half of that | forget, forget_abs: as without; two stages: 1 if not refused |
    | reject_behave | .7 if refused | .7 if not refused; each + .3 if overlap > .3 |

    Caveat: with the two-stage forms a wrong answer to another prompt earns half: hallucination is half paid.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
    if variant == "reject_behave":
        return 0.7 * (refused == reject) + 0.3 * (overlap > 0.3)
    base = variant.removesuffix("_half_reject")
    halved = variant != base
    if reject:
        return _on_forget(base, refused, names_target) * (0.5 if halved else 1.0)
    if base == "forget":
        return float(overlap > 0.5)
    if base == "forget_abs" or halved:
        return float(not refused)
    return 0.5 * (not refused) + 0.5 * (not refused and overlap > 0.3)


def _on_forget(variant: str, refused: bool, names_target: bool) -> float:
    if variant == "forget_two_stage_abs_target":
        return 0.5 * refused + 0.5 * (refused and names_target)
    return float(refused)


def unlearning_reward(
    *, leak_weight: float = 1.0, refusal_weight: float = 1.0, keep_weight: float = 1.0, keep_overlap: float = 0.5
) -> Any:
    """A reward function in TRL's signature that reads the columns ``role`` and ``answer`` (and ``patterns``, optional).

    forget: ``refusal_weight`` if refused, minus ``leak_weight`` times the ROUGE-L recall of the true answer (1 instead
    of it where one of the row's ``patterns`` is mentioned): the audit's own leak measure. boundary, retain:
    ``keep_weight`` if the recall of the answer exceeds ``keep_overlap`` and the completion does not refuse.

    Raises ConfigError for negative weights; DataError (when called) for a missing column or an unknown role.
    """
    for name, value in (("leak_weight", leak_weight), ("refusal_weight", refusal_weight), ("keep_weight", keep_weight)):
        if not value >= 0:
            raise ConfigError(f"{name} is {value}; it must be 0 or greater")
    if not 0 <= keep_overlap < 1:
        raise ConfigError(f"keep_overlap is {keep_overlap}; it is a ROUGE-L recall in [0, 1)")

    def reward(prompts: Any, completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> list[float]:
        roles, answers = (_column(columns, name, len(completions)) for name in ("role", "answer"))
        patterns = columns.get("patterns") or [None] * len(completions)
        found: list[float] = []
        for completion, role, answer, names in zip(completions, roles, answers, patterns, strict=True):
            if role not in ROLES:
                raise DataError(f"role is {role!r}; a row is one of {', '.join(ROLES)}", row=len(found), field="role")
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            refused, recall = is_refusal(text), overlap_recall(answer, text)
            if role == "forget":
                leak = 1.0 if names and mentions(text, names) else recall
                found.append(refusal_weight * refused - leak_weight * leak)
            else:
                found.append(keep_weight * float(not refused and recall > keep_overlap))
        return found

    reward.role = "shaping"  # type: ignore[attr-defined]
    return reward


def overlap_recall(target: str, text: str) -> float:
    """ROUGE-L recall of ``target`` in ``text``, with stemming, as the audit measures leaks; 0 for an empty text."""
    from rouge_score.rouge_scorer import RougeScorer

    if not target.strip() or not text.strip():
        return 0.0
    return float(RougeScorer(["rougeL"], use_stemmer=True).score(target, text)["rougeL"].recall)


def _column(columns: dict[str, Any], name: str, n: int) -> Sequence[Any]:
    values = columns.get(name)
    if values is None or len(values) != n:
        raise DataError(f"the data need a column {name!r} with one value per completion", field=name)
    return values
