"""Parts b, c and d: training steps in bf16, adapters, and the forecast of `negpo plan` beside the measured peaks.

A step is forward, backward and a fused AdamW update of a model with random weights; reference log-probs come from a
cache, as negpo trains. Tokens count padding, of which there is none here.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _gpu.common import Context, Skip, make_model
from torch import Tensor

from negpo.logprobs import model_token_logprobs
from negpo.objectives import clipped_policy_loss, dpo_loss, nll_loss, npo_loss, redi_loss
from negpo.plan import Settings, make_plan, shape_of
from negpo.plan.settings import DEVICES

Batch = dict[str, Tensor]
MODELS = ("Qwen2.5-1.5B", "Qwen2.5-0.5B")
METHODS = ("npo", "redi", "dpo", "nsr", "grpo")
ROWS, LENGTH, ANSWER = 8, 1024, 0.5
PLANNED = {"npo": "npo", "redi": "redi", "dpo": "dpo"}


def run_full(context: Context) -> None:
    for name in MODELS[: 1 if context.rehearse else None]:
        for checkpointing in (False, True):
            model = trained_model(context, name, checkpointing)
            for method in METHODS:
                case = {"part": "b", "model": name, "method": method, "checkpointing": checkpointing}
                context.attempt(case | {"variant": "negpo"}, lambda m=method, x=model: step_of(context, x, ours(m), m))
            for method, variant, loss in USUAL if not checkpointing else ():
                case = {"part": "b", "model": name, "method": method, "checkpointing": False, "variant": variant}
                context.attempt(case, lambda f=loss, x=model: step_of(context, x, f, None))
            del model
            release(context)
    context.attempt({"part": "b", "method": "GRPO", "variant": "TRL's trainer"}, lambda: rl_bench(context))


def run_adapters(context: Context) -> None:
    for quantised in (False, True):
        case = {"part": "c", "model": "Qwen2.5-7B", "method": "npo", "variant": "QLoRA" if quantised else "LoRA"}
        context.attempt(case, lambda q=quantised: adapter_step(context, "Qwen2.5-7B", q))


def trained_model(context: Context, name: str, checkpointing: bool) -> Any:
    model = make_model(context, name)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def release(context: Context) -> None:
    gc.collect()
    if not context.rehearse:
        torch.cuda.empty_cache()


def make_batch(context: Context, vocab: int) -> Batch:
    """Rows of equal length, the second half of each an answer; ``ref`` (B, T-1) stands for cached log-probs."""
    rows, length = (4, 24) if context.rehearse else (ROWS, LENGTH)
    torch.manual_seed(1)
    ids = torch.randint(2, vocab, (rows, length), device=context.device)
    labels = ids.clone()
    labels[:, : int(length * (1 - ANSWER))] = -100
    return {"ids": ids, "labels": labels, "ref": torch.full((rows, length - 1), -10.0, device=context.device)}


def ours(method: str) -> Callable[[Any, Batch], Tensor]:
    def loss(model: Any, batch: Batch) -> Tensor:
        found = model_token_logprobs(model, batch["ids"], None, batch["labels"])
        return objective(method, found.logps, found.mask, batch["ref"])

    return loss


def objective(method: str, logps: Tensor, mask: Tensor, ref: Tensor) -> Tensor:
    """First half of the rows: forget, chosen or right; second half: retain, rejected or wrong."""
    half = logps.shape[0] // 2
    first, second = slice(0, half), slice(half, None)
    sums = lambda x: x.where(mask, 0.0)
    if method == "npo":
        forget, _ = npo_loss(logps[first], ref[first], mask[first], beta=0.1)
        return forget + nll_loss(logps[second], mask[second])[0]
    if method == "redi":
        return redi_loss(logps[first], mask[first], logps[second], mask[second], alpha=0.8)[0]
    if method == "dpo":
        sides = (logps[first], mask[first], logps[second], mask[second], ref[first], ref[second])
        return dpo_loss(*sides, beta=0.1)[0]
    advantages = logps.new_ones(logps.shape[0])
    advantages[second] = -1.0
    if method == "nsr":
        advantages[first] = 0.0
    old = sums(logps.detach())
    return clipped_policy_loss(logps, old, advantages, mask)[0]


def usual_npo(model: Any, batch: Batch) -> Tensor:
    half = batch["ids"].shape[0] // 2
    logps = sequence_logps(model, batch, slice(0, half))
    npo = -2 / 0.1 * F.logsigmoid(-0.1 * (logps + 10.0)).mean()
    return npo + model(input_ids=batch["ids"][half:], labels=batch["labels"][half:]).loss


def usual_dpo(model: Any, batch: Batch) -> Tensor:
    half = batch["ids"].shape[0] // 2
    logps = sequence_logps(model, batch, slice(None))
    return -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean()


USUAL = (
    ("npo", "open-unlearning's formula, full logits", usual_npo),
    ("dpo", "TRL's default DPO loss, full logits", usual_dpo),
)


def sequence_logps(model: Any, batch: Batch, rows: slice) -> Tensor:
    """(B,) sums over the answer, the way it is usually written."""
    logits = model(input_ids=batch["ids"][rows]).logits[:, :-1].float()
    labels = batch["labels"][rows, 1:]
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (logps * (labels != -100)).sum(-1)


def step_of(context: Context, model: Any, loss: Callable[[Any, Batch], Tensor], method: str | None) -> dict[str, Any]:
    batch = make_batch(context, model.config.vocab_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, fused=not context.rehearse)

    def step() -> None:
        value = loss(model, batch)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    before = 0 if context.rehearse else torch.cuda.memory_allocated()
    measured = context.measure(step, repeats=4, most=2.0)
    tokens = batch["ids"].numel()
    measured |= {"tokens_per_second": tokens / measured["seconds"], "mfu": utilisation(context, model, measured)}
    if method in PLANNED and not context.rehearse:
        measured["peak_bytes"] += before  # the plan counts weights as well
        measured["planned_bytes"] = forecast(model, method)
    return measured


def utilisation(context: Context, model: Any, measured: dict[str, Any]) -> float | None:
    """Operations of the model (no recomputation) over the H100's dense bf16 peak; both kinds of Hopper share it."""
    if context.rehearse or hasattr(model, "peft_config"):  # a frozen base has fewer operations than the plan counts
        return None
    return settings_plan(model, "npo").operations.training / measured["seconds"] / DEVICES["h100"].flops


