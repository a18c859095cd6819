"""Token log-probabilities without materialised logits: one primitive for every trainer and harness."""

from negpo.logprobs.core import token_logprobs
from negpo.logprobs.head import HeadSpec, head_of
from negpo.logprobs.kl import retain_kl_from_models, streamed_kl
from negpo.logprobs.model import LogprobBatch, backbone_hidden, model_token_logprobs
from negpo.logprobs.stats import TokenStats, model_token_stats, token_stats

__all__ = [
    "HeadSpec",
    "LogprobBatch",
    "TokenStats",
    "backbone_hidden",
    "head_of",
    "model_token_logprobs",
    "model_token_stats",
    "retain_kl_from_models",
    "streamed_kl",
    "token_logprobs",
    "token_stats",
]
