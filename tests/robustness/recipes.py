"""Recipes as hypothesis makes them: from the JSON Schema, and real ones with other values, other text or other bytes."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml import YAML

from tfqat.recipe.schema import Recipe

REPOSITORY = Path(__file__).parents[2]


class Verbatim(str):
    """What stands in a recipe as it is, for numbers that Python does not print."""


MISSING = object()
"""The value of a key that is left out."""
BIG = (10**400, -(10**30), 2**63, 2**31, 1e308, -1e308, 5e-324, float("inf"), float("nan"), Verbatim("0x" + "F" * 5000))
WORDS = (
    *("", " ", "\x00", "a\x00b", "../../../../etc/passwd", "/etc/shadow", "x" * 5000, "\ud800", "é\u202e\u0000", "*", "~", "=", "<<"),
    *("re:(", "re:a{99999999999}", "re:" + "(" * 400, "os:system", "data.py:train", "nope.py:f", "data:train", "http://localhost/x.keras"),
    *("percentile(1e999)", "percentile(nan)", "SM99999999", "true", "1_000", "0x10", "2001-01-01", "%s{0}{name}", "[link]", "\x1b[31m"),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(BIG),
    st.sampled_from(WORDS),
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8
)
SNIPPETS = (
    *("\t", "\x00", "\ufeff", "&a", "*a", "*b", "&a [*a]", "<<: *a", "&a " * 50, "!<tag:x> 1", "!!binary aGk=", "!!set {a}", "#", "\r"),
    *("!!python/object/apply:os.system ['touch canary']", "!!timestamp 2001-13-45", "2024-99-99", "1:60:60", "version: 1", "0o777"),
    *("- ", ": ", "? ", "{", "}", "[", "]", "|", ">", "%YAML 9.9", "---", "...", "\u2028", "\x85", "'", '"', "\\x00", '"\\ud800"'),
    *("0x" + "F" * 5000, "9" * 5000, ".inf", ".nan", "[" * 3000, "{a: " * 1500, "- " * 2000, "? " * 1500),
)


def real() -> list[str]:
    """The recipes of the repository."""
    return [path.read_text() for path in sorted((REPOSITORY / "recipes").rglob("*.yaml"))]


def written(value: Any) -> str:
    """YAML of any value, also of ones that no library writes: as JSON, which YAML contains, with Python's spelling of numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(str(key))}: {written(item)}" for key, item in value.items() if item is not MISSING) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, Verbatim):
        return value
    if isinstance(value, str):
        return '"' + "".join(_escaped(character) for character in value) + '"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return str(value)


def _escaped(character: str) -> str:
    code = ord(character)
    plain = character.isalnum() or character in " .:/_-*()"
    return character if plain and code < 128 else (f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}")


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, item in items for path in paths(item, (*at, key)))]


STRINGS = {
    "source": ("float.keras",),
    "train": ("data.py:train",),
    "validation": ("data.py:validation",),
    "calibration": ("data.py:calibration",),
    "test": ("data.py:validation", "x.py:f"),
    "match": ("*", "stem*", "Conv2D", "re:.*_relu", *WORDS[13:16]),
    "skip": ("logits", "stem", "Dense", "re:^h", *WORDS[9:16]),
    "force": ("logits", "add", *WORDS[13:16]),
    "with": ("relu", "relu", "hard_swish", "repvgg", "x.py:f"),
    "compute_capabilities": ("SM86", "SM120"),
    "search": ("max", "entropy", "percentile(99.9)", "best"),
    "outputs": ("scores",),
}
"""What fits a key of the schema; another text is drawn where the schema is left."""


