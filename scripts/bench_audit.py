"""The standard suite of ``negpo audit`` against each of its metrics on its own, and peak memory on long texts.

Time: one model, measured as the audit measures it, against `scripts/bench_eval.py`'s plain passes (one forward per
metric and answer, full logits) plus the reference and gradient-norm attacks on their own. No model is loaded within the
time of either side. Memory: Min-K%++ and extraction strength of one long text over a large vocabulary, tiled as here
and with full logits; each in a process of its own, growth of the peak resident memory over that before the call.

    python scripts/bench_audit.py            # about two minutes on one core and 8 GiB for the full logits
    python scripts/bench_audit.py --rows 4 --vocab 2048 --memory-vocab 4096 --memory-tokens 64     # seconds
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _bench import add_out, reporting, reset_peak, resident
from bench_eval import SeparatePasses, mean_loss, random_model, synthetic_tofu, token_logprobs, train_tokenizer

from negpo.data.qa import QATemplate
from negpo.eval import metrics as m
from negpo.eval.audit.checkpoints import Checkpoint
from negpo.eval.audit.measure import Measured, Plan, measure
from negpo.eval.audit.numbers import numbers_of
from negpo.eval.audit.resampling import Resampler
from negpo.eval.audit.settings import AuditSettings
from negpo.eval.audit.sharding import Ranks
from negpo.eval.mia import gradient_norms
from negpo.eval.scoring import Batching
from negpo.eval.statistics import roc_auc
from negpo.eval.tofu import TofuData
from negpo.logprobs import model_token_stats

MIB = 2**20


def main() -> None:
    args = parse_args()
    if args.memory_of:
        print(json.dumps({"mib": peak_growth(args)}))
        return
    warnings.filterwarnings("ignore", message="the prompt's token ids")  # both sides treat that border alike
    with reporting(args.out):
        print_times(args)
        print()
        print_memory(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows per set (TOFU: 400)")
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--memory-vocab", type=int, default=151936)
    parser.add_argument("--memory-tokens", type=int, default=2048)
    parser.add_argument("--memory-of", choices=("tiled", "full"), help=argparse.SUPPRESS)  # the child process
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    return parser.parse_args()


def print_times(args: argparse.Namespace) -> None:
    """A markdown table: seconds of both sides and the largest difference of their numbers."""
    torch.manual_seed(args.seed)
    data = synthetic_tofu(random.Random(args.seed), args.rows)
    tokenizer = train_tokenizer(data)
    models = {"model": random_model(args, tokenizer), "retain": random_model(args, tokenizer)}
    SeparateMetrics(models, tokenizer, data.first(2), args.new_tokens).run_all()  # kernels, caches, imports
    audit_once(models, tokenizer, data.first(2), args)

    usual = SeparateMetrics(models, tokenizer, data, args.new_tokens)
    expected = usual.run_all()
    values, seconds = audit_once(models, tokenizer, data, args)
    shared = {
        kind: sum(value for stage, value in seconds.items() if stage.startswith(kind))
        for kind in ("score", "generate", "gradients")
    }
    worst = max(expected, key=lambda name: abs(expected[name] - values[name]))
    print(f"Standard suite, one model: {args.rows} rows per set, V {args.vocab}, {torch.get_num_threads()} threads\n")
    print("| | each metric on its own | audit | ratio |\n|---|---|---|---|")
    rows = [("scoring (s)", usual.scoring + usual.reference, shared["score"])]
    rows += [("generation (s)", usual.generating, shared["generate"])]
    rows += [("gradient norms (s)", usual.gradients, shared["gradients"])]
    rows += [("everything (s)", sum(row[1] for row in rows), sum(seconds.values()))]
    for title, theirs, ours in rows:
        print(f"| {title} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f}x |")
    print(f"\n{len(expected)} metrics, largest difference {abs(expected[worst] - values[worst]):.1e} ({worst}).")


class SeparateMetrics(SeparatePasses):
    """The usual way for every metric of the suite; ``models`` holds the one measured and its reference."""

    def __init__(self, models: dict, tokenizer, data: TofuData, new_tokens: int):
        super().__init__(models["model"], tokenizer, data, new_tokens)
        self.models, self.reference, self.gradients = models, 0.0, 0.0

    def run_all(self) -> dict[str, float]:
        values = self.run()
        started = time.perf_counter()
        values["mia_reference"] = roc_auc(*(self.above_reference(side) for side in ("forget", "holdout")))
        self.reference = time.perf_counter() - started
        started = time.perf_counter()
        values["mia_gradnorm"] = roc_auc(*(self.gradient_norms(side) for side in ("forget", "holdout")))
        self.gradients = time.perf_counter() - started
        values["privleak"] = m.privleak(values["mia_min_k"], self.control_auc())
        return values

    def above_reference(self, side: str) -> np.ndarray:
        own = self.losses(side, "answer")
        self.model = self.models["retain"]
        other = np.array(self.scores(side, "answer", mean_loss))
        self.model = self.models["model"]
        return own - other

    def gradient_norms(self, side: str) -> np.ndarray:
        items = [item for items in self.batches(side, "answer", None) for item in items]
        return gradient_norms(self.model, items)

    def control_auc(self) -> float:
        """The retain model's AUC, which is counted on neither side: an audit measures its controls once."""
        self.model = self.models["retain"]
        scores = [
            [m.min_k(row[:-1]) for row in self.scores(side, "answer", token_logprobs)] for side in ("forget", "holdout")
        ]
        self.model = self.models["model"]
        return roc_auc(*scores)


