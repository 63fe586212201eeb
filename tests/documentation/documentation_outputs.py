"""When a shown output counts as the real one.

Words must be the same. What differs from run to run may differ: times (`20261128T101500Z`), durations and rates (`0:00:14`, a number in
front of s, ms ...), hashes, and decimal numbers by 5% or 0.02; whole numbers must be equal. A line `...` stands for any lines, and `...`
within a line for anything in it.
"""

from __future__ import annotations

import re

RELATIVE, ABSOLUTE = 0.05, 0.02
_VARIES = (
    (re.compile(r"\b\d{8}T\d{6}Z(-\d+)?\b"), "<time>"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "<measured>"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "<hash>"),
    (re.compile(r"\b\d[\d,]*(\.\d+)?\s?(s|ms|µs|us|GB|images/s|/s)\b"), "<measured>"),
)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_SPACES = re.compile(r"[ \t]+|(?<=[─━═])[─━═]+")


def difference(shown: str, real: str) -> str | None:
    """None if `real` agrees with what the page shows, else the first line that does not."""
    expected, got = _lines(shown), _lines(real)
    reached = _match(expected, got)
    if reached == len(expected):
        return None
    wanted = expected[reached] if reached < len(expected) else "(the end)"
    return f"the page shows a line that the output does not have there:\n  {wanted}\nthe output is:\n{real}"


def _lines(text: str) -> list[str]:
    return [line for line in (_SPACES.sub(lambda space: space[0][0], line).strip() for line in text.splitlines()) if line]


def _match(expected: list[str], got: list[str]) -> int:
    """How many lines of the page are found before the first that is not (all of them if the outputs agree)."""
    best = 0
    reachable = {0}  # positions in `got` up to which the page's lines so far can stand
    for index, line in enumerate(expected):
        best = index
        if line == "...":
            reachable = set(range(min(reachable), len(got) + 1))
            continue
        reachable = {at + 1 for at in reachable if at < len(got) and _same(line, got[at])}
        if not reachable:
            return best
    return len(expected) if len(got) in reachable else len(expected) + 1


def _same(shown: str, real: str) -> bool:
    for pattern, name in _VARIES:
        shown, real = pattern.sub(name, shown), pattern.sub(name, real)
    pieces = re.split(r"(\.\.\.)|(" + _NUMBER.pattern + ")", shown)
    form = "".join(_pattern(piece) for piece in pieces if piece)
    found = re.fullmatch(form, real)
    numbers = [piece for piece in pieces if piece and _NUMBER.fullmatch(piece)]
    return found is not None and all(_near(mine, theirs) for mine, theirs in zip(numbers, found.groups(), strict=True))


def _pattern(piece: str) -> str:
    if piece == "...":
        return ".*"
    return f"({_NUMBER.pattern})" if _NUMBER.fullmatch(piece) else re.escape(piece)


def _near(shown: str, real: str) -> bool:
    if "." not in shown and "e" not in shown:
        return shown == real
    mine, theirs = float(shown.replace(",", "")), float(real.replace(",", ""))
    return abs(mine - theirs) <= max(ABSOLUTE, RELATIVE * abs(mine))
