"""Time, memory and gradients of token log-probabilities: negpo.logprobs against full logits and TRL.

One step is forward and backward from states (B, T, H) and a head (V, H) to both gradients, with the log-probabilities
of the answer tokens weighted at random. The variants:

* ours        ``negpo.logprobs.token_logprobs``: answer tokens only, tiles
* flattened   logits of all tokens as one (B*T, V) matrix, fused cross entropy, ignored labels
* usual       logits (B, T, V), upcast, ``log_softmax``, ``gather``, mask: what most trainers do
* trl         ``trl.kernels.ChunkedLogProbFunction`` on all positions, as TRL 1.16 calls it on a CPU

Times are medians of interleaved repeats in one process. Memory is the growth of the resident peak (VmHWM) over the
resident size before the step, in a fresh process per variant that has warmed up on a tiny step. The two gradients that
every method must return (states and head) are part of that growth and are subtracted in the "beyond gradients" column.
Gradient differences are the largest entry of the difference over the largest entry of the gradient (states and head),
against ``flattened`` in float32 and against full logits of the answer tokens in float64, which tells whose error it is.

    python scripts/bench_logprobs.py --out bench_logprobs.md        # Linux, about 6 minutes on 2 cores
    python scripts/bench_logprobs.py --vocab 8000 --batch 2 --length 64 --memory-tokens 128 256 --repeats 1
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _bench import add_out, machine, reporting, reset_peak, resident
from torch import Tensor
from torch.nn import functional as F

from negpo.logprobs import token_logprobs

GIB = 2**30


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return token_logprobs(hidden, weight, labels, mask)


def flattened(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    logits = hidden.flatten(0, 1) @ weight.T
    targets = labels.where(mask, -100).flatten()
    return -F.cross_entropy(logits, targets, ignore_index=-100, reduction="none").view_as(labels)


def usual(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1) * mask


def trl(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    states = hidden.flatten(0, 1)
    logps, *_ = ChunkedLogProbFunction.apply(states, weight, None, labels.flatten(), 1.0, 32768, None, 1.0, ())
    return logps.view_as(labels) * mask


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "flattened": flattened,
    "usual": usual,
    "trl": trl,
}


class Step:
    """Inputs of one benchmark step, the same for every variant."""

    def __init__(self, args: argparse.Namespace, batch: int, length: int):
        generator = torch.Generator().manual_seed(0)
        shape = (batch, length)
        self.hidden = torch.randn(*shape, args.hidden, generator=generator)
        self.hidden.requires_grad_()
        self.weight = torch.randn(args.vocab, args.hidden, generator=generator).mul_(args.hidden**-0.5)
        self.weight.requires_grad_(not args.frozen)
        self.labels = torch.randint(0, args.vocab, shape, generator=generator)
        self.mask = torch.rand(shape, generator=generator) < args.answer_share
        self.upstream = torch.randn(shape, generator=generator)

    def run(self, name: str) -> tuple[float, tuple[Tensor | None, Tensor | None]]:
        """(seconds, gradients of states and head)."""
        self.hidden.grad = self.weight.grad = None
        gc.collect()
        start = time.perf_counter()
        logps = VARIANTS[name](self.hidden, self.weight, self.labels, self.mask)
        (logps * self.upstream).sum().backward()
        return time.perf_counter() - start, (self.hidden.grad, self.weight.grad)

    def exact_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients from full logits of the answer tokens in float64."""
        states = self.hidden.detach().double().requires_grad_()
        weight = self.weight.detach().double().requires_grad_(self.weight.requires_grad)
        logps = flattened(
            states[self.mask].unsqueeze(0),
            weight,
            self.labels[self.mask].unsqueeze(0),
            self.mask[self.mask].unsqueeze(0),
        )
        (logps * self.upstream[self.mask]).sum().backward()
        return states.grad, weight.grad

    def gradient_bytes(self) -> int:
        return 4 * (self.hidden.numel() + (self.weight.numel() if self.weight.requires_grad else 0))


