"""The worlds of verifiable problems by name; as a program, it trains the model of one, see `problem_lab`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from negpo.lab.arithmetic_build import ARITHMETIC
from negpo.lab.countdown import COUNTDOWN
from negpo.lab.problem_lab import LabSize, train_model

WORLDS = {world.name: world for world in (ARITHMETIC, COUNTDOWN)}

if __name__ == "__main__":
    name, lab, seed, size = sys.argv[1:]
    train_model(WORLDS[name], Path(lab), int(seed), LabSize(**json.loads(size)))
