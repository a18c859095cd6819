"""negpo: post-training language models on what they must forget, what they got wrong, and what people rejected.

Nothing heavy is imported here; ``import negpo`` costs milliseconds. Use ``negpo.objectives``, ``negpo.logprobs``,
``negpo.trainers``, ``negpo.eval``, ``negpo.rewards`` and ``negpo.rollout``.
"""

__version__ = "0.1.0"
