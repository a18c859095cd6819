"""Time and memory of one preference step: REDI, DPO and D²O of negpo.trainers against TRL's DPOTrainer.

A step is everything from a collated batch to the gradients of all weights; the optimiser is left out. Same pairs, same
model, a long prompt shared by the answers of a pair:

* trl           ``trl.DPOTrainer.training_step`` with its defaults: reference forward in every step, prompt run once for
                each answer
* trl-cached    the same with ``precompute_ref_log_probs=True``
* redi, dpo, d2o    ``training_step`` of ours; DPO and D²O read cached reference log-probs; D²O has K samples as long as
                    the chosen answers, so it scores K + 1 answers where the others score 2

Times are medians of interleaved repeats in one process. Memory is the growth of the resident peak (VmHWM) over the
resident size once the policy is loaded, in a fresh process per variant; gradients are in it, and so is TRL's reference
model. The passes that fill caches are not in the step.

    python scripts/bench_preference.py --out bench_preference.md        # Linux, about 4 minutes on 2 cores
    python scripts/bench_preference.py --vocab 5000 --hidden 64 --layers 1 --prompt 64 --answer 16 --repeats 1
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import datasets
import torch
import transformers
import trl
from _bench import add_out, machine, reporting, reset_peak, resident
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from negpo.trainers import D2OConfig, D2OTrainer, DPOConfig, DPOTrainer, REDIConfig, REDITrainer

GIB = 2**30
VARIANTS = ("trl", "trl-cached", "redi", "dpo", "d2o")
OURS = {"redi": (REDITrainer, REDIConfig), "dpo": (DPOTrainer, DPOConfig), "d2o": (D2OTrainer, D2OConfig)}


def make_policy(args: argparse.Namespace) -> Qwen2ForCausalLM:
    """Qwen2-0.5B's shape with fewer layers, tied head, float32."""
    torch.manual_seed(0)
    heads = args.hidden // 64 or 1
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 38 // 7,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=2 if heads % 2 == 0 else 1,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def make_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """One token per word ``wN``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<eos>": 0, "<pad>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, args.vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def make_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prompts of ``--prompt`` tokens, answers between half of and the whole of ``--answer`` tokens."""
    generator = torch.Generator().manual_seed(1)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return " ".join(f"w{i}" for i in torch.randint(3, args.vocab, (length,), generator=generator).tolist())

    rows = []
    for _ in range(args.pairs):
        prompt, answers = text(args.prompt, args.prompt), [text(args.answer // 2, args.answer) for _ in range(2)]
        samples = [text(args.answer // 2, args.answer) for _ in range(args.samples)]
        rows.append({"prompt": prompt + " ", "chosen": answers[0], "rejected": answers[1], "samples": samples})
    return rows


class Step:
    """One trainer with its collated batch; gradients are reset before every run."""

    def __init__(self, args: argparse.Namespace, policy: Qwen2ForCausalLM, name: str, folder: str):
        self.policy = policy.train()
        rows, tokenizer = make_rows(args), make_tokenizer(args)
        common = {
            "output_dir": f"{folder}/{name}",
            "per_device_train_batch_size": args.pairs,
            "max_length": None,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "report_to": [],
        }
        make = self._ours if name in OURS else self._trl
        self.trainer = make(name, common, rows, tokenizer)
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = next(iter(self.trainer.get_train_dataloader()))

    def _ours(self, name: str, common: dict, rows: list, tokenizer: Any) -> Any:
        trainer, config = OURS[name]
        fields = ("prompt", "rejected", "samples") if name == "d2o" else ("prompt", "chosen", "rejected")
        own = {"d2o": {"samples": "offline"}, "dpo": {"beta": 0.1}, "redi": {"alpha": 0.8}}[name]
        made = trainer(self.policy, config(**common, **own), [{k: row[k] for k in fields} for row in rows], tokenizer)
        made._prepare_reference()
        return made

    def _trl(self, name: str, common: dict, rows: list, tokenizer: Any) -> Any:
        cached = name == "trl-cached"
        config = trl.DPOConfig(**common, beta=0.1, gradient_checkpointing=False, precompute_ref_log_probs=cached)
        data = datasets.Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
        reference = None if cached else copy.deepcopy(self.policy)
        return trl.DPOTrainer(self.policy, reference, args=config, train_dataset=data, processing_class=tokenizer)

    def run(self) -> float:
        """Seconds; the gradients stand in the policy."""
        self.policy.zero_grad(set_to_none=True)
        gc.collect()
        start = time.perf_counter()
        self.loss = self.trainer.training_step(self.policy, self.batch)
        return time.perf_counter() - start


def measure_memory(args: argparse.Namespace, name: str) -> dict[str, int]:
    """Runs in a fresh process: growth of the resident peak from the loaded policy through one step.

    The trainer is made before the peak is reset, so that what fills its caches is not counted; its reference model is,
    because it stays.
    """
    small = argparse.Namespace(**{**vars(args), "vocab": 1000, "pairs": 1, "layers": 1, "prompt": 8, "answer": 4})
    with tempfile.TemporaryDirectory() as folder:
        Step(small, make_policy(small), name, folder).run()  # library code and thread pools are in place
    policy = make_policy(args)
    gc.collect()
    before = resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        step = Step(args, policy, name, folder)
        gc.collect()
        reset_peak()
        step.run()
        peak = resident("VmHWM")
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in policy.parameters() if p.grad is not None)
    return {"peak": peak - before, "gradients": gradients}


def memory_in_fresh_process(args: argparse.Namespace, name: str) -> dict[str, int]:
    sizes = ("vocab", "hidden", "layers", "pairs", "samples", "prompt", "answer", "threads")
    flags = [text for size in sizes for text in (f"--{size}", str(getattr(args, size)))]
    command = [sys.executable, __file__, *flags, "--measure-memory", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def time_variants(args: argparse.Namespace) -> tuple[dict[str, float], float, float]:
    """(median seconds by variant, difference of our DPO loss to TRL's, largest relative gradient difference)."""
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(args)
        steps = {name: Step(args, policy, name, folder) for name in VARIANTS}
        steps["trl"].run()
        expected, loss = [p.grad.clone() for p in policy.parameters()], float(steps["trl"].loss)
        steps["dpo"].run()
        gap = max(
            ((p.grad - grad).abs().max() / grad.abs().max()).item()
            for p, grad in zip(policy.parameters(), expected, strict=True)
        )
        off = abs(float(steps["dpo"].loss) - loss)
        del expected
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(args.repeats):
            for name in VARIANTS:
                seconds[name].append(steps[name].run())
    return {name: statistics.median(values) for name, values in seconds.items()}, off, gap


def report(args: argparse.Namespace) -> str:
    memory = {name: memory_in_fresh_process(args, name) for name in VARIANTS}
    seconds, off, gap = time_variants(args)
    lines = [
        f"V = {args.vocab:,}, H = {args.hidden}, {args.layers} layers, {args.pairs} pairs, prompts of {args.prompt} "
        f"tokens, answers of {args.answer // 2} to {args.answer}, D²O with K = {args.samples}; float32, "
        f"{args.repeats} repeats.",
        "",
        "| variant | seconds | of trl | peak extra GiB | of trl | of trl-cached | beyond gradients GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        peak, gradients = memory[name]["peak"], memory[name]["gradients"]
        cells = [
            name,
            f"{seconds[name]:.2f}",
            f"{seconds[name] / seconds['trl']:.2f}",
            f"{peak / GIB:.2f}",
            f"{peak / memory['trl']['peak']:.2f}",
            f"{peak / memory['trl-cached']['peak']:.2f}",
            f"{(peak - gradients) / GIB:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    command = " ".join(["python", "scripts/bench_preference.py", *sys.argv[1:]])
    lines += [
        "",
        f"Our DPO loss differs from TRL's by {off:.1e}, its gradient by at most {gap:.1e} of the largest entry.",
        "",
        f"`{command}` on {machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, trl {trl.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=448, help="hidden size (default: half of Qwen2-0.5B's)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="K of D²O")
    parser.add_argument("--prompt", type=int, default=384, help="tokens of the shared prompt")
    parser.add_argument("--answer", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_out(parser)
    parser.add_argument("--measure-memory", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    if args.measure_memory:
        print(json.dumps(measure_memory(args, args.measure_memory)))
        return
    text = report(args)
    with reporting(args.out):
        print(text, end="")


if __name__ == "__main__":
    main()
