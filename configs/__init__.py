"""Recipes and launch configurations, shipped as package data.

``recipe_path("npo/tofu_forget10")`` gives the YAML file of one recipe.
"""

from pathlib import Path

from negpo.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent


def recipe_path(name: str) -> Path:
    """Path of a shipped recipe ``<method>/<benchmark>`` (with or without ``.yaml``), or of an existing file."""
    if Path(name).is_file():
        return Path(name)
    shipped = CONFIGS / "recipes" / f"{name.removesuffix('.yaml')}.yaml"
    if not shipped.is_file():
        known = sorted(
            str(p.relative_to(CONFIGS / "recipes").with_suffix("")) for p in CONFIGS.glob("recipes/*/*.yaml")
        )
        raise ConfigError(f"no recipe '{name}'. Give a YAML file or one of: {', '.join(known)}")
    return shipped
