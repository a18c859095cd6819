"""Run by torchrun from test_rl_runs.py: trains and writes the weights. Arguments: folder, settings as JSON."""

import json
import sys
from pathlib import Path

import torch
from rl_tiny import history, make_policy_trainer, weights
from safetensors.torch import save_file


def main() -> None:
    torch.set_num_threads(1)
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    trainers = {}
    for method, own in settings.items():
        trainer = make_policy_trainer(method, folder / method, engine=None, **own)
        trainer.train()
        trainers[method] = trainer
    if next(iter(trainers.values())).is_world_process_zero():
        save_file({method: weights(trainer) for method, trainer in trainers.items()}, folder / "weights.safetensors")
        logs = {method: history(trainer, "rows/trained") for method, trainer in trainers.items()}
        (folder / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main()