def audit_once(
    models: dict, tokenizer, data: TofuData, args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the model as an audit computes them, and the seconds of its stages, statistics included."""
    settings = AuditSettings(max_new_tokens=args.new_tokens, template=QATemplate(), batching=Batching(128, 16384))
    plan = Plan.make(data, tokenizer, settings, "bench")
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            checkpoint = Checkpoint(name, name, Path(folder), {"weights": name}, {}, tokenizer, "")
            role = "retain" if name == "retain" else "model"
            load = {name: model}.__getitem__
            found[name] = measure(
                checkpoint, role, plan, load=lambda one, load=load: load(one.label), folder=Path(folder), ranks=Ranks()
            )
    started = time.perf_counter()
    sizes = {name: len(rows) for name, rows in data.sets.items()}
    resampler = Resampler.make(sizes, settings.resamples, settings.seed, settings.confidence)
    numbers = numbers_of(found["model"], found["retain"], plan, resampler)
    seconds = {**found["model"].seconds, "numbers and intervals": time.perf_counter() - started}
    return numbers.summary.metrics, seconds


def print_memory(args: argparse.Namespace) -> None:
    """A markdown table: growth of the peak memory of both ways, each in its own process."""
    print(f"Min-K%++ and extraction strength, V {args.memory_vocab:,}, {args.memory_tokens:,} tokens, float32\n")
    print("| | peak memory (MiB) |\n|---|---|")
    grown = {}
    for how, title in (("full", "full logits"), ("tiled", "tiled over the vocabulary")):
        command = [sys.executable, __file__, "--memory-of", how, "--memory-vocab", str(args.memory_vocab)]
        command += ["--memory-tokens", str(args.memory_tokens), "--layers", str(args.layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[how] = json.loads(done.stdout.splitlines()[-1])["mib"]
        print(f"| {title} | {grown[how]:,.0f} |")
    print(f"\n{grown['full'] / max(grown['tiled'], 1):.0f}x less.")


def peak_growth(args: argparse.Namespace) -> float:
    """MiB by which the resident peak (VmHWM) of this process grows while one text is measured."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(args.seed)
    shape = {"hidden_size": args.hidden, "intermediate_size": 2 * args.hidden, "num_hidden_layers": args.layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": args.memory_tokens + 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=args.memory_vocab, **shape, **heads)).eval()
    work = {"tiled": tiled_metrics, "full": full_metrics}[args.memory_of]
    work(model, torch.randint(args.memory_vocab, (1, 8)))  # what a first call allocates for good
    ids = torch.randint(args.memory_vocab, (1, args.memory_tokens + 1))
    before = resident("VmRSS")
    reset_peak()
    work(model, ids)
    return (resident("VmHWM") - before) / MIB


def tiled_metrics(model, ids: torch.Tensor) -> tuple[float, float]:
    """(Min-K%++, extraction strength) of one text as the audit computes them."""
    stats = model_token_stats(model, ids, None, ids)
    columns = (column[0].double().numpy() for column in (stats.logps, stats.mean, stats.std))
    hits = stats.correct[0].numpy()
    return m.min_k_plus_plus(*columns), m.extraction_strength(hits, np.ones_like(hits))


@torch.no_grad()
def full_metrics(model, ids: torch.Tensor) -> tuple[float, float]:
    """The same from a table (T, V) of logits, as the formulas read."""
    logits = model(input_ids=ids).logits[0, :-1]
    table, labels = logits.log_softmax(-1), ids[0, 1:]
    logps = table.gather(-1, labels[:, None])[:, 0]
    mean = (table.exp() * table).sum(-1)
    std = ((table.exp() * table.square()).sum(-1) - mean.square()).clamp_min(m.MIN_VARIANCE).sqrt()
    columns = (column.double().numpy() for column in (logps, mean, std))
    hits = (logits.argmax(-1) == labels).numpy()
    return m.min_k_plus_plus(*columns), m.extraction_strength(hits, np.ones_like(hits))


if __name__ == "__main__":
    main()
