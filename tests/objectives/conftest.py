"""Reference numbers of fixtures/unlearning and fixtures/rl as tensors."""

import pytest
import torch
from objectives_support import ToyModel


@pytest.fixture
def toy(load_fixture) -> ToyModel:
    """The toy language model of the unlearning fixtures."""
    return ToyModel(load_fixture("unlearning/inputs.json"))


@pytest.fixture
def cases(load_fixture):
    """``cases("npo_official")`` is {name: case} of one unlearning file."""

    def read(name: str) -> dict:
        return {case["name"]: case for case in load_fixture(f"unlearning/{name}.json")["cases"]}

    return read


@pytest.fixture
def rl(load_fixture):
    """``rl("ngrpo")`` is the whole file; ``rl.dataset(file, case)`` its tensors (mask, old, new, rewards, groups)."""

    def read(name: str) -> dict:
        return load_fixture(f"rl/{name}.json")

    def dataset(file: dict, case: dict) -> dict:
        stored = file["datasets"][case.get("dataset", "mixed")]
        double = {key: torch.tensor(stored[key], dtype=torch.float64) for key in ("old_logp", "new_logp", "reward01")}
        new = double["old_logp"] if case.get("policy") == "on" else double["new_logp"]
        return {
            "mask": torch.tensor(stored["mask"]).bool(),
            "old": double["old_logp"],
            "new": new.clone().requires_grad_(),
            "rewards": double["reward01"],
            "groups": torch.tensor(stored["group_id"]),
        }

    read.dataset = dataset
    return read
