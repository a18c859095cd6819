"""Training texts of MUSE as the recipes read them: python scripts/prepare_muse.py --corpus news --out data

Writes muse_<corpus>_forget.jsonl and muse_<corpus>_retain.jsonl (raw/forget and raw/retain1 in pieces of 2048 tokens).
For scalability and sustainability: --forget scal/forget_2, one file per fold.
"""

import argparse
import json
from pathlib import Path

from negpo.data.chunks import chunk_texts
from negpo.data.io import atomic_write
from negpo.data.rows import load_rows
from negpo.eval.muse_data import HUB
from negpo.trainers._run.model import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, choices=tuple(HUB))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", help="folder or Hub id instead of muse-bench/MUSE-<corpus>")
    parser.add_argument("--tokenizer", default="meta-llama/Llama-2-7b-hf")
    parser.add_argument("--length", type=int, default=2048, help="tokens per piece")
    parser.add_argument("--forget", default="raw/forget", help="configuration/split")
    parser.add_argument("--retain", default="raw/retain1", help="configuration/split")
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.tokenizer, None)
    for part in ("forget", "retain"):
        name, split = getattr(args, part).split("/")
        rows = load_rows(args.data or HUB[args.corpus], name=name, split=split, required=())
        texts = [row["text"] for row in rows]
        pieces = chunk_texts(tokenizer, texts, args.length)
        suffix = "" if name == "raw" else f"_{name}_{split}"
        path = args.out / f"muse_{args.corpus}_{part}{suffix}.jsonl"
        atomic_write(path, "".join(json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces))
        empty = sum(not text.strip() for text in texts)
        print(f"{path}: {len(pieces)} pieces of {len(texts)} documents ({empty} empty)")


if __name__ == "__main__":
    main()
