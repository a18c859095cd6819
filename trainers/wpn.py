"""A reconstruction of ours of WPN, weighted positional N-pair learning (arXiv 2408.09459). Not the paper's method.

Known from the paper: texts become vectors by position-weighted mean pooling, which enter an N-pair loss that replaces
"harmful prompt -> harmful answer" by "harmful prompt -> harmless answer". Everything else is our choice: the anchor is
the prompt alone, positives and negatives are prompt + answer, all by the policy; states are those the head sees;
similarity is the cosine over a temperature (dot products can be lowered by growing norms alone); and an NLL of the
harmless answers keeps the model a language model.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from negpo.logprobs import LogprobBatch, model_token_logprobs
from negpo.logprobs.shared import choose_shared_layout
from negpo.objectives import n_pair_loss, position_weighted_mean
from negpo.trainers._preference.base import PreferenceTrainer
from negpo.trainers._preference.config import PreferenceConfig
from negpo.trainers._preference.data import Scored
from negpo.trainers._run.config import require_positive


@dataclass
class WPNConfig(PreferenceConfig):
    """Our reconstruction; every default is ours."""

    temperature: float = field(default=0.1, metadata={"help": "Divides the cosine similarities. Ours."})
    nll_coeff: float = field(default=1.0, metadata={"help": "Weight of the harmless answers' NLL. Ours."})

    @property
    def reads_reference_logps(self) -> bool:
        return False

    def validate(self) -> None:
        super().validate()
        require_positive(self, "temperature")


class WPNTrainer(PreferenceTrainer):
    """Minimises ``negpo.objectives.n_pair_loss`` on pooled states, a mean over (prompt, chosen) rows of the batch."""

    config_class: ClassVar[type[PreferenceConfig]] = WPNConfig
    unit = "chosen"
    has_reference = False
    logged_stats = ("accuracy", "mean_margin")

    def preference_loss(self, scored: Scored):
        hidden = scored.hidden
        assert hidden is not None  # _forward asks for the states
        whole = self._embed(hidden, scored.real)  # (R, H)
        prompt = torch.ones_like(scored.real)
        prompt[:, 1:] = ~scored.mask
        prompts = self._embed(hidden, scored.real & prompt)
        chosen = (scored.sign > 0).nonzero().squeeze(1)
        negatives = scored.lists(scored.sign < 0)[scored.group[chosen]]  # (N, K), -1 where a prompt has fewer
        counts = (negatives >= 0).sum(1)
        parts = []
        for k in counts.unique():
            rows = counts == k
            some = chosen[rows]
            parts.append((rows.sum(), n_pair_loss(prompts[some], whole[some], whole[negatives[rows, :k]])))
        n = len(chosen)
        loss = sum(size * part for size, (part, _) in parts) / n
        return loss, {name: sum(size * stats[name] for size, (_, stats) in parts) / n for name in self.logged_stats}

    def _embed(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors over the square root of the temperature: their dot products are cosine / temperature."""
        pooled = position_weighted_mean(hidden.float(), mask)
        return torch.nn.functional.normalize(pooled, dim=-1) / self.args.temperature**0.5

    def _forward(self, model, rows: dict[str, Tensor]) -> LogprobBatch:
        """With states of all tokens: a column of padding behind them, because the last one predicts nothing."""
        fill = {"input_ids": self.processing_class.pad_token_id, "attention_mask": 0, "labels": -100}
        ids, mask, labels = (torch.nn.functional.pad(rows[name], (0, 1), value=fill[name]) for name in fill)
        layout = choose_shared_layout(model, ids, mask, rows["group"], rows["shared"], self.args.share_prompt)
        out = model_token_logprobs(model, ids, mask, labels, layout=layout, return_hidden=True)
        return LogprobBatch(out.logps[:, :-1], out.mask[:, :-1], hidden=out.hidden)
