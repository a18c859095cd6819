"""What papers lead one to expect, as inequalities with bounds that were fixed before, and how they came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from negpo.eval.bootstrap import Estimate, Interval
from negpo.report._base import Card, Cell, Table, interval_cell, print_cards

TONES = {"holds": "good", "open": "warn", "fails": "bad"}


@dataclass(frozen=True)
class Part:
    """One measurable statement: the estimate lies above (or below) `bound`.

    A `condition` must hold too for the claim to hold, but says nothing against it where it fails.
    """

    text: str
    estimate: Interval
    bound: float
    above: bool
    condition: bool = False

    @property
    def verdict(self) -> str:
        """`holds` or `fails` where the whole interval is on one side of the bound, else `open`."""
        low, high = self.estimate.low, self.estimate.high
        sides = (low > self.bound, high < self.bound)
        holds, fails = sides if self.above else sides[::-1]
        return "holds" if holds else "fails" if fails else "open"

    @property
    def measured(self) -> str:
        return self.estimate.text()


@dataclass(frozen=True)
class Counted:
    """A statement that is decided for each instance on its own: `holds` (S,), what was `measured` in words."""

    measured: str
    holds: Sequence[bool]
    text: str = ""
    condition: ClassVar[bool] = False

    @property
    def verdict(self) -> str:
        count, total = sum(map(bool, self.holds)), len(self.holds)
        return "holds" if count == total else "fails" if count == 0 else f"in {count} of {total}"


@dataclass(frozen=True)
class Claim:
    """What a paper leads one to expect, where it says so, and how its parts came out here."""

    title: str
    parts: Sequence[Part | Counted]
    notes: Sequence[str] = ()
    source: str = ""

    @property
    def tone(self) -> str:
        """good: everything holds; bad: everything but conditions fails; else warn."""
        if all(part.verdict == "holds" for part in self.parts):
            return "good"
        return "bad" if all(part.verdict == "fails" for part in self.parts if not part.condition) else "warn"

    @property
    def headline(self) -> str:
        if self.tone != "warn":
            return "Reproduced" if self.tone == "good" else "Not reproduced"
        verdicts = [part.verdict if part.verdict in ("holds", "fails") else "open" for part in self.parts]
        if set(verdicts) == {"open"}:
            return "Undecided: the interval includes both"
        names = {"holds": "hold", "open": "undecided", "fails": "do not hold"}
        counts = {name: verdicts.count(verdict) for verdict, name in names.items()}
        return ", ".join(f"{count} of {len(verdicts)} {name}" for name, count in counts.items() if count)

    @property
    def card(self) -> Card:
        return Card(self.title, self.headline, self.tone, self.notes)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        parts = [{**asdict(part), "verdict": part.verdict} for part in self.parts]
        return {"title": self.title, "headline": self.headline, "parts": parts, "notes": self.notes}


def parts_table(found: Sequence[Claim]) -> Table:
    """Every measurable part of every claim with its interval, the seeds' values and the verdict."""
    rows = []
    for part in (part for claim in found for part in claim.parts if isinstance(part, Part)):
        seeds = part.estimate.seeds if isinstance(part.estimate, Estimate) else ()
        claimed = f"{'above' if part.above else 'below'} {part.bound:g}"
        cells = [Cell(part.text), interval_cell(part.estimate, "{:+.3f}"), Cell(", ".join(f"{v:+.3f}" for v in seeds))]
        rows.append([*cells, Cell(claimed), Cell(part.verdict, tone=TONES[part.verdict])])
    caption = (
        "95 % intervals of a bootstrap over seeds and over questions within each; both runs of a comparison answer the "
        "same questions. A part holds or fails where its whole interval lies on one side of the bound, else it is open."
    )
    return Table(["measured", "value", "by seed", "claimed", "verdict"], rows, caption)


def print_claims(found: Sequence[Claim], report: Path) -> None:
    """Claims with their parts on the terminal, and where the report is."""
    cards = []
    for claim in found:
        notes = [f"{part.verdict:<6}{part.text}: {part.measured}" for part in claim.parts]
        cards.append(Card(claim.title, claim.headline, claim.tone, notes))
    print_cards(cards, report)
