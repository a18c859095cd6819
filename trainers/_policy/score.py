"""Log-probs of rollout rows, in step with the other processes where a forward needs them."""

from typing import Any

import torch
from torch import Tensor

from negpo.errors import ConfigError
from negpo.logprobs import LogprobBatch, model_token_logprobs
from negpo.logprobs.shared import choose_shared_layout, supports_sharing
from negpo.models import unwrap
from negpo.rollout.decoding import decoding_mode
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import Record


class RowScorer:
    """Runs rows through the one log-prob primitive at the sampling temperature.

    Args:
        accelerator: autocast, device and the other processes.
        temperature: of the sampling, so that training and sampling log-probs are of the same distribution.
        size: most rows of a forward without gradient.
        sharded: whether a forward needs the other processes (ZeRO, FSDP); all then run equally many.
        sharing: "auto", "always" or "never": run the prompt of a group once for its answers (negpo.logprobs.shared).
    """

    def __init__(self, accelerator: Any, *, temperature: float, size: int, sharded: bool, sharing: str = "never"):
        self.accelerator, self.temperature, self.size, self.sharded = accelerator, temperature, size, sharded
        self.sharing = sharing

    def forward(self, model: Any, batch: Record, *, entropy: bool = False, packing: str = "auto") -> LogprobBatch:
        """Log-probs (R, T-1) of a micro-batch, with its entropies on request."""
        ids, mask = batch["input_ids"], rows_.attention_mask(batch)
        with self.accelerator.autocast():
            layout = None
            if "group" in batch and packing == "auto":
                prompts = rows_.prompt_lengths(batch)
                layout = choose_shared_layout(model, ids, mask, batch["group"], prompts, self.sharing)
            return model_token_logprobs(
                model,
                ids,
                mask,
                batch["labels"],
                temperature=self.temperature,
                return_entropy=entropy,
                packing=packing,
                layout=layout,
            )

    def keeps_groups(self, model: Any, record: Record) -> bool:
        """Whether micro-batches should hold whole groups: their prompts are shared and longer than their answers."""
        if self.sharing == "never" or "group" not in record:
            return False
        # asked on every process, so that the probe of a sharded model finds all of them
        if not supports_sharing(model):
            if self.sharing == "always":
                raise ConfigError(
                    f"share_prompt=always: {type(unwrap(model)).__name__} cannot share prompts; it needs full "
                    "attention with sdpa or eager. Use share_prompt=auto"
                )
            return False
        prompts = rows_.prompt_lengths(record)
        return self.sharing == "always" or bool(prompts.sum() > (record["lengths"] - prompts).sum())

    def forward_nothing(self, model: Any) -> LogprobBatch:
        """The smallest forward there is, for the sake of the other processes."""
        return self.forward(model, rows_.dummy_row(self.accelerator.device))

    def rows(self, model: Any, record: Record, rows: Tensor) -> Tensor:
        """Log-probs (N, T-1) without gradient of ``rows``, 0 elsewhere, in trimmed micro-batches sorted by length."""
        scored = torch.zeros_like(record["labels"][:, 1:], dtype=torch.float32)
        with self.accelerator.autocast():
            groups = self.keeps_groups(model, record)
        parts = (rows_.by_group if groups else rows_.by_length)(rows, record, self.size)
        forwards = int(self.most(torch.tensor([len(parts)]))[0]) if self.sharded else len(parts)
        with decoding_mode(model):
            for i in range(forwards):
                if i < len(parts):
                    logps = self.forward(model, rows_.take(rows_.tokens_of(record), parts[i])).logps
                    scored[parts[i], : logps.shape[1]] = logps
                else:
                    self.forward_nothing(model)
        return scored

    def block(self, model: Any, input_ids: Tensor, attention_mask: Tensor, completion_width: int) -> Tensor:
        """Log-probs (N, C) of the last C columns of TRL's left- and right-padded block (N, P + C)."""
        prompt_width = input_ids.shape[1] - completion_width
        output = {
            "prompt_ids": input_ids[:, :prompt_width],
            "prompt_mask": attention_mask[:, :prompt_width],
            "completion_ids": input_ids[:, prompt_width:],
            "completion_mask": attention_mask[:, prompt_width:],
        }
        record = rows_.align_rows(output, {})
        scored = self.rows(model, record, torch.arange(len(input_ids), device=input_ids.device))
        block = torch.zeros(output["completion_ids"].shape, device=input_ids.device)
        block[output["completion_mask"].bool()] = scored[rows_.answer_mask(record)]  # both in row-major order
        return block

    def most(self, counts: Tensor) -> Tensor:
        """The largest of each of ``counts`` (K,) over all processes."""
        if self.accelerator.num_processes == 1:
            return counts
        return self.accelerator.gather(counts.to(self.accelerator.device).unsqueeze(0)).amax(0).cpu()
