"""Markdown from figures, and who loses."""

from __future__ import annotations

import pytest

from benchmarks.scoreboard import contests, tables
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.spread import summary
from benchmarks.scoreboard.tables import BEGIN, END, Table


def test_a_table_in_markdown() -> None:
    table = Table(title="Sizes", header=["", "kB"], rows=[["a|b", "1"]], notes=["c: refused"])

    assert table.markdown() == "**Sizes**\n\n|  | kB |\n| --- | ---: |\n| a\\|b | 1 |\n\nc: refused"


def test_only_what_is_between_the_markers_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert tables.placed(document, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


@pytest.mark.parametrize("document", ["none", f"{BEGIN} alone", f"{END}{BEGIN}"])
def test_a_document_without_both_markers_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="expected the lines"):
        tables.placed(document, "new")


def test_spread_and_difference() -> None:
    assert tables.spread(summary([1.0, 2.0, 4.0])) == "2.00 (1.00 - 4.00)"
    assert tables.spread(summary([1.0]), "{:.0f}") == "1"
    assert tables.spread(None) == "–"
    assert tables.difference({"points": 0.125, "standard_error": 0.05}) == "+0.12 ± 0.05"


def test_a_reason_is_short_and_its_names_are_cut() -> None:
    name = "/".join(["fashion_mnist"] * 10)

    assert tables.short(f"node '{name}':\n refused") == f"node '…{name[-20:]}': refused"
    assert tables.short("a " * 300, length=10) == "a a a a a…"


def _contest(lead: float, noise: float = 0.1, peer: str = "other") -> Contest:
    return Contest(section="Accuracy", what="8 bits", peer=peer, lead=lead, noise=noise, text="1, 2")


@pytest.mark.parametrize(("lead", "verdict"), [(0.2, "wins"), (0.1, "level"), (-0.1, "level"), (-0.2, "loses")])
def test_a_lead_within_the_noise_decides_nothing(lead: float, verdict: str) -> None:
    assert _contest(lead).verdict == verdict


def test_every_contest_that_is_lost_is_named() -> None:
    text = contests.markdown([_contest(1.0, peer="worse"), _contest(-1.0, peer="better"), _contest(-0.05, peer="nearly")])

    assert "| Accuracy | 1 | 1 | 1 |" in text
    lost, _, behind = text.partition("**Behind, but within the noise**")
    assert "| better |" in lost
    assert "nearly" not in lost
    assert "| nearly |" in behind
    assert "worse" not in text


def test_no_contest_that_is_lost_is_said_too() -> None:
    assert "tfqat loses none of them." in contests.markdown([_contest(1.0)])
