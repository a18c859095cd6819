"""Log-probs of rollout rows, in step with the other processes where a forward needs them."""

from typing import Any

import torch
from torch import Tensor

from negpo.logprobs import LogprobBatch, model_token_logprobs
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
    """

    def __init__(self, accelerator: Any, *, temperature: float, size: int, sharded: bool):
        self.accelerator, self.temperature, self.size, self.sharded = accelerator, temperature, size, sharded

    def forward(self, model: Any, batch: Record, *, entropy: bool = False, packing: str = "auto") -> LogprobBatch:
        """Log-probs (R, T-1) of a micro-batch, with its entropies on request."""
        with self.accelerator.autocast():
            return model_token_logprobs(
                model,
                batch["input_ids"],
                rows_.attention_mask(batch),
                batch["labels"],
                temperature=self.temperature,
                return_entropy=entropy,
                packing=packing,
            )

    def forward_nothing(self, model: Any) -> LogprobBatch:
        """The smallest forward there is, for the sake of the other processes."""
        return self.forward(model, rows_.dummy_row(self.accelerator.device))

    def rows(self, model: Any, record: Record, rows: Tensor) -> Tensor:
        """Log-probs (N, T-1) without gradient of ``rows``, 0 elsewhere, in trimmed micro-batches sorted by length."""
        scored = torch.zeros_like(record["labels"][:, 1:], dtype=torch.float32)
        parts = rows_.by_length(rows, record["lengths"], self.size)
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
