"""Errors a user can act on: each message says what happened, the value seen, and what to change."""


class NegpoError(Exception):
    """Base class. The command line prints the message without a traceback and exits with status 2."""


class ConfigError(NegpoError):
    """A setting is unknown, missing or contradicts another one."""


class DataError(NegpoError):
    """A data file cannot be used. The message names file, row and field."""

    def __init__(self, message: str, *, file: str | None = None, row: int | None = None, field: str | None = None):
        self.file, self.row, self.field = file, row, field
        place = [part for part in (file, None if row is None else f"row {row}", field and f"field '{field}'") if part]
        super().__init__(f"{', '.join(place)}: {message}" if place else message)


class VerifierError(NegpoError):
    """The verifier's workers cannot be started or die at everything: no verdict means anything any more."""


class TrainingStopped(NegpoError):
    """A guard ended the run: non-finite values, collapse. The message names the checkpoint that is still good.

    ``told``: it does so already; otherwise the run's end adds it.
    """

    def __init__(self, message: str, *, told: bool = False):
        self.told = told
        super().__init__(message)


class TrainingInterrupted(TrainingStopped):
    """SIGTERM ended the run after a complete checkpoint. The command line exits with status 143, as a shell would."""
