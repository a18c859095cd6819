"""``negpo train METHOD``: a recipe and flags in, a trained checkpoint out.

``parse`` reads, ``build`` makes the trainer, ``run_training`` does both, trains and saves. One file for each family
says which settings its recipes have and which rows they name; a method with settings of its own declares them in its
config (``script_arguments``).
"""

from negpo.trainers._script.parse import parse
from negpo.trainers._script.run import build, run_training

__all__ = ["build", "parse", "run_training"]
