"""DeepSpeed ZeRO-3 partitions the head: it must be whole in forward and backward and its gradient must come back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from negpo.logprobs import token_logprobs


def test_a_partitioned_head_is_gathered_in_forward_and_in_backward(monkeypatch):
    """A stand-in for DeepSpeed: the parameter is empty except inside ``GatheredParameters``."""
    whole, entered = torch.randn(50, 4), []

    class GatheredParameters:
        def __init__(self, params):
            self.params = params

        def __enter__(self):
            for param in self.params:
                param.data, param.ds_status = whole, SimpleNamespace(name="AVAILABLE")
            entered.append(len(self.params))

        def __exit__(self, *_):
            for param in self.params:
                param.data, param.ds_status = torch.empty(0), SimpleNamespace(name="NOT_AVAILABLE")

    zero = SimpleNamespace(GatheredParameters=GatheredParameters)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    weight = torch.nn.Parameter(whole.clone(), requires_grad=False)
    weight.ds_id, weight.ds_status, weight.data = 0, SimpleNamespace(name="NOT_AVAILABLE"), torch.empty(0)
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.randint(0, 50, (2, 3))
    logps, entropy = token_logprobs(hidden, weight, labels, labels >= 0, return_entropy=True)
    found = torch.autograd.grad(logps.sum() + entropy.sum(), hidden)
    assert entered == [1, 1]
    assert weight.numel() == 0
    logps, entropy = token_logprobs(hidden, whole, labels, labels >= 0, return_entropy=True)
    torch.testing.assert_close(found, torch.autograd.grad(logps.sum() + entropy.sum(), hidden))


@pytest.mark.deepspeed
@pytest.mark.parametrize("name", ["qwen2", "llama_tied"])
def test_zero3_training_gives_the_unsharded_gradients(name):
    pytest.importorskip("deepspeed")
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29700 + os.getpid() % 200),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(here / "zero3_worker.py"), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.split("RESULT")[1].splitlines()[0])
    assert max(result["differences"]) < 1e-6
    assert abs(result["kl"]) < 1e-6
