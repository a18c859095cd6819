"""What all parts of gpu_check.py share: device, clocks, peaks, models with random weights, the record of results."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class Skip(Exception):
    """A part, or a case of one, cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Context:
    """``rehearse``: toy sizes on a CPU. ``models``: folder in which SmolLM2's real weights may lie as ``smollm2``."""

    rehearse: bool
    models: Path
    results: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.rehearse else torch.bfloat16

    def record(self, **fields: Any) -> None:
        """One result, on disk before the next one starts."""
        with self.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fields) + "\n")
            stream.flush()
        print(json.dumps(fields), flush=True)

    def attempt(self, case: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
        """Records what ``run`` measures, or why it could not; one case never ends a part."""
        try:
            self.record(**case, **run())
        except Skip as reason:
            self.record(**case, skipped=str(reason))
        except torch.OutOfMemoryError:
            self.record(**case, skipped="out of memory")
        except Exception as error:
            self.record(**case, failed=f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            gc.collect()
            if not self.rehearse:
                torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize()

    def measure(self, run: Callable[[], Any], repeats: int = 5, most: float = 3.0) -> dict[str, Any]:
        """Median seconds of ``repeats`` runs after one that compiles (fewer past ``most`` seconds), and peak bytes.

        The peak is what is held beyond the bytes held before. A rehearsal runs once more and is done.
        """
        most = 0.0 if self.rehearse else most
        gc.collect()
        before = 0 if self.rehearse else torch.cuda.memory_allocated()
        run()
        self.synchronize()
        if not self.rehearse:
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        while not times or (len(times) < repeats and sum(times) < most):
            begin = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - begin)
        peak = None if self.rehearse else torch.cuda.max_memory_allocated() - before
        return {"seconds": statistics.median(times), "peak_bytes": peak, "repeats": len(times)}


TOY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def make_model(context: Context, name: str, dtype: torch.dtype | None = None) -> Any:
    """A model in the shape of a published one with random weights; a toy in rehearsal."""
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

    from negpo.plan.shapes import PUBLISHED

    if context.rehearse:
        config: Any = Qwen2Config(**TOY, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1)
    else:
        values = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    torch.manual_seed(0)
    with torch.device(context.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or context.dtype)
    return model.train()


def device_facts() -> dict[str, Any]:
    import platform

    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "gpu": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts
