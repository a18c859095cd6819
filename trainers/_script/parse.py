"""Recipes and flags to script arguments and a method's config."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from trl import TrlParser

from negpo.configs import recipe_path
from negpo.data.io import read_yaml
from negpo.errors import ConfigError
from negpo.trainers import METHODS, SCRIPTS


class _Parser(TrlParser):
    """TrlParser that reports a bad value as ConfigError instead of printing 300 lines of usage."""

    def error(self, message: str):
        raise ConfigError(message)


def parse(method: str, argv: Sequence[str]) -> tuple[Any, Any]:
    """Script arguments and the method's config from ``[--config RECIPE] [--key value ...]``; flags win over the recipe.

    RECIPE is a file or a shipped name such as ``npo/tofu_forget10``. An unknown key is a ConfigError that names the
    file and the nearest valid key, or the methods that the key belongs to.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{_nearest(method, METHODS)}. Methods: {', '.join(METHODS)}")
    kinds: Any = classes_of(method)
    parser = _Parser(kinds, allow_abbrev=False)
    known = _settings(kinds)
    argv = _with_recipe(method, list(argv), known)
    script, args, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    if unknown:
        flag, _, value = unknown[0].partition("=")
        key, value = flag.lstrip("-"), value or "".join(unknown[1:2])
        belongs = _belongs(key, value, method)
        raise ConfigError(
            belongs or f"unknown flag {unknown[0]}{_nearest(key, known, '--')}; see negpo train {method} --help"
        )
    script.validate()
    if args.output_dir in (None, "trainer_output"):
        args.output_dir = f"{method}-output"
    return script, args


def classes_of(method: str) -> tuple[type, type]:
    """Script arguments of the method's family, with those of the method itself, and its config."""
    module, _, config_name = METHODS[method]
    config = getattr(import_module(module), config_name)
    family = import_module(SCRIPTS[method]).ARGUMENTS
    if config.script_arguments is None:
        return family, config
    both = type(family.__name__, (config.script_arguments, family), {"__doc__": family.__doc__})
    return dataclass(both), config


def _settings(kinds: Iterable[type]) -> set[str]:
    return {item.name for kind in kinds for item in fields(kind) if item.init}  # type: ignore[arg-type]


def _with_recipe(method: str, argv: list[str], known: set[str]) -> list[str]:
    """``argv`` with the recipe's name replaced by its path, after its keys were checked."""
    if "--config" not in argv:
        return argv
    place = argv.index("--config") + 1
    if place == len(argv):
        raise ConfigError("--config needs a file or the name of a shipped recipe")
    path = recipe_path(argv[place])
    recipe = read_yaml(path)
    if not recipe:
        raise ConfigError(f"{path} holds no settings: write 'key: value' lines")
    for key, value in recipe.items():
        if key not in known:
            belongs = _belongs(key, value, method)
            raise ConfigError(f"{path}: {belongs or f'unknown key {key!r}{_nearest(key, known)}'}")
    return [*argv[:place], str(path), *argv[place + 1 :]]


def _nearest(key: str, known: Iterable[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f" (did you mean {dashes}{close[0]}?)" if close else ""


def _belongs(key: str, value: Any, method: str) -> str | None:
    """For a setting that other methods have: who they are. None for one that does not exist."""
    owners = [other for other in METHODS if key in _settings(classes_of(other))]
    if not owners:
        return None
    return f"{key}={value} belongs to {', '.join(owners)}; {method} has no such setting"
