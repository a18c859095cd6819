"""What `negpo demo prefer` measures of a model: sampled answers, graded, and its distance from the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SEED = 7  # of the samples that are measured; the same questions get the same random numbers at every point


@dataclass(frozen=True)
class Question:
    """A held-out prompt with its right result; `group` is the kind of question the results are shown by."""

    prompt: str
    gold: str
    group: str = ""


def measure_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    samples: int,
    max_new_tokens: int,
    *,
    is_harmful: Callable[[str], bool] = lambda text: False,
) -> dict[str, Any]:
    """Draw `samples` answers to every question at temperature 1 and grade them.

    Returns:
        `samples`; per question `right` and `harmful`, counts of answers; `tokens`, the mean length of an answer;
        `truncated` and `unanswered`, shares of answers that hit the length limit or hold no result.
    """
    from negpo.rewards import VerifierPool
    from negpo.rollout import Sampling, make_engine

    engine = make_engine("transformers", model, tokenizer)
    sampling = Sampling(n=samples, max_new_tokens=max_new_tokens, seed=SEED, logprobs=False)
    drawn = engine.generate([tokenizer(question.prompt)["input_ids"] for question in questions], sampling)
    texts = [[tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in row] for row in drawn]
    pairs = [(text, question.gold) for question, row in zip(questions, texts, strict=True) for text in row]
    pool = VerifierPool(workers=1)  # starts no process unless an answer needs one
    try:
        verdicts = pool.grade_many(pairs, kinds="integer")
    finally:
        pool.close()
    right = [verdict.status == "correct" for verdict in verdicts]
    lengths = [len(sample.token_ids) for row in drawn for sample in row]
    cut = [sample.finish_reason == "length" for row in drawn for sample in row]
    return {
        "samples": samples,
        "right": [sum(right[i : i + samples]) for i in range(0, len(right), samples)],
        "harmful": [sum(map(is_harmful, row)) for row in texts],
        "tokens": sum(lengths) / len(lengths),
        "truncated": sum(cut) / len(cut),
        "unanswered": sum(verdict.extracted is None for verdict in verdicts) / len(verdicts),
        "examples": [row[0] for row in texts[:: max(1, len(texts) // 8)]],
    }


class Divergence:
    """Token KL(reference || model) along the reference's own answers to fixed prompts, in nats per token."""

    def __init__(self, reference: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int):
        import torch

        from negpo.rollout import Sampling, make_engine

        asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        sampling = Sampling(max_new_tokens=max_new_tokens, seed=SEED, logprobs=False)
        answers = make_engine("transformers", reference, tokenizer).generate(asked, sampling)
        rows = [ids + list(row[0].token_ids) for ids, row in zip(asked, answers, strict=True)]
        width = max(map(len, rows))
        self._ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        # True where the next token belongs to the answer
        places = [
            [len(ids) - 1 <= at < len(row) - 1 for at in range(width)] for ids, row in zip(asked, rows, strict=True)
        ]
        self._mask = torch.tensor(places)
        self._logps = self._log_softmax(reference)

    def _log_softmax(self, model: Any) -> Any:
        """(answer tokens, V) float32. Padding stands on the right, where causal attention cannot see it."""
        import torch

        training = model.training
        model.eval()
        with torch.no_grad():
            hidden = model.base_model(input_ids=self._ids, use_cache=False).last_hidden_state
            found = model.get_output_embeddings()(hidden[self._mask]).float().log_softmax(-1)
        model.train(training)
        return found

    def per_prompt(self, model: Any) -> list[float]:
        """Mean over the answer's tokens, one number per prompt."""
        import torch

        gaps = (self._logps.exp() * (self._logps - self._log_softmax(model))).sum(-1)
        table = torch.zeros(self._mask.shape).masked_scatter(self._mask, gaps)
        return (table.sum(1) / self._mask.sum(1)).tolist()
