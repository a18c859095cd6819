"""TOFU metrics: the shared pass of ``negpo.eval.tofu`` against one forward per metric and per answer.

The other side is what the usual tools do, written plainly: every metric builds its items and runs its own pass, every
perturbed answer is a batch of its own, batches of 32 in the data's order are padded to their longest row, the model
returns full logits in float32, ROUGE has its own generation batches. Both sides feed the same metric functions; the
largest difference between their numbers is printed.

    python scripts/bench_eval.py                         # well under a minute on one core
    python scripts/bench_eval.py --rows 400 --vocab 151936 --hidden 256 --layers 8 --new-tokens 200
"""

import argparse
import random
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from _bench import add_out, reporting
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from negpo.data.collate import pad_batch
from negpo.data.qa import IGNORE, QATemplate, encode_qa, labelled_ids
from negpo.eval import metrics as m
from negpo.eval.scoring import Batching, decode, ground_truth
from negpo.eval.statistics import roc_auc
from negpo.eval.tofu import TofuData, TofuSettings, evaluate_tofu

BATCH = 32
SETS = {"forget": ("forget", 5), "retain": ("retain", 5), "real_authors": ("ra", 3), "world_facts": ("wf", 3)}


def main() -> None:
    args = parse_args()
    with reporting(args.out):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", message="the prompt's token ids")  # both sides treat that border alike
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    data = synthetic_tofu(rng, args.rows)
    tokenizer = train_tokenizer(data)
    model = random_model(args, tokenizer)
    settings = TofuSettings(
        max_new_tokens=args.new_tokens, batching=Batching(max_rows=args.batch_rows, max_tokens=args.batch_tokens)
    )
    # both sides once on a few rows first: kernels, caches, imports
    evaluate_tofu(model, tokenizer, data.first(2), settings)
    SeparatePasses(model, tokenizer, data.first(2), args.new_tokens).run()

    usual = SeparatePasses(model, tokenizer, data, args.new_tokens)
    expected = usual.run()
    started, stages = time.perf_counter(), {}
    result = evaluate_tofu(
        model, tokenizer, data, settings, report=lambda stage, *_: stages.update({stage: time.perf_counter() - started})
    )
    total = time.perf_counter() - started
    scoring, generating = stages["scoring"], stages["generating"] - stages["scoring"]

    print(f"{args.rows} rows per set, V {args.vocab}, hidden {args.hidden}, {args.layers} layers")
    print(f"{'':<22}{'separate':>10}{'shared':>10}{'ratio':>8}")
    for label, theirs, ours in (
        ("scoring (s)", usual.scoring, scoring),
        ("generation (s)", usual.generating, generating),
        ("all metrics (s)", usual.scoring + usual.generating, total),
    ):
        print(f"{label:<22}{theirs:>10.2f}{ours:>10.2f}{theirs / ours:>7.1f}x")
    worst = max(expected, key=lambda name: abs(expected[name] - result[name]))
    print(f"{len(expected)} metrics, largest difference {abs(expected[worst] - result[worst]):.1e} ({worst})")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows per set (TOFU: 400)")
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--batch-rows", type=int, default=128, help="of the shared pass")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of the shared pass")
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    return parser.parse_args()


