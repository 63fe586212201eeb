"""Reading a recipe: YAML and `--set` overrides in, a `Recipe` out, or every problem at once with its line and YAML path.

A problem reads `recipes/x.yaml:12: quantization.weights.num_bit: unknown key; did you mean 'num_bits'?`. Of YAML only the
plain data types are read: a tag that would construct anything else is a problem.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tfqat.errors import RecipeError
from tfqat.recipe.problems import KeyPath, sentence, shown, validate
from tfqat.recipe.quantization import QuantizationConfig
from tfqat.recipe.schema import Recipe

_CORE = "tag:yaml.org,2002:"
_TAGS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "value")}
_CONSTRUCTED = {_CORE + name for name in ("int", "float", "bool", "null")}  # other scalars are text
_MAX_VALUES = 10_000  # a recipe has about a hundred; aliases of aliases could spell out billions
_MAX_BYTES = 1 << 20  # a recipe has a few thousand; what is larger is another file, or a device that never ends
_MAX_BITS = 63  # of a whole number; Python does not even print one of 5,000 digits


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `overrides` such as `quantization.skip.0=logits` put over it, in this order.

    Raises:
        RecipeError: the file cannot be read, or the recipe is wrong; it holds every problem, in the order of the lines.
    """
    document = _Document(str(path))
    recipe = None
    if document.read_file(Path(path)):
        for override in overrides:
            document.override(override)
        recipe, wrong = validate(Recipe, document.data)
        told = {problem.path for problem in document.problems}  # a value that could not be read is not also a wrong one
        for at, text in wrong:
            if at not in told or not at:
                document.report(at, text)
    if document.problems or recipe is None:
        raise RecipeError(problem.text for problem in sorted(document.problems, key=lambda problem: problem.line))
    return recipe


