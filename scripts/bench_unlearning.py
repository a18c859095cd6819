"""Time and memory of one NPO step with a retain NLL: negpo.trainers against its floor and against the usual code.

A step is everything from a collated batch to the gradients of all weights; the optimiser is left out. The variants:

* ours          ``NPOTrainer.training_step``: one packed forward of forget and retain rows, answer tokens through tiles,
                cached reference log-probs; guards and statistics included
* floor         the bare model: ``model(input_ids, labels=...).loss.backward()`` on the same tokens without padding, all
                rows in one line with restarting position ids; logits of all tokens
* answer-floor  the same with logits of the answer tokens only
* usual         padded batches, full logits, ``log_softmax`` and ``gather``, a forward of a second model in every step,
                one forward for forget and one for retain rows: what published unlearning code does

Times are medians of interleaved repeats in one process. Memory is the growth of the resident peak (VmHWM) over the
resident size once the policy is loaded, in a fresh process per variant; gradients are in it (also subtracted in a
column), and so is the reference model of the usual code. The pass that fills our cache is not in the step.

    python scripts/bench_unlearning.py --out bench_unlearning.md        # Linux, about 3 minutes on 2 cores
    python scripts/bench_unlearning.py --vocab 5000 --hidden 56 --layers 1 --repeats 1

A real model on real rows, times only (``--clock cpu`` for a busy machine, ``--bf16`` for autocast of all variants):

    python scripts/bench_unlearning.py --model runs/models/smollm2 --forget forget01.json --retain retain99.json
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from _bench import add_out, machine, reporting, reset_peak, resident
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from negpo.trainers import NPOConfig, NPOTrainer

GIB = 2**30
BETA = 0.1
VARIANTS = ("ours", "floor", "answer-floor", "usual")


def make_policy(args: argparse.Namespace) -> Any:
    """Qwen2-0.5B's shape with fewer layers, tied head, float32; or the model of ``--model``."""
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, use_cache=False)
    torch.manual_seed(0)
    heads = args.hidden // 64 or 1
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 38 // 7,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=2 if heads % 2 == 0 else 1,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config)


def make_rows(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Rows as long as TOFU's: questions of 20 to 60 tokens, answers of 20 to 80; or the first ones of the files."""
    if args.model:
        lines = (args.forget if seed == 1 else args.retain).read_text(encoding="utf-8").splitlines()
        return [{key: json.loads(line)[key] for key in ("question", "answer")} for line in lines[: args.batch]]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(args.batch):
        question, answer = (int(torch.randint(20, high, (1,), generator=generator)) for high in (60, 80))
        ids = torch.randint(3, args.vocab, (question + answer,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * question + ids[question:]})
    return rows


def make_tokenizer(args: argparse.Namespace) -> Any:
    from tokenizers import Tokenizer, models

    if args.model:
        return AutoTokenizer.from_pretrained(args.model)
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


class Step:
    """One step's inputs, prepared for the variants asked for. The policy is shared, gradients are reset."""

    def __init__(self, args: argparse.Namespace, policy: Qwen2ForCausalLM, variants: list[str], folder: str):
        self.policy, self.bf16 = policy.train(), args.bf16
        self.now = time.process_time if args.clock == "cpu" else time.perf_counter
        config = NPOConfig(
            output_dir=folder,
            beta=BETA,
            pairing="fixed",
            per_device_train_batch_size=args.batch,
            train_sampling_strategy="sequential",
            use_cpu=True,
            disable_tqdm=True,
        )
        self.trainer = NPOTrainer(
            policy, config, make_rows(args, 1), retain_dataset=make_rows(args, 2), processing_class=make_tokenizer(args)
        )
        data = self.trainer.train_dataset
        if "ours" in variants:
            self.trainer._prepare_reference()
            self.trainer.current_gradient_accumulation_steps = 1
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False) if "usual" in variants else None
        items = [data[0, index] for index in range(args.batch)]
        self.batch = self.trainer.data_collator(items)
        self.rows = [item[part] for part in ("forget", "retain") for item in items]

    def run(self, name: str) -> float:
        """Seconds; the gradients stand in the policy."""
        self.policy.zero_grad(set_to_none=True)
        gc.collect()
        start = self.now()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            getattr(self, "run_" + name.replace("-", "_"))()
        return self.now() - start

    def run_ours(self) -> None:
        self.trainer.training_step(self.policy, self.batch)

    def run_floor(self) -> None:
        ids, positions, labels = self.line()
        self.policy(input_ids=ids, position_ids=positions, labels=labels).loss.backward()

    def run_answer_floor(self) -> None:
        ids, positions, labels = self.line()
        predicting = (labels[0, 1:] != -100).nonzero().squeeze(1)
        logits = self.policy(input_ids=ids, position_ids=positions, logits_to_keep=predicting).logits
        F.cross_entropy(logits[0].float(), labels[0, predicting + 1]).backward()

    def line(self) -> tuple[Tensor, Tensor, Tensor]:
        """All rows one after another, (1, N) each: ids, position ids that restart, labels."""
        join = lambda values: torch.tensor([[token for row in values for token in row]])
        positions = [range(len(row["input_ids"])) for row in self.rows]
        return join(row["input_ids"] for row in self.rows), join(positions), join(row["labels"] for row in self.rows)

    def run_usual(self) -> None:
        forget, retain = self.batch["forget"], self.batch["retain"]
        with torch.no_grad():
            before = sequence_logps(self.reference, forget)
        ratio = sequence_logps(self.policy, forget) - before
        npo = -2 / BETA * F.logsigmoid(-BETA * ratio).mean()
        inputs = {name: retain[name] for name in ("input_ids", "attention_mask", "labels")}
        (npo + self.policy(**inputs).loss).backward()


