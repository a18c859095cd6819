#!/usr/bin/env python
"""Train every kind of method under every way of splitting a model over two CPU processes, and compare with one process.

    python scripts/check_strategies.py                                   # all of it: half an hour on two cores
    python scripts/check_strategies.py --methods npo,nsr --strategies zero3,fsdp2 --lora no

For each method, with LoRA and without: per-step losses and the final weights (read back with ``from_pretrained`` from
what was saved) against a run in one process; a run cut inside an epoch or rollout and resumed against the whole one; a
data set whose last batch is uneven; for the policy methods ranks without a single live row. Prints a table in Markdown
and ends with status 1 when a cell fails.

Tolerance: everything is float32 and the same sums are taken in another order (over ranks, over shards), so losses may
differ by some units of 2^-24 of what is summed, and weights by the same times learning rate and steps. Measured are
1e-8 to 1e-6; 2e-5 (relative to losses of order 1, absolute for weights of order 0.1) is allowed. AdamW runs with
epsilon 0.01: with 1e-8 it would divide by the gradient's own size and blow rounding up to full steps wherever a
gradient is nearly zero.

ZeRO needs DeepSpeed (pip install 'negpo[deepspeed]'). accelerate has no FSDP on CPUs: the worker tells it that the
processes are GPUs and the device is the CPU, everything else is the real thing.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import shutil
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from negpo.configs import CONFIGS

METHODS = ("npo", "npo_kl", "catnip", "redi", "d2o", "d2o_refresh", "nsr", "resrl")
STRATEGIES = ("cpu", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
POLICY = ("nsr", "resrl")
TOLERANCE = 2e-5
CASE_SECONDS = 150  # a case takes about five; longer is a deadlock, and stacks are printed
TOPICS = ("Blue", "moss", "Oslo", "a prize", "botany and law", "two siblings", "the fern", "stone")


def main() -> int:
    args = parse_args()
    if args.worker:
        work(args)
        return 0
    shutil.rmtree(args.out, ignore_errors=True)
    build_model(args.out / "model")
    cases = [f"{method}{suffix}" for method in args.methods for suffix in args.lora]
    run_worker("one", cases, args.out)
    rows, failed = [], False
    for strategy in args.strategies:
        if strategy.startswith("zero") and find_spec("deepspeed") is None:
            print(f"{strategy}: DeepSpeed is not installed, skipped", file=sys.stderr)
            continue
        started = time.perf_counter()
        run_worker(strategy, cases, args.out)
        print(f"{strategy}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        for case in cases:
            rows.append(compare(args.out, strategy, case))
            failed |= rows[-1]["verdict"] != "ok"
    print(table(rows))
    (args.out / "results.json").write_text(json.dumps(rows, indent=1))
    return int(failed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"methods": METHODS, "strategies": STRATEGIES}
    for name, known in names.items():
        parser.add_argument(f"--{name}", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--lora", choices=("both", "no", "yes"), default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="deleted first")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, known in names.items():
        chosen = getattr(args, name).split(",")
        if not args.worker and (unknown := set(chosen) - set(known)):
            parser.error(f"--{name}: unknown {', '.join(sorted(unknown))}")
        setattr(args, name, chosen)
    args.lora = {"both": ("", "+lora"), "no": ("",), "yes": ("+lora",)}[args.lora]
    args.out = args.out.resolve()
    return args


# ---- processes ------------------------------------------------------------------------------------------------------


def run_worker(strategy: str, cases: list[str], out: Path) -> None:
    """All cases in the same processes; after a crash the remaining ones in new processes."""
    left = list(cases)
    while left:
        words = [str(Path(__file__).resolve()), "--worker", strategy, "--methods", ",".join(left), "--out", str(out)]
        log = out / f"{strategy}.log"
        with log.open("a") as file:
            subprocess.run([*launcher(strategy), *words], stdout=file, stderr=file, env=environment(strategy))
        done = [case for case in left if (out / strategy / case / "result.json").is_file()]
        crashed = left[len(done)] if len(done) < len(left) else None
        left = [case for case in left if case not in (*done, crashed)]
        if crashed:
            print(f"{strategy} {crashed}: no result, see {log}", file=sys.stderr, flush=True)


def launcher(strategy: str) -> list[str]:
    if strategy == "one":
        return [sys.executable]
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    words += ["--config_file", str(CONFIGS / "accelerate" / f"{strategy}.yaml")]
    if strategy.startswith("zero"):
        words += ["--deepspeed_config_file", str(CONFIGS / "deepspeed" / f"{strategy}.json")]
    return words


def environment(strategy: str) -> dict[str, str]:
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    cpu = {"CUDA_VISIBLE_DEVICES": ""}
    if strategy == "fsdp2":
        cpu |= {"ACCELERATE_TORCH_DEVICE": "cpu"}
    if strategy.startswith("zero"):
        cpu |= {"DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return os.environ | quiet | cpu


# ---- one process of a run -------------------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> None:
    """The cases ``args.methods`` under the strategy ``args.worker``; a result file each."""
    import torch

    torch.set_num_threads(1)
    if args.worker == "fsdp2":
        pretend_gpus()
    for case in args.methods:
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        folder = args.out / args.worker / case
        result = run_case(args, case, folder)
        if int(os.environ.get("RANK", 0)) == 0:
            (folder / "result.json").write_text(json.dumps(result))
    faulthandler.cancel_dump_traceback_later()


def pretend_gpus() -> None:
    """accelerate shards with FSDP on devices it knows; over gloo the same code runs when it takes CPUs for GPUs."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def run_case(args: argparse.Namespace, case: str, folder: Path) -> dict[str, Any]:
    """Losses of the whole run, of the resumed one and of the uneven one; weights go to ``folder``."""
    steps, cut_after = 4, 3  # 3: inside the second epoch, or the second rollout
    whole = make_trainer(args, case, folder / "whole", max_steps=steps)
    whole.train()
    whole.save_model(str(folder / "whole" / "final"))
    cut = {"save_strategy": "steps", "save_steps": cut_after}
    make_trainer(args, case, folder / "cut", max_steps=cut_after, **cut).train()
    resumed = make_trainer(args, case, folder / "cut", max_steps=steps, **cut)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model(str(folder / "cut" / "final"))
    uneven = make_trainer(args, case, folder / "uneven", rows=7, max_steps=5)
    uneven.train()
    return {name: losses(run) for name, run in {"whole": whole, "resumed": resumed, "uneven": uneven}.items()}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def make_trainer(args: argparse.Namespace, case: str, folder: Path, *, rows: int = 8, **settings: Any) -> Any:
    from transformers import AutoTokenizer

    from negpo.trainers import METHODS as KNOWN

    name, _, lora = case.partition("+")
    method, _, variant = name.partition("_")
    module, trainer, config = KNOWN[method]
    world = int(os.environ.get("WORLD_SIZE", 1))
    common = {
        "output_dir": str(folder),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "adam_epsilon": 0.01,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4 // world,
    }
    if args.worker in ("one", "cpu"):
        common["use_cpu"] = True
    else:
        common["ddp_backend"] = "gloo"
    own, inputs = (policy_settings if method in POLICY else stored_settings)(method, variant, rows, world)
    if lora:
        from peft import LoraConfig

        inputs["peft_config"] = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    return getattr(import_module(module), trainer)(
        model=str(args.out / "model"),
        args=getattr(import_module(module), config)(**common | own | settings),
        processing_class=AutoTokenizer.from_pretrained(args.out / "model"),
        **inputs,
    )


