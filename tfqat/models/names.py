"""Names of layers that TensorFlow refuses as a scope, and the way back: a pure, reversible renaming.

tf_keras takes a name that matches `[A-Za-z0-9.][A-Za-z0-9_.\\\\/>-]*` (checked on tf-keras 2.21.0); Keras 3 takes any text without a slash.

    given by the user     name in the tf_keras model
    conv1                 conv1
    _stem                 ._stem
    conv 1                conv>201
    :x                    .>3ax
"""

from __future__ import annotations

import re

_REFUSED = re.compile(r"[^A-Za-z0-9_.\\-]")
_ESCAPES = re.compile(r"(?:>[0-9a-f]{2})+")


def legal_name(name: str) -> str:
    """`name`, changed where tf_keras would refuse it: a dot before a leading underscore, `>hh` (UTF-8, hexadecimal) for other characters.

    Every segment of a path (`backbone/_stem`) is changed on its own. Names that need no change stay as they are.
    """
    return "/".join(_legal_segment(segment) for segment in name.split("/"))


def given_name(name: str) -> str:
    """The name, or path, that `legal_name` made `name` from."""
    return "/".join(_given_segment(segment) for segment in name.split("/"))


def _legal_segment(name: str) -> str:
    legal = _REFUSED.sub(lambda match: _escape(match.group()), name)
    if legal.startswith(("._", ".>", "-", "\\")):  # the first two would read as marks of ours, the others cannot stand first
        legal = _escape(name[0]) + legal[1:]
    return f".{legal}" if legal.startswith(("_", ">")) else legal


def _given_segment(name: str) -> str:
    marked = name[1:] if name.startswith(("._", ".>")) else name
    return _ESCAPES.sub(lambda match: bytes.fromhex(match.group().replace(">", "")).decode("utf-8", "replace"), marked)


def _escape(character: str) -> str:
    return "".join(f">{byte:02x}" for byte in character.encode("utf-8"))
