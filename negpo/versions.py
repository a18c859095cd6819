"""Versions of what numbers depend on, as manifests and model cards record them."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "negpo", "torch", "transformers", "trl", "accelerate", "tokenizers", "peft", "numpy", "scipy", "rouge-score",
    "datasets",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Version of Python and of each installed package of PACKAGES."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