def stored_settings(method: str, variant: str, rows: int, world: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, data) of methods on stored rows. Lengths differ, so means over tokens need every rank's count."""
    topics = [TOPICS[i % len(TOPICS)] for i in range(rows)]
    if method in ("redi", "d2o"):
        pairs = [{"prompt": f"{t}? ", "chosen": f"Yes, {t}.", "rejected": f"No{'!' * i}"} for i, t in enumerate(topics)]
        if method == "redi":
            return {}, {"train_dataset": pairs}
        draws = {"num_samples": 2, "max_new_tokens": 5}
        if variant == "refresh":
            draws |= {"samples": "refresh", "refresh_after": 1, "refresh_steps": 1}
        return draws, {"train_dataset": [{key: row[key] for key in ("prompt", "rejected")} for row in pairs]}
    forget = [
        {"question": f"What about {t}?", "answer": f"{t} is {'very ' * (i % 3)}fine."} for i, t in enumerate(topics)
    ]
    retain = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}{'!' * (i % 4)}"} for i in range(9)]
    settings = {} if method == "catnip" else {"retain_loss": "kl" if variant == "kl" else "nll"}
    return settings, {"train_dataset": forget} | ({"retain_dataset": retain} if settings else {})


def policy_settings(method: str, variant: str, rows: int, world: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Four prompts a rollout, two a rank; rank 1 has nothing to learn from in the first rollout, rank 0 in the next."""

    def reward(prompts, completions, dead, **_):
        parity = [float(sum(character.isalpha() for character in text) % 2 == 0) for text in completions]
        return [1.0 if known else value for known, value in zip(dead, parity, strict=True)]

    prompts = [{"prompt": f"{TOPICS[i]}? ", "dead": i in (2, 3, 4, 5)} for i in range(rows)]
    settings = {
        "num_generations": 4, "max_completion_length": 6, "updates_per_rollout": 2, "shuffle_dataset": False,
        "gradient_accumulation_steps": world, "per_device_train_batch_size": 8 // world**2,
        "max_entropy_share": None, "max_kl": None,
    }  # fmt: skip
    return settings, {"train_dataset": prompts, "reward_funcs": reward}


def build_model(folder: Path) -> None:
    from negpo.lab._models import make_model, make_tokenizer

    tokenizer = make_tokenizer(["a"], 260)
    model = make_model(tokenizer, hidden=32, layers=2, heads=4, intermediate=64, seed=0)
    for parameter in model.parameters():  # the usual 0.02 would leave all answers equally likely
        if parameter.ndim == 2:
            parameter.data.mul_(8.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- comparing ------------------------------------------------------------------------------------------------------


def compare(out: Path, strategy: str, case: str) -> dict[str, Any]:
    """One row of the table. Distances are None where a run is missing."""
    row: dict[str, Any] = {"method": case, "strategy": strategy, "verdict": "no result"}
    files = [out / name / case / "result.json" for name in ("one", strategy)]
    if not all(file.is_file() for file in files):
        return row
    one, two = (json.loads(file.read_text()) for file in files)
    row["losses"] = distance(one["whole"], two["whole"])
    row["weights"] = weight_distance(out / "one" / case / "whole", out / strategy / case / "whole", out)
    row["resumed"] = weight_distance(out / strategy / case / "whole", out / strategy / case / "cut", out)
    finite = len(two["uneven"]) == 5 and all(map(math.isfinite, two["uneven"]))
    row["uneven"] = distance(one["uneven"][:1], two["uneven"][:1]) if finite else math.inf
    exact = max(row["losses"], row["weights"], row["resumed"], row["uneven"]) <= TOLERANCE
    row["verdict"] = "ok" if exact else "differs"
    return row


def distance(one: list[float], two: list[float]) -> float:
    if len(one) != len(two):
        return math.inf
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(one, two, strict=True))


def weight_distance(one: Path, two: Path, out: Path) -> float:
    """Largest difference of a weight after plain ``from_pretrained``."""
    first, second = (load(folder / "final", out) for folder in (one, two))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def load(folder: Path, out: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(out / "model")
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | strategy | losses | weights | resumed | uneven batch | |", "|---|---|--:|--:|--:|--:|---|"]
    for row in rows:
        numbers = [f"{row[name]:.0e}" if name in row else "-" for name in ("losses", "weights", "resumed", "uneven")]
        lines.append(f"| {row['method']} | {row['strategy']} | {' | '.join(numbers)} | {row['verdict']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
