"""Progress bars on standard error; silent when nobody is looking at a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T] | Iterable[T], description: str, *, enabled: bool = True) -> Iterator[T]:
    """Iterate over ``items`` with a bar, where standard error is a terminal and ``enabled`` holds."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield from items
        return
    yield from rich_track(items, description=description, console=console, transient=True)
