"""Token log-probabilities without materialised logits: one primitive for every trainer and harness."""

from negpo.logprobs.core import token_logprobs
from negpo.logprobs.head import HeadSpec, head_of
from negpo.logprobs.model import LogprobBatch, backbone_hidden, model_token_logprobs

__all__ = ["HeadSpec", "LogprobBatch", "backbone_hidden", "head_of", "model_token_logprobs", "token_logprobs"]
