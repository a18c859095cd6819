"""Step time and peak memory of negpo's RL trainers against TRL's GRPOTrainer, given the same completions.

Completions are made up: lengths from a log-normal, right or wrong with a known share, the same rows on both sides. One
rollout feeds four optimiser steps. Generation is left out; what is timed is everything from the completions to the last
optimiser step of a rollout. Each side runs in its own process, sides in turns; the first rollout is not timed. Memory
is the growth of the resident set over training (CUDA: peak of allocated memory).

On a CPU much of the gap is the log-prob primitive. On CUDA both sides run the same kernel, and what remains is rows
left out and padding trimmed.

    python scripts/bench_rl.py                              # small: a minute or two on one core
    python scripts/bench_rl.py --vocab 151936 --hidden 512 --layers 8 --rows 128 --mean-length 256 --rounds 3
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

from _bench import add_out, reporting, resident

SIZES = {"vocab": 8192, "hidden": 64, "layers": 2, "rows": 64, "micro-batch": 8, "mean-length": 48, "limit": 192}
UPDATES, GROUP = 4, 8


def main() -> None:
    args = parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    with reporting(args.out):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    cases = [("nsr", accuracy) for accuracy in (0.3, 0.5, 0.7)] + [("grpo", 0.5)]
    sizes = ", ".join(f"{name} {getattr(args, name.replace('-', '_'))}" for name in SIZES)
    print(f"{sizes}; {UPDATES} optimiser steps per rollout, groups of {GROUP}, device {args.device}")
    print(f"{'':<22}{'TRL GRPO (s)':>14}{'negpo (s)':>12}{'ratio':>8}{'TRL (MiB)':>12}{'negpo (MiB)':>13}")
    for method, accuracy in cases:
        found = {"trl": [], "negpo": []}
        for _ in range(args.rounds):
            for side, runs in found.items():
                runs.append(spawn(args, side, method, accuracy))
        seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
        memory = {side: max(run["mib"] for run in runs) for side, runs in found.items()}
        label = f"{method}, {accuracy:.0%} right"
        ratio = seconds["negpo"] / seconds["trl"]
        print(f"{label:<22}{seconds['trl']:>14.2f}{seconds['negpo']:>12.2f}{ratio:>7.2f}x", end="")
        print(f"{memory['trl']:>12.0f}{memory['negpo']:>13.0f}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side; the median is printed")
    parser.add_argument("--rollouts", type=int, default=2, help="rollouts per run, the first one untimed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", default="negpo", help=argparse.SUPPRESS)
    parser.add_argument("--method", default="nsr", help=argparse.SUPPRESS)
    parser.add_argument("--accuracy", type=float, default=0.5, help=argparse.SUPPRESS)
    return parser.parse_args()


def spawn(args: argparse.Namespace, side: str, method: str, accuracy: float) -> dict[str, float]:
    """One training run in a fresh process."""
    command = [sys.executable, __file__, "--child", "--side", side, "--method", method, "--accuracy", str(accuracy)]
    for name in (*SIZES, "rollouts", "device", "clock", "seed"):
        command += [f"--{name}", str(getattr(args, name.replace("-", "_")))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} {method} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- one side --------------------------------------------------------------------------------------------------------


def child(args: argparse.Namespace) -> dict[str, float]:
    """Train with one side; seconds per rollout and memory growth in MiB."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CI": "1"}
    warnings.filterwarnings("ignore")
    import torch

    torch.manual_seed(args.seed)
    clock = make_clock(time.process_time if args.clock == "cpu" else time.perf_counter)
    with tempfile.TemporaryDirectory() as folder:
        trainer = (trl_trainer if args.side == "trl" else negpo_trainer)(args, folder, clock)
        before = resident("VmRSS") / 2**20
        trainer.train()
    times = clock.times
    seconds = (times[-1] - times[UPDATES - 1]) / (args.rollouts - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mib = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else peak - before
    return {"seconds": seconds, "mib": mib}


def make_clock(now):
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when each optimiser step ended."""

        def __init__(self):
            self.times: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(now())

    return Clock()


def completions(args: argparse.Namespace) -> list[list[int]]:
    """``rows`` completions; the first token is 2 on a right one, 3 on a wrong one; each group has its share of both."""
    rng = random.Random(args.seed)
    rows = []
    for row in range(args.rows):
        length = round(rng.lognormvariate(math.log(args.mean_length), 0.6))
        body = [rng.randrange(10, args.vocab) for _ in range(min(max(length, 4), args.limit) - 2)]
        # GROUP need not hold the share exactly: rounding is spread over the groups.
        right = math.floor((row + 1) * args.accuracy) > math.floor(row * args.accuracy)
        rows.append([2 if right else 3, *body, 1])
    return rows


def reward(prompts, completions, completion_ids, **_) -> list[float]:
    return [float(ids[0] == 2) for ids in completion_ids]


def model_and_tokenizer(args: argparse.Namespace):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 64),
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, args.vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    return Qwen2ForCausalLM(config), tokenizer


def settings(args: argparse.Namespace, folder: str) -> dict:
    """What both configs share: ``rows`` per rollout in four optimiser steps."""
    per_step = args.rows // UPDATES
    return {
        "output_dir": folder,
        "per_device_train_batch_size": args.micro_batch,
        "gradient_accumulation_steps": per_step // args.micro_batch,
        "num_generations": GROUP,
        "max_completion_length": args.limit,
        "max_steps": UPDATES * args.rollouts,
        "learning_rate": 1e-6,
        "logging_steps": UPDATES,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": args.device == "cpu",
        "bf16": args.device == "cuda",
        "gradient_checkpointing": False,
    }


def prompts(args: argparse.Namespace):
    from datasets import Dataset

    return Dataset.from_list([{"prompt": " ".join(f"w{10 + i + j}" for j in range(32))} for i in range(args.rows)])


def trl_trainer(args: argparse.Namespace, folder: str, clock):
    from trl import GRPOConfig, GRPOTrainer

    rows = completions(args)

    class Scripted(GRPOTrainer):
        def _generate_single_turn(self, *_, **__):
            return [list(ids) for ids in rows], None

    model, tokenizer = model_and_tokenizer(args)
    common = settings(args, folder)
    config = GRPOConfig(steps_per_generation=UPDATES * common["gradient_accumulation_steps"], **common)
    return Scripted(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=prompts(args),
        processing_class=tokenizer,
        callbacks=[clock],
    )


def negpo_trainer(args: argparse.Namespace, folder: str, clock):
    from negpo import trainers
    from negpo.rollout import Sample

    rows = completions(args)

    class Scripted:
        name = "transformers"
        model = None

        def generate(self, prompt_ids, sampling, **_):
            places = iter(range(args.rows))
            return [[Sample(p, i, list(rows[next(places)]), finish_reason="stop") for i in range(GROUP)]
                    for p in range(len(prompt_ids))]  # fmt: skip

        def sync(self, model):
            from negpo.rollout import SyncReport

            return SyncReport(max_gap=0.0, mean_gap=0.0, tolerance=1.0, tokens=1, seconds=0.0)

    names = {"nsr": ("NSRTrainer", "NSRConfig"), "grpo": ("GroupPolicyTrainer", "GroupPolicyConfig")}[args.method]
    trainer_class, config_class = (getattr(trainers, name) for name in names)
    model, tokenizer = model_and_tokenizer(args)
    return trainer_class(
        model=model,
        reward_funcs=reward,
        args=config_class(updates_per_rollout=UPDATES, max_entropy_share=None, max_kl=None, **settings(args, folder)),
        train_dataset=prompts(args),
        processing_class=tokenizer,
        callbacks=[clock],
        engine=Scripted(),
    )


if __name__ == "__main__":
    main()
