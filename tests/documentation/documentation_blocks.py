"""The fenced code blocks of README and docs as tests: each is run, and what the page shows as its output is compared.

| block | what is done |
|---|---|
| `bash` | run in the page's folder; it must end with exit code 0 |
| `python` | run in the page's namespace |
| `yaml` | read as a recipe, or as a part of one |
| `json` | parsed |
| any of them with `title="NAME"` | written to the file NAME of the page's folder (YAML is read as well) |
| `text` right behind a `bash` or `python` block | its output: see `outputs.py` |

A page's folder is new for each page; `examples/` and `recipes/` of the repository are in it. A comment in front of a block changes this:

- `<!-- not run: REASON -->`: parsed only: commands and options of `tfqat`, names of `tfqat.` in Python.
- `<!-- exit: N -->`: the exit code that is expected, with the message on stderr as part of the output.
- `<!-- given: NAME -->`: what `documentation_given.py` has by this name.
- `<!-- picture: images/NAME -->`: the block writes the file NAME, which the page shows from there.

`TFQAT_WRITE_DOCS=1` puts the real outputs into the pages instead of comparing, and the pictures beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markdown_it import MarkdownIt
from markdown_it.token import Token

LANGUAGES = ("bash", "python", "yaml", "json", "text")
_COMMENT = re.compile(r"<!--\s*(not run|exit|given|picture):\s*(.*?)\s*-->", re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its place in lines from 0 (`first` is the opening fence, `last` the line behind the closing one)."""

    language: str
    title: str | None
    content: str
    first: int
    last: int
    directives: dict[str, str]
    output: Block | None = None


class PageError(ValueError):
    """A page that cannot be tested as it is written."""


def blocks_of(text: str) -> list[Block]:
    """All blocks of a Markdown page but the outputs, which belong to the block in front of them."""
    found: list[Block] = []
    behind: Block | None = None  # what a block of text that comes next is the output of
    for block in _fences(MarkdownIt("commonmark").enable("table").parse(text)):
        if isinstance(block, str):
            behind = None
        elif block.language == "text" and behind is not None:
            found[-1] = replace(behind, output=block)
            behind = None
        else:
            found.append(block)
            behind = block if block.language in ("bash", "python") and block.title is None else None
    return [block for block in found if block.language != "text"]


def _fences(tokens: Sequence[Token]) -> Iterator[Block | str]:
    """Blocks, and the type of any other content between them."""
    directives: dict[str, str] = {}
    for token in tokens:
        if token.type == "fence":
            yield _block(token, directives)
            directives = {}
        elif token.type == "code_block":
            raise PageError(f"line {_line(token)}: an indented code block; write a fenced one with a language, so that it is run")
        elif token.type == "html_block":
            directives |= dict(_COMMENT.findall(token.content))
        elif token.type == "inline":
            yield "text"


def _block(token: Token, directives: dict[str, str]) -> Block:
    language, _, rest = token.info.strip().partition(" ")
    if language not in LANGUAGES:
        raise PageError(f"line {_line(token)}: a block of language {language!r}; known are {', '.join(LANGUAGES)}")
    title = _TITLE.search(rest)
    first, last = token.map or (0, 0)
    return Block(language=language, title=title and title[1], content=token.content, first=first, last=last, directives=directives)


def _line(token: Token) -> int:
    return (token.map or (0, 0))[0] + 1
