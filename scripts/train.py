"""``negpo train`` for a launcher: ``accelerate launch scripts/train.py npo --config ...``."""

import sys

from negpo.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
