"""What the blocks of a recipe are made of: a strict frozen mapping, and the types of its values."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tfqat.spec import EXPECTED_CALIBRATOR, Calibrator

_T = TypeVar("_T")
REFERENCE = r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$"


def _is_reference(value: str) -> str:
    if not re.match(REFERENCE, value):
        raise ValueError("module:function or path/file.py:function")
    return value


def _is_batch_profile(value: Any) -> Any:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or any(type(n) is not int or n < 1 for n in numbers) or sorted(numbers) != numbers:
        raise ValueError("three ascending whole numbers from 1, [min, opt, max]")
    return value


def _is_shape_profile(value: Any) -> Any:
    shapes = [list(shape) if isinstance(shape, list | tuple) else [] for shape in value] if isinstance(value, list | tuple) else []
    whole = all(type(size) is int and size >= 1 for shape in shapes for size in shape)
    if len(shapes) != 3 or not whole or not shapes[0] or len({len(shape) for shape in shapes}) != 1:
        raise ValueError("three shapes of one rank, [min, opt, max], each a list of whole numbers from 1")
    if any(list(sizes) != sorted(sizes) for sizes in zip(*shapes, strict=True)):
        raise ValueError("three shapes that ascend on every axis, [min, opt, max]")
    return value


def _is_calibrator(value: str) -> str:
    try:
        Calibrator.parse(value)
    except ValueError as error:
        raise ValueError(EXPECTED_CALIBRATOR) from error  # what was received is said for every type alike
    return value


# YAML has lists and the models are frozen, so a list becomes a tuple; its elements stay strict.
Items = Annotated[tuple[_T, ...], Field(strict=False)]
Reference = Annotated[str, AfterValidator(_is_reference), Field(json_schema_extra={"pattern": REFERENCE})]
BatchProfile = Annotated[tuple[int, int, int], BeforeValidator(_is_batch_profile), Field(strict=False)]
_Shape = Annotated[tuple[int, ...], Field(strict=False)]
ShapeProfile = Annotated[tuple[_Shape, _Shape, _Shape], BeforeValidator(_is_shape_profile), Field(strict=False)]
Text = Annotated[str, Field(min_length=1)]
CalibratorText = Annotated[str, AfterValidator(_is_calibrator)]


class Block(BaseModel):
    """A mapping of the recipe: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
