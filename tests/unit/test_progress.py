"""Counting and silence."""

from __future__ import annotations

from tfqat.progress import Silent, counted


def test_an_item_is_counted_when_it_has_been_used() -> None:
    events: list[str] = []
    for item in counted(["a", "b"], lambda: events.append("counted")):
        events.append(item)
    assert events == ["a", "counted", "b", "counted"]


def test_an_item_that_is_not_finished_is_not_counted() -> None:
    events: list[int] = []
    items = counted(iter(range(5)), lambda: events.append(1))
    next(items)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert events == [1]


def test_nothing_to_count() -> None:
    assert list(counted([], lambda: 1 / 0)) == []


def test_silent_says_nothing(capsys) -> None:
    silent = Silent()
    with silent.stage("Calibrate", 3) as advance:
        assert advance() is None
    assert silent.message("text") is None
    assert capsys.readouterr() == ("", "")
