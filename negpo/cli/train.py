"""``negpo train METHOD [--config RECIPE] [--key value ...] [--launch NAME --num-processes N]``.

Help is read from the source of the config classes with ``ast``: importing them costs seconds, listing them must not.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import negpo
from negpo.cli import launch
from negpo.trainers import METHODS, SCRIPTS

TRAINERS = Path(negpo.__file__).parent / "trainers"
HELP_FLAGS = {"-h", "--help"}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train with one method",
        description="Train with one method. Settings come from a recipe and from flags; flags win.",
        epilog="negpo train METHOD --help lists the settings of a method. Several processes: --launch NAME "
        f"--num-processes N with NAME one of {', '.join(launch.LAUNCHES)}.",
    )
    parser.add_argument("method", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument(
        "settings",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="--config RECIPE (a YAML file or a shipped name such as npo/tofu_forget10) and --key value",
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int | None:
    settings = [*args.settings, *extra]
    if args.method in METHODS and HELP_FLAGS & set(settings):
        print(method_help(args.method))
        return None
    how, settings = launch.split(settings)
    if how is not None:
        return launch.run(how, args.method, settings)
    from negpo.trainers._script import run_training

    run_training(args.method, settings)
    return None


def method_help(method: str) -> str:
    """All settings that negpo defines for ``method``: its own, those of the modules it builds on, model and data."""
    own = _file(METHODS[method][0])
    sections = [(f"settings of {method}", own)]
    sections += [("shared with other methods", path) for path in imported_trainer_modules(own)]
    sections += [("data", _file(SCRIPTS[method])), ("model", TRAINERS / "_script" / "arguments.py")]
    sections += [("adapter and quantisation", _trl_model_config())]
    lines, told = [f"usage: negpo train {method} [--config RECIPE] [--key value ...]"], set()
    for title, path in sections:
        settings = [setting for setting in read_settings(path) if setting[0] not in told]  # the nearest default holds
        told |= {name for name, _, _ in settings}
        if settings:
            lines.append(f"\n{title}:")
            lines += [f"  --{name} (default {default})\n      {text}" for name, default, text in settings]
    lines.append(
        f"\nseveral processes: --launch {{{','.join(launch.LAUNCHES)}}} --num-processes N, and accelerate's flags\n"
        f"  {', '.join(f'--{name}' for name in launch.PLACEMENT)}"
    )
    lines.append(
        "\nand every field of transformers.TrainingArguments: --output_dir, --per_device_train_batch_size, ..."
    )
    return "\n".join(lines)


def imported_trainer_modules(path: Path) -> list[Path]:
    """Files of ``negpo.trainers`` that a file builds on, nearest first, itself excluded."""
    found = [path]
    for known in found:  # grows on the way
        found += [other for other in _imports(known) if other not in found]
    return found[1:]


def _imports(path: Path) -> list[Path]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    found = [_file(name) for name in names if name.startswith("negpo.trainers.")]
    return [path for path in found if path.is_file()]  # a room is a folder; what it is imported for has its own line


def _file(module: str) -> Path:
    return TRAINERS.joinpath(*module.split(".")[2:]).with_suffix(".py")


def _trl_model_config() -> Path:
    """TRL's own script arguments; found without importing TRL."""
    spec = find_spec("trl")
    assert spec is not None  # a dependency of negpo
    assert spec.origin is not None
    return Path(spec.origin).parent / "trainer" / "model_config.py"


def read_settings(path: Path) -> Iterator[tuple[str, str, str]]:
    """``(name, default, help)`` of every ``name: type = field(default=..., metadata={"help": ...})`` in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ClassDef):
            continue
        for statement in node.body:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.value, ast.Call):
                continue
            keywords = {keyword.arg: keyword.value for keyword in statement.value.keywords}
            if "metadata" in keywords:
                metadata = ast.literal_eval(keywords["metadata"])
                yield ast.unparse(statement.target), ast.unparse(keywords["default"]), metadata["help"]
