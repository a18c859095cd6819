"""One training run, as ``negpo train`` does it, for a launcher: ``accelerate launch scripts/train.py npo --config ...``."""

import sys

from negpo.trainers._script import run_training

if __name__ == "__main__":
    run_training(sys.argv[1], sys.argv[2:])
