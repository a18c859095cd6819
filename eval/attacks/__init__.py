"""Attacks that bring forgotten knowledge back: relearning, quantisation, prompting, sampling, hidden states."""

from negpo.eval.attacks.base import Attack, AttackData, AttackItem, AttackResult, attack_data

__all__ = ["Attack", "AttackData", "AttackItem", "AttackResult", "attack_data"]
