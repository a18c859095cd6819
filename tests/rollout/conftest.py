"""Fixtures of the engine tests."""

import random

import pytest
from rollout_models import VOCABULARY, build_model


@pytest.fixture
def model():
    return build_model()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Twelve prompts of 3 to 20 tokens."""
    rng = random.Random(0)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(3, 21))] for _ in range(12)]