class SeparatePasses:
    """The usual way; counts its forwards and its seconds."""

    def __init__(self, model, tokenizer, data: TofuData, new_tokens: int):
        self.model, self.tokenizer, self.data, self.new_tokens = model, tokenizer, data, new_tokens
        self.forwards, self.scoring, self.generating = 0, 0.0, 0.0

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        values = {}
        for name, (prefix, wrong) in SETS.items():
            values |= self.probability_and_truth_ratio(name, prefix, wrong)
        for metric in (m.exact_memorization, m.extraction_strength):
            hits = [hit[:-1] for hit in self.scores("forget", "answer", predictions)]
            values[metric.__name__] = float(np.mean([metric(hit, np.ones_like(hit)) for hit in hits]))
        values |= self.membership()
        self.scoring = time.perf_counter() - started
        started = time.perf_counter()
        for name, (prefix, _) in SETS.items():
            values[f"{prefix}_Q_A_ROUGE"] = self.rouge(name)
        self.generating = time.perf_counter() - started
        return values

    def probability_and_truth_ratio(self, name: str, prefix: str, wrong: int) -> dict[str, float]:
        known = name in ("forget", "retain")
        if known:
            probability = m.probability(self.losses(name, "answer")).mean()
        else:
            table = np.stack([self.losses(name, "perturbed_answer", j) for j in range(wrong)], axis=1)
            probability = m.normalised_probability(self.losses(name, "answer"), table).mean()
        table = np.stack([self.losses(name, "perturbed_answer", j) for j in range(wrong)], axis=1)
        ratio = m.truth_ratio(self.losses(name, "paraphrased_answer" if known else "answer"), table)
        how = "closer_to_1_better" if name == "forget" else "true_better"
        label = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        suffix = "" if known else "_normalised"
        return {f"{prefix}_Q_A_Prob{suffix}": float(probability), label: m.aggregate_truth_ratio(ratio, how)}

    def membership(self) -> dict[str, float]:
        attacks = {
            "loss": lambda side: self.losses(side, "answer"),
            "zlib": self.zlib,
            "min_k": lambda side: [m.min_k(row[:-1]) for row in self.scores(side, "answer", token_logprobs)],
            "min_k_plus_plus": lambda side: [m.min_k_plus_plus(*row) for row in self.scores(side, "answer", moments)],
        }
        values = {f"mia_{name}": roc_auc(attack("forget"), attack("holdout")) for name, attack in attacks.items()}
        return values | {"privleak": m.privleak(values["mia_min_k"])}

    def zlib(self, side: str) -> list[float]:
        items = [item for items in self.batches(side, "answer", None) for item in items]
        texts = [decode(self.tokenizer, labelled_ids(item)) for item in items]
        return [m.zlib_score(loss, text) for loss, text in zip(self.losses(side, "answer"), texts, strict=True)]

    def losses(self, name: str, key: str, j: int | None = None) -> np.ndarray:
        return np.array(self.scores(name, key, mean_loss, j))

    @torch.no_grad()
    def scores(self, name: str, key: str, metric: Callable, j: int | None = None) -> list:
        """One pass over one answer of every row: full logits, then what the metric computes from its labelled rows."""
        rows = []
        for items in self.batches(name, key, j):
            batch = pad_batch(items, self.tokenizer.eos_token_id)
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
            self.forwards += 1
            labels = batch["labels"][:, 1:]
            rows += metric(logits[:, :-1], labels)
        return rows

    @torch.no_grad()
    def rouge(self, name: str) -> float:
        values = []
        for items in self.batches(name, "answer", None, generation=True):
            batch = pad_batch(items, self.tokenizer.eos_token_id, side="left")
            options = {
                "max_new_tokens": self.new_tokens,
                "do_sample": False,
                "pad_token_id": self.tokenizer.eos_token_id,
            }
            ids, mask = batch["input_ids"], batch["attention_mask"]
            output = self.model.generate(input_ids=ids, attention_mask=mask, **options)
            for item, new in zip(items, output[:, ids.shape[1] :].tolist(), strict=True):
                truth = ground_truth(self.tokenizer, item["input_ids"], item["labels"])
                values.append(m.rouge_recall(truth, decode(self.tokenizer, new).strip()))
        return float(np.mean(values))

    def batches(self, name: str, key: str, j: int | None, generation: bool = False) -> Iterator[list[dict]]:
        items = [
            encode_qa(
                self.tokenizer,
                QATemplate(),
                row["question"],
                row[key] if j is None else row[key][j],
                generation=generation,
                labels="published",
            )
            for row in self.data.sets[name]
        ]
        for start in range(0, len(items), BATCH):
            yield items[start : start + BATCH]


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    flat = logits.flatten(0, 1), labels.flatten()
    loss = torch.nn.functional.cross_entropy(*flat, ignore_index=IGNORE, reduction="none").view_as(labels)
    return (loss.double().sum(1) / (labels != IGNORE).sum(1)).tolist()


def predictions(logits: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    hits = logits.argmax(-1) == labels
    return [hit[label != IGNORE].numpy() for hit, label in zip(hits, labels, strict=True)]


def token_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
    table = logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return [row[label != IGNORE].double().numpy() for row, label in zip(table, labels, strict=True)]


def moments(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
    """Log-probs, mean and standard deviation of log p over the vocabulary, row by row, last token left out."""
    rows = []
    for row, label in zip(logits, labels, strict=True):
        where = label != IGNORE
        table = row[where][:-1].log_softmax(-1)
        logps = table.gather(-1, label[where][:-1, None])[:, 0]
        mean = (table.exp() * table).sum(-1)
        std = ((table.exp() * table.square()).sum(-1) - mean.square()).clamp_min(1e-6).sqrt()
        rows.append(tuple(column.double().numpy() for column in (logps, mean, std)))
    return rows


def synthetic_tofu(rng: random.Random, rows: int) -> TofuData:
    """Rows with about TOFU's lengths: questions of 8 to 20 words, answers of 8 to 50, short ones on the fact sets."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(600)]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    sets = {}
    for name, (_, wrong) in SETS.items():
        low, high = (8, 50) if name in ("forget", "retain") else (1, 5)
        sets[name] = [
            {
                "question": text(8, 20),
                "answer": text(low, high),
                "paraphrased_answer": text(low, high),
                "perturbed_answer": [text(low, high) for _ in range(wrong)],
            }
            for _ in range(rows)
        ]
    sets["holdout"] = [{"question": text(8, 20), "answer": text(8, 50)} for _ in range(rows)]
    return TofuData("synthetic", "forget10", sets)


def train_tokenizer(data: TofuData) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"Question: {row['question']}\nAnswer: {row['answer']}" for rows in data.sets.values() for row in rows)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def random_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


if __name__ == "__main__":
    main()
