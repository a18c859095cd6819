"""Small causal language models made from nothing: tokenizer, model, deterministic training loop.

Nothing here knows what the models are for; every embedded lab builds on these three functions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
# A system message is left out: words that every row repeats teach these models nothing and cost a quarter more.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + '" + END + "' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def make_tokenizer(corpus: Iterable[str], vocab_size: int, *, max_length: int = 256) -> PreTrainedTokenizerFast:
    """Qwen2's byte-level BPE trained on `corpus`, with a chat template of one token per role and `pad != eos`.

    A `Qwen2Tokenizer`, because that is what `AutoTokenizer` makes of any tokenizer saved beside a Qwen2 model: another
    class would split texts differently after a reload.

    Args:
        corpus: texts; training is deterministic in their order.
        vocab_size: upper bound; at least 256 bytes + 4 special tokens.

    Raises:
        ValueError: `vocab_size` cannot hold the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    special = [PAD, END, USER, ASSISTANT]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise ValueError(f"vocab_size={vocab_size} cannot hold {len(alphabet)} bytes and {len(special)} special tokens")
    empty = Qwen2Tokenizer().backend_tokenizer
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    state = json.loads(backend.to_str())["model"]
    no_unknown: Any = None  # bytes cover everything; the annotation of the class does not foresee it
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],  # type: ignore[misc]  # pairs, whatever the class says
        unk_token=no_unknown,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
    )


def make_model(
    tokenizer: Any,
    *,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    seed: int,
    tied: bool = True,
    max_positions: int = 512,
) -> PreTrainedModel:
    """A randomly initialised float32 `Qwen2ForCausalLM` that fits `tokenizer`, a `PreTrainedTokenizerFast`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@dataclass(frozen=True)
class Schedule:
    """Optimisation of one stage. `epochs` passes in batches of `batch_size` rows; cosine decay to `final_lr` x `lr`.

    Batches hold rows of similar length and a loss is a mean over tokens, so tokens of long rows count less; with
    `equal_tokens` they do not, and a model also learns how often long answers occur, not only what stands in them.
    """

    lr: float
    epochs: int = 1
    batch_size: int = 32
    warmup: int = 20
    weight_decay: float = 0.01
    final_lr: float = 0.05
    equal_tokens: bool = False

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step `step` (from 0) of `total`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, total - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


Row = tuple[list[int], list[int]]  # token ids and labels of one row, -100 where nothing is predicted


def bucketed_batches(rows: Sequence[Row], batch_size: int, rng: random.Random, window: int = 8) -> list[list[Row]]:
    """Shuffled batches of rows of similar length: rows are sorted inside windows of `window` batches only."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * window):
        chunk = sorted(order[start : start + batch_size * window], key=lambda index: len(rows[index][0]))
        batches += [[rows[i] for i in chunk[at : at + batch_size]] for at in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches


def _labelled(batch: list[Row]) -> int:
    """Number of tokens that a batch predicts."""
    return sum(label != -100 for _, labels in batch for label in labels)


def _nll(model: PreTrainedModel, batch: list[Row], pad_id: int) -> torch.Tensor:
    """Mean negative log-likelihood of the labelled tokens; only their hidden states meet the vocabulary."""
    import torch
    import torch.nn.functional as F

    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in batch])[:, 1:]
    # No attention mask: padding stands on the right, so causal attention already hides it from every labelled position.
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    keep = labels != -100
    return F.cross_entropy(model.get_output_embeddings()(hidden[keep]), labels[keep])


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Tiny Adam moments would otherwise run in microcode. What was set for this thread is put back."""
    import torch

    were_flushed = not (torch.tensor(2.0**-149) * 1).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(were_flushed)


@denormals_flushed()
def train_lm(
    model: PreTrainedModel,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    pad_id: int,
    seed: int,
    on_step: Callable[[int, int, float], Any] | None = None,
) -> None:
    """Train `model` in place with AdamW; the result depends only on the arguments, not on global random state.

    Args:
        rows: see `Row`.
        on_step: called as `on_step(step, total_steps, loss)` after every step, for progress displays.
    """
    import torch

    rng = random.Random(seed)
    batches = [batch for _ in range(schedule.epochs) for batch in bucketed_batches(rows, schedule.batch_size, rng)]
    decay = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decay, "weight_decay": schedule.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    usual_tokens = sum(map(_labelled, batches)) / len(batches)
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98), fused=True)
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step, len(batches))
        loss = _nll(model, batch, pad_id)
        weight = _labelled(batch) / usual_tokens if schedule.equal_tokens else 1.0
        (loss * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step + 1, len(batches), loss.item())
    model.eval()
