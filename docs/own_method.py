"""Two methods of your own, ten lines each: a function of rewards, and a function of log-probs.

    python docs/own_method.py MODEL_FOLDER

The first trains on the only right answer of a group, if there is just one, and against the rest. The second replaces
the clipped ratio by a ratio that is cut off at 2. Both run through the data path of the shipped methods: rows of
advantage 0 are not run, unknown rewards are left out, logs, guards and resume come with it.
"""

import sys

import torch
from torch import Tensor

from negpo.trainers import PolicyConfig, PolicyTrainer

PROBLEMS = [{"prompt": f"Question: Start with {n}, then + {n}.\nAnswer:", "answer": str(2 * n)} for n in range(1, 33)]


def lonely_answers(rewards: Tensor, groups: Tensor) -> Tensor:
    """(N,) rewards, NaN where unknown, and (N,) group numbers to (N,) advantages: only groups with one right answer."""
    right = (rewards > 0.5).float()
    per_group = torch.zeros(int(groups.max()) + 1, device=rewards.device).index_add(0, groups, right)
    lonely = per_group[groups] == 1
    return torch.where(lonely, right - 1.0 / 8.0, 0.0)


def truncated_ratio(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """All (B, T) but ``advantages`` (B,): REINFORCE with a bounded, detached importance ratio, a mean over ``mask``."""
    ratio = (logps - old_logps).detach().exp().clamp(max=2.0)
    terms = -advantages.unsqueeze(1) * ratio * logps
    return torch.where(mask, terms, 0.0).sum() / mask.sum()


def contains_answer(prompts, completions, answer, **_) -> list[float]:
    return [float(gold in text) for text, gold in zip(completions, answer, strict=True)]


def make_trainer(model: str, output_dir: str = "own-method", **settings) -> PolicyTrainer:
    """Eight answers per prompt, four steps per rollout; ``settings`` are fields of ``PolicyConfig``."""
    args = PolicyConfig(output_dir=output_dir, **{"per_device_train_batch_size": 8, "num_generations": 8} | settings)
    return PolicyTrainer(model, contains_answer, args, PROBLEMS, advantages=lonely_answers, loss=truncated_ratio)


if __name__ == "__main__":
    make_trainer(sys.argv[1]).train()
