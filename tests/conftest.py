"""Fixtures that every test file may use."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference numbers and benchmark data beside the checkout; tests that use it skip without it."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(os.environ.get("NEGPO_SHARED", default))
    if not folder.is_dir():
        pytest.skip("needs the shared folder with fixtures and data (set NEGPO_SHARED)")
    return folder


@pytest.fixture(scope="session")
def load_fixture(shared):
    """``load_fixture("unlearning/inputs.json")`` reads one file of reference numbers."""

    def load(name: str):
        with open(shared / "fixtures" / name, encoding="utf-8") as file:
            return json.load(file)

    return load
