"""Parts e and f: vLLM rollouts with weight sync, and the loss curves of 50 NPO steps in bf16 and float32."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from typing import Any

import torch
from _gpu.common import Context, Skip, make_model
from _gpu.steps import make_batch, objective

from negpo.logprobs import model_token_logprobs

STEPS = 50


def run_curves(context: Context) -> None:
    """Equal weights, batches and learning rate; float32 weights under autocast, as `--bf16 true` trains."""
    steps = 5 if context.rehearse else STEPS
    for source in ("Qwen2.5-0.5B", "smollm2"):
        context.attempt({"part": "f", "model": source, "steps": steps}, lambda s=source: curves(context, s, steps))


def curves(context: Context, source: str, steps: int) -> dict[str, Any]:
    losses = {name: curve(context, source, steps, name == "bf16") for name in ("float32", "bf16")}
    pairs = zip(losses["float32"], losses["bf16"], strict=True)
    return {"losses": losses, "largest_difference": max(abs(a - b) for a, b in pairs)}


def curve(context: Context, source: str, steps: int, half: bool) -> list[float]:
    model = load(context, source)
    batch = make_batch(context, model.config.vocab_size)
    with torch.no_grad():
        batch["ref"] = model_token_logprobs(model, batch["ids"], None, batch["labels"]).logps
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    losses = []
    for _ in range(steps):
        with torch.autocast(context.device.type, torch.bfloat16, enabled=half):
            found = model_token_logprobs(model, batch["ids"], None, batch["labels"])
            loss = objective("npo", found.logps, found.mask, batch["ref"])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def load(context: Context, source: str) -> Any:
    if source != "smollm2":
        return make_model(context, source, torch.float32)
    folder = context.models / "smollm2"
    if context.rehearse or not folder.is_dir():
        raise Skip(f"{folder} is not there (python scripts/get_model.py smollm2 {folder})")
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(context.device).train()


def run_rollouts(context: Context) -> None:
    """vLLM beside the trainer: throughput without and with CUDA graphs, a verified sync and its gap, sleep and wake.

    Rehearsed with the transformers engine, which takes the same calls.
    """
    for graphs in (False, True):
        case = {"part": "e", "model": "Qwen2.5-1.5B", "cuda_graphs": graphs}
        context.attempt(case, lambda g=graphs: rollouts(context, "Qwen2.5-1.5B", g))


def rollouts(context: Context, name: str, graphs: bool) -> dict[str, Any]:
    from negpo.rollout import Sampling, make_engine

    if not context.rehearse and importlib.util.find_spec("vllm") is None:
        raise Skip("vllm is not installed")
    if context.rehearse and graphs:
        raise Skip("CUDA graphs need a GPU")
    model = make_model(context, name)
    rows, length = (4, 8) if context.rehearse else (256, 256)
    prompts = torch.randint(2, 500, (rows, 32), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        if context.rehearse:
            engine = make_engine("transformers", model)
        else:
            model.save_pretrained(folder)
            share = {"gpu_memory_utilization": 0.4, "enable_sleep_mode": True}
            engine = make_engine("vllm", folder, max_model_len=512, enforce_eager=not graphs, **share)
        measured = {"start_seconds": time.perf_counter() - begin}
    sampling = Sampling(max_new_tokens=length, stop_token_ids=())
    engine.generate(prompts, sampling)
    begin = time.perf_counter()
    groups = engine.generate(prompts, sampling)
    measured["tokens_per_second"] = sum(len(s.token_ids) for g in groups for s in g) / (time.perf_counter() - begin)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    report = engine.sync(model)
    measured |= {"sync_seconds": report.seconds, "sync_gap": report.max_gap, "sync_bytes": report.bytes_sent}
    if not context.rehearse:
        measured |= sleep_and_wake(engine)
    engine.close()
    return measured


def sleep_and_wake(engine: Any) -> dict[str, Any]:
    """vLLM's own sleep mode (level 1: weights to host memory, cache dropped); negpo has no method of its own for it."""
    before, seconds = torch.cuda.mem_get_info()[0], {}
    for name, call in (("sleep_seconds", lambda: engine._llm.sleep(level=1)), ("wake_seconds", engine._llm.wake_up)):
        begin = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - begin
        if name == "sleep_seconds":
            seconds["slept_bytes"] = torch.cuda.mem_get_info()[0] - before
    return seconds
