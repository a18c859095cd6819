"""``negpo data alternates``: the target's own alternate answers, for AltPO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from negpo.cli._data_common import show_counts, write_rows
from negpo.cli._flags import natural, number, output_file, positive


def add_parser(kinds) -> None:
    parser = kinds.add_parser(
        "alternates",
        help="alternate answers for AltPO (arXiv 2409.13474)",
        description="Ask the model that is to forget for other plausible answers; drop near copies of the truth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="the target: folder or Hub id")
    parser.add_argument("--dataset", required=True, help="rows with question and answer: file, folder or Hub id")
    parser.add_argument("--name", help="configuration of the data, e.g. forget10")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--output", type=output_file, required=True, help="JSON-lines file to write; report.json stands beside it"
    )
    parser.add_argument("--draws", type=positive, default=5, help="per question")
    parser.add_argument("--temperature", type=number(0), default=1.0)
    parser.add_argument("--max-new-tokens", type=positive, default=200)
    parser.add_argument(
        "--max-rouge", type=number(0, 1), default=0.9, help="recall above which a draw is dropped; 1: none"
    )
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--seed", type=natural, default=0)


def run(args: argparse.Namespace) -> int:
    from negpo.data.alternates import STOPS, alternate_prompt, build_alternates
    from negpo.data.io import atomic_write_json
    from negpo.data.rows import load_rows
    from negpo.eval.metrics import rouge_recall
    from negpo.models import load_causal_lm, load_tokenizer
    from negpo.rollout import Sampling, make_engine

    rows = list(load_rows(args.dataset, name=args.name, split=args.split))
    tokenizer = load_tokenizer(args.model)
    prompts = [list(tokenizer(alternate_prompt(row["question"], row["answer"]))["input_ids"]) for row in rows]
    model = load_causal_lm(args.model) if args.engine == "transformers" else args.model
    engine = make_engine(args.engine, model, tokenizer)
    try:
        sampling = Sampling(
            n=args.draws,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            stop_strings=STOPS,
        )
        samples = engine.generate(prompts, sampling)
    finally:
        engine.close()
    drawn = [[tokenizer.decode(s.token_ids, skip_special_tokens=True) for s in found] for found in samples]
    kept, report = build_alternates(rows, drawn, rouge_recall, max_rouge=args.max_rouge)
    output = Path(args.output)
    write_rows(output, kept)
    counts = [("questions", len(rows)), *report.rows()]
    summary: dict[str, Any] = {"settings": vars(args), "counts": dict(counts), "mean_rouge": report.mean_rouge}
    summary["without"] = report.without
    atomic_write_json(output.parent / "report.json", summary)
    show_counts(f"alternates, mean ROUGE-L recall {report.mean_rouge:.2f}", counts, [output])
    return 0