def measure_memory(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Runs in a fresh process: growth of the resident peak during one step."""
    tiny = argparse.Namespace(**{**vars(args), "vocab": 1000})
    Step(tiny, 1, 16).run(name)
    step = Step(args, args.batch, args.length)
    gc.collect()
    reset_peak()
    before = resident("VmRSS")
    step.run(name)
    return {"peak": resident("VmHWM") - before, "gradients": step.gradient_bytes()}


def memory_in_fresh_process(args: argparse.Namespace, name: str, tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure-memory", name, *shared_flags(args)]
    command += ["--batch", str(max(1, tokens // args.length)), "--length", str(min(tokens, args.length))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def shared_flags(args: argparse.Namespace) -> list[str]:
    flags = ["--vocab", args.vocab, "--hidden", args.hidden, "--answer-share", args.answer_share]
    return [str(flag) for flag in [*flags, "--threads", args.threads]] + (["--frozen"] if args.frozen else [])


def relative_difference(found: Tensor | None, expected: Tensor | None) -> float:
    """Largest difference, relative to the largest entry of the expected gradient."""
    if found is None or expected is None:
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max()).item()


def time_variants(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, list[float]]]:
    """By variant: median seconds; largest relative gradient difference to ``flattened`` and to float64."""
    step = Step(args, args.batch, args.length)
    seconds: dict[str, list[float]] = {name: [] for name in args.variants}
    difference: dict[str, list[float]] = {}
    references = (step.run("flattened")[1], step.exact_gradients())
    for repeat in range(args.repeats):
        for name in args.variants:
            elapsed, gradients = step.run(name)
            seconds[name].append(elapsed)
            if repeat == 0:
                difference[name] = [max(map(relative_difference, gradients, reference)) for reference in references]
            del gradients
    return {name: statistics.median(values) for name, values in seconds.items()}, difference


def report(args: argparse.Namespace) -> str:
    tokens = args.batch * args.length
    memory = {name: memory_in_fresh_process(args, name, tokens) for name in args.variants}
    growth = {n: memory_in_fresh_process(args, "ours", n) for n in args.memory_tokens}
    seconds, difference = time_variants(args)
    lines = [
        f"V = {args.vocab:,}, H = {args.hidden}, {args.batch} x {args.length} tokens, {args.answer_share:.0%} answer "
        f"tokens, float32, head {'frozen' if args.frozen else 'trained'}, forward and backward, {args.repeats} "
        "interleaved repeats.",
        "",
        "| variant | seconds | of flattened | peak extra GiB | beyond gradients GiB "
        "| gradient: to flattened | to float64 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.variants:
        peak, gradients = memory[name]["peak"] / GIB, memory[name]["gradients"] / GIB
        ratio = seconds[name] / seconds["flattened"]
        cells = [name, f"{seconds[name]:.2f}", f"{ratio:.2f}", f"{peak:.2f}", f"{peak - gradients:.2f}"]
        cells += [f"{value:.1e}" for value in difference[name]]
        lines.append(f"| {' | '.join(cells)} |")
    if "trl" in seconds:
        lines += ["", f"ours / trl: {seconds['ours'] / seconds['trl']:.2f} of the time."]
    lines += ["", "Memory of ours against the number of tokens:", ""]
    lines += ["| tokens | peak extra GiB | beyond gradients GiB |", "|---|---|---|"]
    for n, entry in growth.items():
        lines.append(f"| {n} | {entry['peak'] / GIB:.2f} | {(entry['peak'] - entry['gradients']) / GIB:.3f} |")
    command = " ".join(["python", "scripts/bench_logprobs.py", *sys.argv[1:]])
    lines += ["", f"`{command}` on {machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}."]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896, help="hidden size (default: Qwen2-0.5B)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--answer-share", type=float, default=0.3)
    parser.add_argument("--frozen", action="store_true", help="no head gradient (LoRA)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    add_out(parser)
    parser.add_argument("--measure-memory", choices=list(VARIANTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        print(json.dumps(measure_memory(args, args.measure_memory)))
        return
    text = report(args)
    with reporting(args.out):
        print(text, end="")


if __name__ == "__main__":
    main()
