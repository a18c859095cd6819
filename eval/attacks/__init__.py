"""Attacks that bring forgotten knowledge back: relearning, quantisation, prompting, sampling, hidden states."""

from collections.abc import Callable
from functools import partial
from typing import Any

from negpo.errors import ConfigError
from negpo.eval.attacks.base import Attack, AttackData, AttackItem, AttackResult, Target, attack_data
from negpo.eval.attacks.probe import LinearProbe, LogitLens
from negpo.eval.attacks.prompting import Prompting
from negpo.eval.attacks.quantise import Quantise
from negpo.eval.attacks.relearn import Relearn
from negpo.eval.attacks.sampling import Sample

__all__ = ["ATTACKS", "Attack", "AttackData", "AttackItem", "AttackResult", "Target", "attack_data", "make_attack"]

ATTACKS: dict[str, Callable[..., Attack]] = {
    "relearn_forget": partial(Relearn, source="forget"),
    "relearn_paraphrase": partial(Relearn, source="paraphrase"),
    "relearn_retain": partial(Relearn, source="retain"),
    "quantise_8bit": partial(Quantise, bits=8, group=None),
    "quantise_4bit": partial(Quantise, bits=4, group=128),
    "quantise_nf4": partial(Quantise, bits=4, group=None, scheme="nf4"),
    "prompting": Prompting,
    "sampling": Sample,
    "logit_lens": LogitLens,
    "linear_probe": LinearProbe,
}


def make_attack(name: str, **settings: Any) -> Attack:
    """The attack of that name with its default settings, or those given in their place.

    Raises:
        ConfigError: no attack has this name, or a setting is unknown to it or out of range.
    """
    if name not in ATTACKS:
        raise ConfigError(f"there is no attack {name!r}; choose from {', '.join(ATTACKS)}")
    try:
        return ATTACKS[name](**settings)
    except TypeError as error:  # an unknown keyword, whose name the message carries
        raise ConfigError(f"attack {name}: {error}") from error
