"""Any forget set: a share of the rows, chosen authors, or written rows; splits by share are nested as TOFU's are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negpo.errors import ConfigError, DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class ForgetSplit:
    """Row numbers of the full set to forget and to keep, in order; together all of them."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.forget or not self.retain:
            raise ConfigError(f"{len(self.forget)} rows to forget and {len(self.retain)} to keep: both must hold rows")

    def rows(self, full: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """The rows themselves, each with ``source_row``: one question text of TOFU occurs twice, so numbers decide."""
        first, second = ([full[i] | {"source_row": i} for i in part] for part in (self.forget, self.retain))
        return first, second


def by_share(n: int, percent: float) -> ForgetSplit:
    """The last ``percent`` % of ``n`` rows, as TOFU's forget20 to forget90 (splits are nested: 20 lies within 30)."""
    if not 0 < percent < 100:
        raise ConfigError(f"percent is {percent}; it lies between 0 and 100")
    count = round(n * percent / 100)
    return ForgetSplit(tuple(range(n - count, n)), tuple(range(n - count)))


def by_authors(n: int, authors: Sequence[int], *, rows_per_author: int = 20) -> ForgetSplit:
    """All rows of the numbered authors (0 is the first; consecutive blocks of rows)."""
    if rows_per_author < 1 or n % rows_per_author:
        raise ConfigError(f"{n} rows are no whole number of authors with {rows_per_author} rows each")
    total = n // rows_per_author
    if len(set(authors)) < len(authors):
        raise ConfigError(f"authors {list(authors)} names one twice")
    if outside := [author for author in authors if not 0 <= author < total]:
        raise ConfigError(f"author {outside[0]} does not exist; there are authors 0 to {total - 1}")
    chosen = set(authors)
    forget = tuple(i for i in range(n) if i // rows_per_author in chosen)
    return ForgetSplit(forget, tuple(i for i in range(n) if i // rows_per_author not in chosen))


def draw_authors(n: int, count: int, *, seed: int, rows_per_author: int = 20) -> tuple[int, ...]:
    """``count`` authors drawn without replacement; the same for the same seed on every platform."""
    total = n // rows_per_author
    if not 0 < count < total:
        raise ConfigError(f"count is {count}; between 1 and {total - 1} of {total} authors can be forgotten")
    return tuple(sorted(random.Random(seed).sample(range(total), count)))


def by_rows(n: int, rows: Sequence[int]) -> ForgetSplit:
    """Exactly the numbered rows."""
    if len(set(rows)) < len(rows):
        raise ConfigError("a row is named twice")
    if outside := [row for row in rows if not 0 <= row < n]:
        raise ConfigError(f"row {outside[0]} does not exist; there are rows 0 to {n - 1}")
    chosen = set(rows)
    return ForgetSplit(tuple(sorted(chosen)), tuple(i for i in range(n) if i not in chosen))


def perturbed_of(split: ForgetSplit, perturbed: dict[int, Row]) -> tuple[list[Row], list[int]]:
    """Perturbed answers of the forget rows by row number, and the forget rows that have none: no truth ratio for those.

    TOFU publishes them for rows 0 to 399 and 3600 to 3999 only. Raises DataError when no forget row has any.
    """
    found = [perturbed[i] | {"source_row": i} for i in split.forget if i in perturbed]
    missing = [i for i in split.forget if i not in perturbed]
    if not found:
        raise DataError(
            f"none of the {len(split.forget)} forget rows has perturbed answers, first row {split.forget[0]}; TOFU has "
            "them for rows 0 to 399 and 3600 to 3999. Generate them, or choose other rows"
        )
    return found, missing


def requests(splits: Sequence[ForgetSplit], n: int) -> list[ForgetSplit]:
    """Requests one after the other: each forgets its own rows and keeps what no request up to it has asked to forget.

    Raises ConfigError when two requests ask for the same row.
    """
    gone: set[int] = set()
    found = []
    for number, split in enumerate(splits):
        if again := sorted(gone & set(split.forget)):
            raise ConfigError(f"request {number} asks for row {again[0]}, which an earlier one already has")
        gone |= set(split.forget)
        found.append(ForgetSplit(split.forget, tuple(i for i in range(n) if i not in gone)))
    return found
