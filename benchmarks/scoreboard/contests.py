"""Where tfqat loses, from the figures alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.scoreboard.tables import Table


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One figure of a peer beside that of tfqat.

    Attributes:
        lead: by how much tfqat is ahead, in the figure's unit; negative: the peer is.
        noise: a lead within +- noise decides nothing.
        text: both figures in words.
    """

    section: str
    what: str
    peer: str
    lead: float
    noise: float
    text: str

    @property
    def verdict(self) -> str:
        """wins, loses or level: the last where the lead is within the noise."""
        if abs(self.lead) <= self.noise:
            return "level"
        return "wins" if self.lead > 0 else "loses"


def markdown(contests: Iterable[Contest]) -> str:
    """How many contests end how, and each that tfqat loses; then those in which the peer is ahead within the noise."""
    contests = list(contests)
    counts = [
        [section, *(str(sum(one.section == section and one.verdict == verdict for one in contests)) for verdict in VERDICTS)]
        for section in dict.fromkeys(one.section for one in contests)
    ]
    parts = [Table(title="All contests", header=["comparison", *VERDICTS], rows=counts).markdown()]
    lost = [one for one in contests if one.verdict == "loses"]
    parts.append(_listed("tfqat loses", lost) if lost else "tfqat loses none of them.")
    behind = [one for one in contests if one.verdict == "level" and one.lead < 0]
    if behind:
        parts.append(_listed("Behind, but within the noise", behind))
    return "\n\n".join(parts)


VERDICTS = ("wins", "level", "loses")


def _listed(title: str, contests: list[Contest]) -> str:
    rows = [[one.section, one.what, one.peer, one.text] for one in contests]
    return Table(title=title, header=["comparison", "figure", "to", "tfqat's figure, theirs"], rows=rows).markdown()
