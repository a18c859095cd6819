"""What a recipe says beside a method's config, as far as runs and methods know of it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where rows come from: what they are (for the model card), file, folder or Hub id, and its configuration."""

    kind: str
    path: str | None
    name: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, (self.path, self.name)))


class ScriptArguments:
    """Root of all script arguments, which are dataclasses. A config names further ones in ``script_arguments``.

    Every hook calls ``super()``, so that a family's and a method's arguments stand side by side.
    """

    def validate(self) -> None:
        """Raise ConfigError for values and combinations that cannot be meant, before anything is loaded."""

    def further(self) -> dict[str, Any]:
        """Keyword arguments of the trainer that come from these settings."""
        return {}

    def sources(self) -> dict[str, Source]:
        """The files behind the trainer's arguments, for the model card and for errors in their rows."""
        return {}

    def earlier_run(self) -> tuple[str, list[str]] | None:
        """Method and command line of a run whose output this one starts from; it is done first unless complete."""
        return None

    @property
    def trains(self) -> bool:
        """Whether the run itself is wanted, and not only the earlier one."""
        return True
