"""What is wrong with a block of a recipe, in words: the YAML path, what was expected, what was received, the nearest name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tfqat.errors import nearest

KeyPath = tuple[str | int, ...]
_M = TypeVar("_M", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "text that matches {pattern}",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "model_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "value_error": "{error}",
}


def validate(model: type[_M], value: object) -> tuple[_M | None, list[tuple[KeyPath, str]]]:
    """`value` as a `model`, or None and what is wrong with it: the path within the block, and the sentence."""
    try:
        return model.model_validate(dict(value) if isinstance(value, Mapping) else value), []
    except ValidationError as error:
        return None, [_problem(model, detail) for detail in error.errors(include_url=False)]


def sentence(*parts: str | KeyPath) -> str:
    """`recipes/x.yaml:12: quantization.skip.0: text`: the parts that are not empty, a path dotted."""
    return ": ".join(part if isinstance(part, str) else ".".join(map(str, part)) for part in parts if part)


def shown(value: object) -> str:
    """A received value as a recipe would spell it, cut to 60 characters."""
    if isinstance(value, str):
        text = repr(value)
    elif value is None or isinstance(value, bool | int | float | dict | list | tuple):
        text = json.dumps(value, default=str)
    else:
        text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(model: type[BaseModel], detail: ErrorDetails) -> tuple[KeyPath, str]:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    path: KeyPath = context.get("path", detail["loc"])
    block = _block_at(model, path[:-1])
    if kind == "extra_forbidden":
        known = list(_fields(block)) if block else []
        return path, "unknown key" + (nearest(str(path[-1]), known) or f"; expected one of {', '.join(known)}")
    if kind == "missing":
        field = _fields(block).get(str(path[-1])) if block else None
        return path, "missing" + (f"; expected: {field.description}" if field else "")
    if kind in ("narrow_weights", "two_targets"):
        return path, detail["msg"]
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else detail["msg"]
    return path, f"expected {expected}; got {shown(value)}{_nearest_choice(value, context)}"


def _nearest_choice(value: object, context: Mapping[str, str]) -> str:
    """A suggestion for a misspelt choice; pydantic lists the choices as `'a', 'b' or 'c'`."""
    choices = context.get("expected", "").replace(" or ", ", ").replace("'", "").split(", ")
    return nearest(value, choices) if isinstance(value, str) else ""


def _block_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The block that `path` leads to from `model`, None where it leaves the schema."""
    block: type[BaseModel] | None = model
    for key in path:
        if isinstance(key, str):
            block = _block_in(_fields(block)[key].annotation) if block and key in _fields(block) else None
    return block


def _fields(block: type[BaseModel]) -> dict[str, FieldInfo]:
    """Key of a recipe -> field; a key that Python reserves, such as `with`, is an alias there."""
    return {field.alias or name: field for name, field in block.model_fields.items()}


def _block_in(annotation: object) -> type[BaseModel] | None:
    """The block within a type such as `Block | None` or `tuple[Block, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((block for block in map(_block_in, get_args(annotation)) if block), None)
