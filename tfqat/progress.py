"""How a long operation tells how far it is: stages that are entered, and steps that are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")
Advance = Callable[[], None]


class Progress(Protocol):
    """What the pipeline tells the outside."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` steps (None: not known); what it gives is called once per step."""

    def message(self, text: str) -> None:
        """Say one line."""


class Silent:
    """Says nothing."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A stage that nobody watches."""
        return nullcontext(lambda: None)

    def message(self, text: str) -> None:
        """Nothing."""


def counted(items: Iterable[T], advance: Advance) -> Iterator[T]:
    """The same items, each counted when it has been used."""
    for item in items:
        yield item
        advance()
