"""Child process of `negpo.lab.build`: train one model of the lab and save it as a Hugging Face checkpoint.

`python -m negpo.lab.stages LAB NAME ROWS SEED MODEL_SIZE_JSON`: NAME is `base` (from nothing) or another name (from the
base); ROWS names a file in the lab's data folder. Common knowledge is rehearsed in both stages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from negpo.data.rows import load_rows
from negpo.lab._jobs import report_progress
from negpo.lab._models import Row, Schedule, make_model, train_lm
from negpo.lab.build import LabPaths, ModelSize

REPORT_EVERY = 20


def encode(tokenizer, rows: list[dict]) -> list[Row]:
    """Token ids and labels with the template every harness here would choose for this tokenizer."""
    from negpo.data.qa import QATemplate, encode_rows

    items, _ = encode_rows(tokenizer, QATemplate.for_model("lab", tokenizer), rows)
    return [(item["input_ids"], item["labels"]) for item in items]


def train_stage(paths: LabPaths, name: str, split: str, seed: int, size: ModelSize) -> None:
    """Train and save model `name`; the second stage starts from the saved base."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(paths.tokenizer)
    rows = encode(tokenizer, load_rows(paths.data, name=split))
    facts = encode(tokenizer, load_rows(paths.data, name="facts"))
    if name == "base":
        model = make_model(
            tokenizer,
            hidden=size.hidden,
            layers=size.layers,
            heads=size.heads,
            intermediate=3 * size.hidden,
            seed=seed,
        )
        rows += facts * size.fact_passes
        schedule = Schedule(size.pretrain_lr, batch_size=size.pretrain_batch)
    else:
        model = AutoModelForCausalLM.from_pretrained(paths.base, dtype=torch.float32)
        rows += facts
        schedule = Schedule(size.finetune_lr, epochs=size.finetune_epochs, batch_size=size.finetune_batch)

    def show(step: int, total: int, loss: float) -> None:
        if step % REPORT_EVERY == 0 or step == total:
            report_progress(step, total, f"loss {loss:.3f}")

    train_lm(model, rows, schedule, pad_id=tokenizer.pad_token_id, seed=seed, on_step=show)
    model.save_pretrained(paths.root / name)
    tokenizer.save_pretrained(paths.root / name)


if __name__ == "__main__":
    lab, model_name, row_name, seed_text, model_size = sys.argv[1:]
    lab_paths = LabPaths(Path(lab), forget="")
    train_stage(lab_paths, model_name, row_name, int(seed_text), ModelSize(**json.loads(model_size)))