def values(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Every value with where it stands."""
    return [(path, reduce(lambda held, key: held[key], path, value)) for path in paths(value)]


def fields(schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0, name: str = "") -> st.SearchStrategy[Any]:
    """Values that a JSON Schema describes, here and there with one that it does not."""
    if "$ref" in schema:
        return fields(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth, name)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "anyOf" in schema:
        return st.one_of([fields(one, definitions, depth, name) for one in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "object":
        known = {key: _field(one, definitions, depth + 1, key) for key, one in schema.get("properties", {}).items()}
        required = {key: known[key] for key in schema.get("required", ()) if key in known}
        optional = {key: strategy | st.just(MISSING) | st.just(MISSING) for key, strategy in known.items() if key not in required}
        return st.fixed_dictionaries(required, optional=optional)
    if kind == "array":
        return st.lists(fields(schema.get("items") or {}, definitions, depth, name), min_size=schema.get("minItems", 0), max_size=3)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", schema.get("exclusiveMinimum", -5)), schema.get("maximum", schema.get("exclusiveMaximum", 10**6))
        whole = st.integers(int(low), int(high))
        return whole if kind == "integer" else whole | st.floats(low, high, exclude_min="exclusiveMinimum" in schema)
    if kind == "string":
        return st.sampled_from(STRINGS.get(name, ("data.py:train", "accuracy", "mse", "stem", "max")))
    return {"boolean": st.booleans(), "null": st.none()}.get(kind, scalars)


def _field(schema: dict[str, Any], definitions: dict[str, Any], depth: int, name: str) -> st.SearchStrategy[Any]:
    right = fields(schema, definitions, depth, name)
    return st.integers(0, 150).flatmap(lambda draw: scalars if draw == 99 else right)


def from_schema() -> st.SearchStrategy[bytes]:
    schema = Recipe.model_json_schema()
    return fields(schema, schema["$defs"]).map(lambda value: written(value).encode())


@st.composite
def other_values(draw: Any, texts: list[str]) -> bytes:
    """A real recipe with one to four of its values replaced, removed, renamed or repeated."""
    value = parsed(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(1, 3))):
        places = paths(value)
        if not places:
            break
        value = _changed(draw, copy.deepcopy(value), draw(st.sampled_from(places)))
    return written(value).encode()


def _changed(draw: Any, value: Any, path: tuple[Any, ...]) -> Any:
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add", "wrap"]))
    if how == "remove":
        del holder[path[-1]]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.text(max_size=12) | st.sampled_from(WORDS))] = holder.pop(path[-1])
    elif how == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=12))] = draw(anything)
    elif how == "wrap":
        holder[path[-1]] = [holder[path[-1]]]
    else:
        holder[path[-1]] = draw(_like(holder[path[-1]]) | anything)
    return value


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Another value of the same type."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(1, 100) | st.integers()
    if isinstance(value, float):
        return st.floats(1e-6, 100) | st.floats()
    return st.sampled_from([value, "stem", "max", "selective", "naive", "relu", *WORDS]) if isinstance(value, str) else st.just(value)


@st.composite
def other_text(draw: Any, texts: list[str]) -> bytes:
    """A real recipe with pieces of YAML put in, lines repeated, moved or cut."""
    lines = draw(st.sampled_from(texts)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        how = draw(st.sampled_from(["insert", "insert", "repeat", "delete", "indent", "cut"]))
        if how == "insert" or not lines:
            line = lines[at] if lines else "\n"
            column = draw(st.integers(0, len(line)))
            lines[at : at + 1] = [line[:column] + draw(st.sampled_from(SNIPPETS)) + line[column:]]
        elif how == "repeat":
            lines[at:at] = [lines[at]] * draw(st.integers(1, 3))
        elif how == "delete":
            del lines[at]
        elif how == "indent":
            lines[at] = " " * draw(st.integers(1, 4)) + lines[at]
        else:
            lines = [*lines[:at], lines[at][: draw(st.integers(0, len(lines[at])))]]
    return "".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def other_bytes(draw: Any, texts: list[str]) -> bytes:
    """A real recipe with bytes flipped, put in or cut off, or in another encoding; or bytes that were never one."""
    data = bytearray(draw(st.sampled_from(texts)).encode())
    how = draw(st.sampled_from(["flip", "flip", "insert", "cut", "utf-16", "random"]))
    if how == "random":
        return draw(st.binary(max_size=200))
    if how == "utf-16":
        return bytes(data).decode().encode("utf-16")
    if how == "cut":
        return bytes(data[: draw(st.integers(0, len(data)))])
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data) - 1))
        if how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=6))
    return bytes(data)


@st.composite
def overrides(draw: Any, texts: list[str]) -> list[str]:
    """What follows `--set`."""
    known = {".".join(map(str, path)): value for text in texts for path, value in values(parsed(text))}
    odd = st.text(max_size=12) | st.lists(st.sampled_from(["quantization", "skip", "0", "-1", "9" * 5000, "²"])).map(".".join)
    value = st.sampled_from(SNIPPETS) | anything.map(written) | st.text(max_size=12)
    fitting = st.sampled_from(sorted(known)).flatmap(lambda key: _like(known[key]).map(lambda other: f"{key}={written(other)}"))
    one = fitting | fitting | st.tuples(st.sampled_from(sorted(known)) | odd, st.sampled_from(["=", "=", "==", ""]), value).map("".join)
    return [text.replace("\x00", "") for text in draw(st.lists(one, min_size=1, max_size=3))]
