"""One rank of a ZeRO-3 run: prints how far the gathered gradients are from those of the unsharded model, per step."""

import json
import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad
from logprobs_support import tiny_batch, tiny_model

from negpo.logprobs import model_token_logprobs, retain_kl_from_models


def main(name: str) -> None:
    batch = tiny_batch()
    expected = tiny_model(name)
    model_token_logprobs(expected, *batch).logps.mean().backward()
    grads = {key: parameter.grad for key, parameter in expected.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    model = tiny_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    differences = []
    for _ in range(2):  # a head that stays gathered, or a gradient that is not reduced, breaks the second step
        engine.backward(model_token_logprobs(engine, *batch).logps.mean())
        pairs = [(safe_get_full_grad(p), grads[key]) for key, p in model.named_parameters()]
        differences.append(max((ours - theirs).abs().max().item() for ours, theirs in pairs))
        engine.step()
    kl = retain_kl_from_models(engine, tiny_model(name), batch[0], batch[1], batch[1].bool())
    print("RESULT", json.dumps({"differences": differences, "kl": kl.item()}))


if __name__ == "__main__":
    main(sys.argv[1])
