"""What is shown on a terminal: consoles and progress bars. Nothing is read as markup: names and paths are anybody's."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")


def plain_console(*, stderr: bool = False) -> "Console":
    """A console on which ``[/red]`` or ``:smile:`` in a label or path is what it is. Styles come from rich's Text.

    A reader that has gone (``negpo ... | head``) is a BrokenPipeError, as with print; rich would exit with status 1.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise

    return PlainConsole(stderr=stderr, markup=False, emoji=False)


def progress_bar(*, transient: bool = False, stderr: bool = False) -> "Progress":
    """Description, bar, how many of how many, time. Descriptions are shown as they are."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=plain_console(stderr=stderr), transient=transient)


def track(items: Sequence[T] | Iterable[T], description: str, *, enabled: bool = True) -> Iterator[T]:
    """Iterate over ``items`` with a bar, where standard error is a terminal and ``enabled`` holds."""
    if not (enabled and plain_console(stderr=True).is_terminal):
        yield from items
        return
    with progress_bar(transient=True, stderr=True) as bar:
        yield from bar.track(items, description=description)
