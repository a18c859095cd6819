"""Two processes see the same losses and gradient norms as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unlearn_tiny import FORGET, history, make_trainer

HERE = Path(__file__).parent
CASES = {"npo": {}, "npo with kl": {"retain_loss": "kl"}, "graddiff": {}}


def first_steps(folder, world):
    """loss, gradient norm, and both parts' logs of one step on four rows, by case."""
    results = {}
    for case, settings in CASES.items():
        backend = {"ddp_backend": "gloo"} if world > 1 else {}
        trainer = make_trainer(
            case.split()[0], Path(folder) / f"{case}-{world}", batch=(4 // world, 1), max_steps=1,
            train_dataset=FORGET[:4], **backend, **settings,
        )  # fmt: skip
        trainer.train()
        results[case] = [history(trainer, key)[0] for key in ("loss", "grad_norm", "forget/logp", "retain/loss")]
    if trainer.is_world_process_zero():
        (Path(folder) / f"results-{world}.json").write_text(json.dumps(results))


def test_two_processes_take_the_step_of_one(tmp_path):
    # micro-batches hold unequal numbers of tokens, so the means only agree when both processes know the total
    first_steps(tmp_path, 1)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"results-{world}.json").read_text()) for world in (1, 2))
    assert one.keys() == two.keys() == CASES.keys()
    for case, values in one.items():
        assert two[case] == pytest.approx(values, rel=2e-5), case


if __name__ == "__main__":
    first_steps(sys.argv[1], int(os.environ["WORLD_SIZE"]))
