#!/usr/bin/env python
"""Tokens per second of the rollout engines and of transformers' generate, and the proof of many weight syncs.

    python scripts/bench_rollout.py                      # speed, one table
    python scripts/bench_rollout.py --sync-updates 50    # engines agree, 50 verified syncs of each kind of trainer

Needs no checkpoint: a Qwen2 of the lab's size with random weights is built. Every engine draws the same number of
completions of the same prompts at temperature 1; lengths differ because each prompt-sample pair ends where its own
end-of-sequence token falls. vLLM rows appear where vLLM is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from _bench import add_out, reporting
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from negpo.rollout import RolloutEngine, Sampling, make_engine
from negpo.rollout.decoding import left_pad

END = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="width; heads are 32 wide")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sync-updates", type=int, default=0, metavar="N", help="verify N syncs instead of timing")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with reporting(args.out):
        for line in sync_table(args) if args.sync_updates else speed_table(args):
            print(line, flush=True)


def build(args: argparse.Namespace, *, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    heads = args.hidden // 32
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            max_position_embeddings=1024,
            initializer_range=0.1,
            tie_word_embeddings=tied,
            eos_token_id=END,
        )
    ).eval()


def make_prompts(args: argparse.Namespace) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, args.vocabulary) for _ in range(rng.randrange(12, 40))] for _ in range(args.prompts)]


def speed_table(args: argparse.Namespace) -> Iterator[str]:
    """Completion tokens per second; tokens after the end of a sequence do not count."""
    model, prompts = build(args), make_prompts(args)
    # About half of the samples end early, as in a reasoning model with a token limit.
    stops = tuple(range(END, END + max(1, args.vocabulary // args.max_new_tokens)))
    sampling = Sampling(n=args.samples, max_new_tokens=args.max_new_tokens, stop_token_ids=stops)
    rows: list[tuple[str, Callable[[], int]]] = [
        ("transformers generate", lambda: generate_with_transformers(model, prompts, sampling)),
        ("negpo transformers engine", engine_run(make_engine("transformers", model, max_rows=512), prompts, sampling)),
    ]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    yield f"{size:.1f} M parameters, {args.prompts} x {args.samples} samples of up to {args.max_new_tokens} tokens,"
    yield f"{args.threads} thread(s), torch {torch.__version__}, fastest of {args.repeats}"
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("vllm") is not None:
            model.save_pretrained(folder)
            started = time.perf_counter()
            engine = make_engine("vllm", folder, max_model_len=512, max_rows=512)
            yield f"vllm engine started in {time.perf_counter() - started:.1f} s"
            rows.append(("negpo vllm engine", engine_run(engine, prompts, sampling)))
        yield from ("", "| engine | tokens | s | tokens/s | x generate |", "|---|---|---|---|---|")
        baseline = 0.0
        for name, run in rows:
            tokens, seconds = fastest(run, args.repeats)
            baseline = baseline or tokens / seconds
            rate = tokens / seconds
            yield f"| {name} | {tokens} | {seconds:.2f} | {rate:.0f} | {rate / baseline:.2f} |"


def engine_run(engine: RolloutEngine, prompts: list[list[int]], sampling: Sampling) -> Callable[[], int]:
    return lambda: sum(len(s.token_ids) for row in engine.generate(prompts, sampling) for s in row)


@torch.no_grad()
def generate_with_transformers(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling) -> int:
    """All samples in one left-padded batch, the way most evaluation scripts call it."""
    ids, mask = left_pad(prompts, model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=sampling.n,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.stop_token_ids or ()),
        pad_token_id=0,
    )
    stopped = torch.isin(output[:, ids.shape[1] :], torch.tensor(sampling.stop_token_ids))
    return int((stopped.cumsum(-1) - stopped.long() == 0).sum())


def fastest(run: Callable[[], int], repeats: int) -> tuple[int, float]:
    """(tokens, seconds) of the repetition with the best rate, after one that warms up."""
    run()
    timed = []
    for _ in range(repeats):
        started = time.perf_counter()
        tokens = run()
        timed.append((tokens, time.perf_counter() - started))
    return max(timed, key=lambda pair: pair[0] / pair[1])


def sync_table(args: argparse.Namespace) -> Iterator[str]:
    """Every sync is verified inside `sync` (it raises otherwise); the table shows the largest gap over all of them."""
    names = ["transformers"] + ["vllm"] * (importlib.util.find_spec("vllm") is not None)
    yield f"{args.sync_updates} updates; greedy: equal completions after the last sync, and their largest log-prob gap"
    yield from (
        "",
        "| engine | trainer | max gap (nats) | s per sync | greedy | log-prob gap |",
        "|---|---|---|---|---|---|",
    )
    for name in names:
        for tied in (True, False):
            engine = own_engine(name, args, tied)
            for lora in (False, True):
                trainer = with_lora(build(args, tied=tied)) if lora else build(args, tied=tied)
                reports = []
                for update in range(args.sync_updates):
                    move(trainer, update)
                    reports.append(engine.sync(trainer))
                equal, gap = compare_greedy(engine, trainer, args)
                seconds = sum(r.seconds for r in reports) / len(reports)
                kind = f"{'tied' if tied else 'untied'}, {'LoRA' if lora else 'full'}"
                worst = max(r.max_gap for r in reports)
                yield f"| {name} | {kind} | {worst:.1e} | {seconds:.3f} | {equal} | {gap:.1e} |"
            engine.close()


def own_engine(name: str, args: argparse.Namespace, tied: bool) -> RolloutEngine:
    """An engine with its own copy of the weights."""
    model = build(args, tied=tied)
    if name == "transformers":
        return make_engine(name, model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return make_engine(name, folder, max_model_len=512)


def with_lora(model: PreTrainedModel) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


def move(model: torch.nn.Module, seed: int) -> None:
    """An optimiser step's stand-in: every trainable weight moves by about 0.001."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1e-3 * torch.randn(parameter.shape, generator=generator))


def compare_greedy(engine: RolloutEngine, trainer: torch.nn.Module, args: argparse.Namespace) -> tuple[str, float]:
    """`equal/all` completions against the trainer decoding for itself, and the largest gap of their log-probs."""
    prompts, greedy = make_prompts(args), Sampling(greedy=True, max_new_tokens=args.max_new_tokens)
    engines = (engine, make_engine("transformers", trainer))
    pairs = [(a[0], b[0]) for a, b in zip(*(e.generate(prompts, greedy) for e in engines), strict=True)]
    equal = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
    gaps = [abs(x - y) for a, b in equal for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    return f"{len(equal)}/{len(pairs)}", max(gaps, default=float("nan"))


if __name__ == "__main__":
    main()