def read_mapping(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The plain values of a YAML file that is not checked against the schema, such as a foreign recipe.

    Raises:
        RecipeError: it cannot be read, is no YAML, holds no mapping, or spells out more values than a recipe has.
    """
    document = _Document(str(path), what)
    document.read_file(path)
    if document.problems:
        raise RecipeError(problem.text for problem in document.problems)
    return document.data


def recipe_lines(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Where each value of a recipe stands: `quantization.skip[0]` -> `recipes/x.yaml:12`, or `--set ...` for one that was put over it."""
    document = _Document(str(path))
    document.read_file(Path(path))
    for override in overrides:
        document.override(override)
    return document.lines()


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default spelled out; `load_recipe` reads it back to an equal recipe."""
    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]  # ruamel.yaml types the first as None
    yaml.dump(recipe.model_dump(mode="json", by_alias=True), stream)
    return stream.getvalue()


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that depend on every value of the resolved recipe, and on nothing else about its file."""
    canonical = json.dumps(recipe.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def quantization_config(value: str | Mapping[str, Any] | QuantizationConfig) -> QuantizationConfig:
    """A `quantization` block from a preset's name, a mapping as in a recipe, or itself.

    Raises:
        RecipeError: it is none of these, or wrong; it holds every problem.
    """
    config, wrong = validate(QuantizationConfig, {"preset": value} if isinstance(value, str) else value)
    if config is None:
        raise RecipeError(sentence(("quantization", *path), text) for path, text in wrong)
    return config


class _Origin(NamedTuple):
    """Where a value stands: what a problem cites, and the line that problems are sorted by."""

    label: str
    line: float


class _Problem(NamedTuple):
    path: KeyPath
    text: str
    line: float


class _Document:
    """The values of a recipe as they are read, where each stands, and what was wrong on the way."""

    def __init__(self, name: str, what: str = "recipe") -> None:
        self.data: dict[str, Any] = {}
        self.problems: list[_Problem] = []
        self._name, self._what = name, what
        self._origins: dict[KeyPath, _Origin] = {(): self._at_line(0)}
        self._values = 0

    def report(self, path: KeyPath, text: str, origin: _Origin | None = None) -> None:
        """Record a problem at `origin`, or else where the value at `path`, or the nearest block around it, stands."""
        around = (path[:length] for length in range(len(path), -1, -1))
        label, line = origin or next(self._origins[at] for at in around if at in self._origins)
        self.problems.append(_Problem(path, sentence(label, path, text), line))

    def lines(self) -> dict[str, str]:
        """The label of every value's origin, by its path with indices in brackets."""
        spelled = {
            "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at)[1:]: origin for at, origin in self._origins.items()
        }
        return {path: origin.label for path, origin in spelled.items() if path}

    def read_file(self, path: Path) -> bool:
        """Fill `data`; False when the file holds no mapping, which is then reported."""
        try:
            with path.open("rb") as stream:
                read = stream.read(_MAX_BYTES + 1)
            text = read.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.report((), f"cannot read the {self._what}: {reason}", _Origin(self._name, 0))
            return False
        if len(read) > _MAX_BYTES:
            self.report(
                (), f"not a {self._what}: more than {_MAX_BYTES:,} bytes; expected a YAML file of some lines", _Origin(self._name, 0)
            )
            return False
        data = self._read(text, (), lambda node: self._at_line(node.start_mark.line))
        if isinstance(data, dict):
            self.data = data
        elif not self.problems:
            received = "an empty file" if data is None else shown(data)
            self.report((), f"expected a mapping with the keys of a {self._what}; got {received}")
        return isinstance(data, dict)

    def override(self, text: str) -> None:
        """Put `key.path=value` over `data`; a list's element is addressed by its index, and the next index appends."""
        key, equals, value = text.partition("=")
        parts, origin = key.strip().split("."), _Origin(f"--set {text}", math.inf)
        if not equals or not all(parts):
            return self.report((), "expected key.path=value, such as quantization.activations.percentile=99.9", origin)
        try:
            path = _address(self.data, parts)
        except LookupError as error:
            return self.report((), str(error.args[0]), origin)
        self._origins = {at: known for at, known in self._origins.items() if at[: len(path)] != path}
        for length in range(1, len(path) + 1):
            self._origins.setdefault(path[:length], origin)
        self.data = _replaced(self.data, path, self._read(value, path, lambda _: origin))
        return None

    def _at_line(self, line: int) -> _Origin:
        return _Origin(f"{self._name}:{line + 1}", line)

    def _read(self, text: str, path: KeyPath, origin: Callable[[Node], _Origin]) -> Any:
        """The value that the YAML `text` spells, at `path`; None, and a problem, when it is not YAML."""
        try:
            node = YAML(typ="safe", pure=True).compose(text)
            return None if node is None else self._value(node, path, origin)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            hint = "; a pattern that starts with * needs quotes" if "alias" in reason else ""
            self.report(path, f"not YAML: {reason}{hint}", self._at_line(mark.line) if mark and not path else None)
        except RecursionError:
            self.report(path, f"not a {self._what}: more than {_MAX_VALUES} values, or nested too deeply")
        return None

    def _value(self, node: Node, path: KeyPath, origin: Callable[[Node], _Origin]) -> Any:
        self._origins.setdefault(path, origin(node))  # a mapping has set the line of the key already
        self._values += 1
        if self._values > _MAX_VALUES:
            raise RecursionError
        tag = str(node.tag)
        if tag not in _TAGS:
            self.report(path, f"the tag {tag.replace(_CORE, '!!')} is refused: a recipe holds plain values only")
        if isinstance(node, MappingNode):
            return self._mapping(node, path, origin)
        if isinstance(node, SequenceNode):
            return [self._value(item, (*path, index), origin) for index, item in enumerate(node.value)]
        if tag not in _CONSTRUCTED:
            return node.value
        try:
            value = YAML(typ="safe", pure=True).constructor.construct_object(node)
        except (ValueError, KeyError):
            self.report(path, f"{shown(node.value)} is no {tag.removeprefix(_CORE)}")
            return None
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            self.report(path, f"expected a number of at most {_MAX_BITS} bits; got {shown(node.value)}")
            return None
        return value

    def _mapping(self, node: MappingNode, path: KeyPath, origin: Callable[[Node], _Origin]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.report(path, "a key must be text, not a list or a mapping", origin(key_node))
                continue
            key = str(key_node.value)
            at = (*path, key)
            if key in result:
                first = self._origins[at].label
                self.report(at, f"duplicate key; the first is at {first}", origin(key_node))
                continue
            self._origins[at] = origin(key_node)
            result[key] = self._value(value_node, at, origin)
        return result


def _address(data: Any, parts: Sequence[str]) -> KeyPath:
    """The path that `parts` spell within `data`, with a number for each index; what is not there yet is made on the way."""
    path: KeyPath = ()
    for part in parts:
        index = int(part) if part.isdecimal() and len(part) < 10 else None
        if isinstance(data, dict) or (data is None and index is None):
            path, data = (*path, part), (data or {}).get(part)
        elif (data is None or isinstance(data, list)) and index is not None and index <= len(data or ()):
            path, data = (*path, index), ([*(data or ()), None])[index]
        else:
            raise LookupError(f"{sentence(path)} is {shown(data)}, which has no place for {part!r}")
    return path


def _replaced(data: Any, path: KeyPath, value: Any) -> Any:
    """`data` with `value` at `path`."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        items = [*(data or ()), None] if key == len(data or ()) else list(data)
        return [*items[:key], _replaced(items[key], rest, value), *items[key + 1 :]]
    return {**(data or {}), key: _replaced((data or {}).get(key), rest, value)}
