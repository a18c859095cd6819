"""Measured steps of real trainers at lab size, in the terms of a plan: what the plan's formulas are held against.

A small Qwen2 with random weights is trained for some steps by `NPOTrainer` (forget and retain rows, reference cache) or
`NSRTrainer` (completions from a script instead of an engine: decoding is not measured, log-probs of the rollout are).
All rows have the same length, half of it answers. float32 on the CPU; several processes under DDP if started so.
"""

import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from negpo.plan.live_bytes import LiveBytes
from negpo.plan.settings import DEVICES, Settings
from negpo.plan.shapes import Shape, shape_of

HEAD_DIM = 32
UPDATES = 4  # NSR's optimiser steps per rollout
WINDOWS = {"npo": (1, 3), "nsr": (UPDATES, 2)}  # optimiser steps of a window, and how many windows are timed


@dataclass(frozen=True)
class Point:
    """One measured step: NPO (2 x micro_batch rows) or NSR (micro_batch rows, one group per optimiser step).

    lora_r: rank on all linear maps, 0 to train all weights.
    """

    method: str
    hidden: int
    layers: int
    sequence_length: int
    vocab: int
    ranks: int = 1
    micro_batch: int = 4
    lora_r: int = 0
    gradient_checkpointing: bool = False

    @property
    def config(self) -> Qwen2Config:
        """Two query heads for one key/value head, MLP three times as wide, tied embedding."""
        heads = self.hidden // HEAD_DIM
        return Qwen2Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            tie_word_embeddings=True,
            use_cache=False,
            eos_token_id=1,
            pad_token_id=0,
        )

    @property
    def shape(self) -> Shape:
        return shape_of(self.config, f"lab {self.hidden} x {self.layers}")

    def settings(self, flops: float = DEVICES["cpu"].flops, utilisation: float = 1.0) -> Settings:
        """The question to which this measurement is the answer."""
        return Settings(
            method=self.method,
            strategy="single" if self.ranks == 1 else "ddp",
            devices=self.ranks,
            micro_batch=self.micro_batch,
            sequence_length=self.sequence_length,
            answer_share=0.5,
            dtype="fp32",
            lora_r=self.lora_r,
            gradient_checkpointing=self.gradient_checkpointing,
            samples=self.micro_batch,
            max_new_tokens=self.sequence_length // 2,
            engine="vllm-server",  # completions come from elsewhere
            device_type="cpu",
            memory=DEVICES["cpu"].memory,
            flops=flops,
            utilisation=utilisation,
        )


@dataclass(frozen=True)
class Measured:
    """Bytes of tensors alive at the peak of a step with optimiser states in place; seconds of an optimiser step."""

    peak: int
    seconds: float


def measure(point: Point) -> Measured:
    """Train: one step to create what lives on, one window under the byte counter, some windows by the clock."""
    window, timed = WINDOWS[point.method]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        live = stack.enter_context(LiveBytes())
        meter = _Meter(live, stack, window, timed)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(point.config)
        make = _nsr_trainer if point.method == "nsr" else _npo_trainer
        make(point, model, _settings(point, folder, meter.steps), meter).train()
    return Measured(live.peak, statistics.median(meter.seconds))


class _Meter(TrainerCallback):
    """Reads the peak over steps 2 .. window + 1, then stops counting bytes and takes the time of whole windows."""

    def __init__(self, live: LiveBytes, stack: ExitStack, window: int, timed: int):
        self.live, self.stack, self.window = live, stack, window
        self.steps = 1 + window * (1 + timed)
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        done = state.global_step - 1
        if done == 0:
            self.stack.enter_context(self.live.window())
        if done >= self.window and done % self.window == 0:
            self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - 1
        if done == self.window:
            self.stack.close()
        elif done > self.window and done % self.window == 0:
            self.seconds.append((time.perf_counter() - self._started) / self.window)


def _settings(point: Point, folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": point.micro_batch,
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": point.gradient_checkpointing,
        "logging_steps": 1000,
    }


def _adapter(point: Point) -> Any:
    if not point.lora_r:
        return None
    from peft import LoraConfig

    return LoraConfig(r=point.lora_r, target_modules="all-linear", task_type="CAUSAL_LM")


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def _random_ids(point: Point, rows: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, point.vocab, (rows, length), generator=generator).tolist()


def _npo_trainer(point: Point, model: Any, settings: dict[str, Any], meter: _Meter) -> Any:
    from negpo.trainers import NPOConfig, NPOTrainer

    def rows(seed: int) -> list[dict[str, list[int]]]:
        question = point.sequence_length // 2
        ids = _random_ids(point, 2 * point.micro_batch * point.ranks, point.sequence_length, seed)
        return [{"input_ids": row, "labels": [-100] * question + row[question:]} for row in ids]

    return NPOTrainer(
        model,
        NPOConfig(max_length=point.sequence_length, **settings),
        rows(1),
        retain_dataset=rows(2),
        processing_class=_tokenizer(point.vocab),
        peft_config=_adapter(point),
        callbacks=[meter],
    )


def _nsr_trainer(point: Point, model: Any, settings: dict[str, Any], meter: _Meter) -> Any:
    from datasets import Dataset

    from negpo.trainers import NSRConfig, NSRTrainer

    length, groups = point.sequence_length // 2, UPDATES * point.ranks
    prompts = [" ".join(f"w{i}" for i in row) for row in _random_ids(point, 4 * groups, length, 1)]
    config = NSRConfig(
        num_generations=point.micro_batch,
        max_completion_length=length,
        updates_per_rollout=UPDATES,
        max_entropy_share=None,
        max_kl=None,
        truncated="wrong",  # completions are of full length, and all trained on
        share_prompt="never",  # as planned: every row with its prompt; sharing needs less
        **settings,
    )
    return NSRTrainer(
        model=model,
        reward_funcs=_always_wrong,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=_tokenizer(point.vocab),
        peft_config=_adapter(point),
        callbacks=[meter],
        engine=_Script(point, length),
    )


def _always_wrong(completions: list, **_: Any) -> list[float]:
    """Every row is trained on: NSR drops right ones."""
    return [0.0] * len(completions)


class _Script:
    """Completions of full length, the same ones in every rollout."""

    name = "transformers"
    model = None

    def __init__(self, point: Point, length: int):
        rows = _random_ids(point, UPDATES * point.micro_batch, length - 1, 2)
        self.groups = [
            [[*row, 1] for row in rows[start : start + point.micro_batch]]
            for start in range(0, len(rows), point.micro_batch)
        ]

    def generate(self, prompt_ids: list[list[int]], sampling: Any, **_: Any) -> list[list[Any]]:
        from negpo.rollout import Sample

        return [
            [Sample(prompt, i, list(ids), finish_reason="stop") for i, ids in enumerate(self.groups[prompt])]
            for prompt in range(len(prompt_ids))
        ]

    def sync(self, model: Any) -> Any:
        from negpo.rollout import SyncReport

        return SyncReport(max_gap=0.0, mean_gap=0.0, tolerance=1.0, tokens=1, seconds=0.0)
