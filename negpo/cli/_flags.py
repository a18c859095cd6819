"""Types of flags: what argparse refuses before a command runs. Standard library only."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path


def at_least(smallest: int) -> Callable[[str], int]:
    """Whole numbers from ``smallest`` on."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:  # also more digits than Python reads
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from error
        if not smallest <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number of {smallest} or more (below 2^63)")
        return value

    return whole_number


positive, natural = at_least(1), at_least(0)


def number(low: float, high: float = math.inf, *, exclude_low: bool = False) -> Callable[[str], float]:
    """Finite numbers from ``low`` to ``high``, without ``low`` itself where ``exclude_low``."""

    def real_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from error
        if not math.isfinite(value) or not low <= value <= high or (exclude_low and value == low):
            border = f"above {low:g}" if exclude_low else f"at least {low:g}"
            limit = "" if math.isinf(high) else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text[:40]} is not a number that is {border}{limit}")
        return value

    return real_number


def output_folder(text: str) -> Path:
    """A folder that exists, or that can be made where it is to be; nothing is made yet."""
    path = Path(text)
    try:
        _check_folder(path)
    except (OSError, ValueError) as error:  # a name too long, a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(f"{text[:200]!r} cannot be a folder: {reason}") from error
    return path


def output_file(text: str) -> Path:
    """A file that can be written: its folder is one that :func:`output_folder` accepts, and it is no folder itself."""
    output_folder(str(Path(text).parent))
    if not text or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give the name of a file")
    return Path(text)


def _exists(path: Path) -> bool:
    """As os.path.lexists, which answers False for names that no file can have."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_folder(path: Path) -> None:
    here = path.absolute()
    while not _exists(here):
        here = here.parent
    if not here.is_dir():
        raise argparse.ArgumentTypeError(f"{path} cannot be made: {here} is not a folder")
    if not os.access(here, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: no permission in {here}")