def forecast(model: Any, method: str) -> int:
    return settings_plan(model, method).memory.peak.total


def settings_plan(model: Any, method: str) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    total = torch.cuda.get_device_properties(0).total_memory
    rows = {"npo": ROWS // 2, "redi": ROWS // 2, "dpo": ROWS // 2}[method]
    settings = Settings(
        method=method,
        micro_batch=rows,
        sequence_length=LENGTH,
        answer_share=ANSWER,
        gradient_checkpointing=bool(base.is_gradient_checkpointing),
        memory=total,
    )
    return make_plan(shape_of(base.config, "measured"), settings)


def adapter_step(context: Context, name: str, quantised: bool) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantised:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise Skip("bitsandbytes is not installed")
        if context.rehearse:
            raise Skip("4-bit weights need a GPU")
    base = quantise(context, name) if quantised else make_model(context, name)
    if quantised:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules=targets))
    return step_of(context, model, ours("npo"), None)


def quantise(context: Context, name: str) -> Any:
    """Random weights saved in bf16 and read back in 4 bits, as a user's checkpoint would be."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        make_model(context, name).save_pretrained(folder)
        release(context)
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": context.dtype}
        four_bits = BitsAndBytesConfig(**settings)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits, device_map={"": 0})


def rl_bench(context: Context) -> dict[str, Any]:
    """scripts/bench_rl.py on this device: GRPO of TRL and of negpo on the same completions, seconds per rollout."""
    script = Path(__file__).resolve().parents[1] / "bench_rl.py"
    toy = {"rows": 32, "vocab": 256, "hidden": 32, "limit": 24, "mean-length": 12}
    real = {"rows": 64, "vocab": 151_936, "hidden": 896, "layers": 24, "limit": 1024, "mean-length": 300}
    sizes = [str(part) for pair in (toy if context.rehearse else real).items() for part in (f"--{pair[0]}", pair[1])]
    found = {}
    for side in ("trl", "negpo"):
        flags = ["--child", "--side", side, "--method", "grpo", "--device", context.device.type]
        command = [sys.executable, str(script), *flags, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode:
            raise RuntimeError(f"{side}: {done.stderr.strip()[-200:]}")
        found[side] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"seconds": found["trl"]["seconds"], "negpo_seconds": found["negpo"]["seconds"], "mib": found["trl"]["mib"]}