def sequence_logps(model: Qwen2ForCausalLM, rows: dict[str, Tensor]) -> Tensor:
    """(B,) sums over the answer, the way it is usually written."""
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1].float()
    labels = rows["labels"][:, 1:]
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (logps * (labels != -100)).sum(-1)


def measure_memory(args: argparse.Namespace, name: str) -> dict[str, int]:
    """Runs in a fresh process: growth of the resident peak from the loaded policy through one step."""
    small = argparse.Namespace(**{**vars(args), "vocab": 1000, "batch": 1, "layers": 1})
    with tempfile.TemporaryDirectory() as folder:
        Step(small, make_policy(small), [name], folder).run(name)  # library code and thread pools are in place
        policy = make_policy(args)
        gc.collect()
        reset_peak()
        before = resident("VmRSS")
        Step(args, policy, [name], folder).run(name)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in policy.parameters() if p.grad is not None)
    return {"peak": resident("VmHWM") - before, "gradients": gradients}


def memory_in_fresh_process(args: argparse.Namespace, name: str) -> dict[str, int]:
    flags = ["--vocab", args.vocab, "--hidden", args.hidden, "--layers", args.layers]
    flags += ["--batch", args.batch, "--threads", args.threads, "--measure-memory", name]
    command = [sys.executable, __file__, *map(str, flags)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def time_variants(args: argparse.Namespace) -> tuple[dict[str, float], float, Step]:
    """(median seconds by variant, largest relative gradient difference of ours to usual, the step)."""
    with tempfile.TemporaryDirectory() as folder:
        step = Step(args, make_policy(args), list(VARIANTS), folder)
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        step.run("usual")
        expected = [p.grad.clone() for p in step.policy.parameters()]
        step.run("ours")
        difference = max(
            ((p.grad - grad).abs().max() / grad.abs().max()).item()
            for p, grad in zip(step.policy.parameters(), expected, strict=True)
        )
        del expected
        for _ in range(args.repeats):
            for name in VARIANTS:
                seconds[name].append(step.run(name))
    return {name: statistics.median(values) for name, values in seconds.items()}, difference, step


def report_model(args: argparse.Namespace) -> str:
    """Times of one micro-step on a real model."""
    seconds, difference, step = time_variants(args)
    tokens = sum(len(row["input_ids"]) for row in step.rows)
    answers = sum(label != -100 for row in step.rows for label in row["labels"])
    rows = [[name, *(f"{seconds[name] / seconds[x]:.2f}" for x in ("floor", "usual"))] for name in VARIANTS]
    size = f"{args.batch} forget + {args.batch} retain rows, {tokens} tokens, {answers} of them answers"
    lines = [
        f"{args.model.name}, {size}; "
        f"{'bf16 autocast' if args.bf16 else 'float32'}, {args.repeats} interleaved repeats, {args.clock} clock.",
        "",
        "| variant | seconds | of floor | of usual |",
        "|---|---|---|---|",
        *(f"| {name} | {seconds[name]:.2f} | {floor} | {usual} |" for name, floor, usual in rows),
        "",
        f"Largest gradient difference of ours to usual: {difference:.1e} of the largest entry. {machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def report(args: argparse.Namespace) -> str:
    memory = {name: memory_in_fresh_process(args, name) for name in VARIANTS}
    seconds, difference, step = time_variants(args)
    tokens = sum(len(row["input_ids"]) for row in step.rows)
    answers = sum(label != -100 for row in step.rows for label in row["labels"])
    padded = sum(part["input_ids"].numel() for part in step.batch.values())
    lines = [
        f"V = {args.vocab:,}, H = {args.hidden}, {args.layers} layers, {args.batch} forget + {args.batch} retain rows, "
        f"{tokens} tokens ({padded} padded), {answers} of them answers; float32, {args.repeats} interleaved repeats.",
        "",
        "| variant | seconds | of floor | of usual | peak extra GiB | of usual | beyond gradients GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        peak, gradients = memory[name]["peak"], memory[name]["gradients"]
        cells = [
            name,
            f"{seconds[name]:.2f}",
            f"{seconds[name] / seconds['floor']:.2f}",
            f"{seconds[name] / seconds['usual']:.2f}",
            f"{peak / GIB:.2f}",
            f"{peak / memory['usual']['peak']:.2f}",
            f"{(peak - gradients) / GIB:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    command = " ".join(["python", "scripts/bench_unlearning.py", *sys.argv[1:]])
    lines += [
        "",
        f"ours / answer-floor: {seconds['ours'] / seconds['answer-floor']:.2f} of the time. Largest gradient "
        f"difference of ours to usual: {difference:.1e} of the largest entry.",
        "",
        f"`{command}` on {machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896, help="hidden size (default: Qwen2-0.5B)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="forget rows; as many retain rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, help="folder of a real model; needs --forget and --retain")
    parser.add_argument("--forget", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--retain", type=Path)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time")
    add_out(parser)
    parser.add_argument("--measure-memory", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model and not (args.forget and args.retain):
        parser.error("--model needs --forget and --retain")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        print(json.dumps(measure_memory(args, args.measure_memory)))
        return
    text = report_model(args) if args.model else report(args)
    with reporting(args.out):
        print(text, end="")


if __name__ == "__main__":
    main()
