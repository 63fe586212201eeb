"""Which sizes an engine takes: for every input with a free axis the smallest, the optimal and the largest shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfqat.errors import EngineError, nearest

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input -> smallest, optimal and largest shape."""

EXAMPLE_SIZES = ((1, 32), (8, 64), (32, 128))
"""Batch and any other free size, in the smallest, optimal and largest shape of an example."""
SHAPE_FORM = "NAME=MIN:OPT:MAX, for example image=1x32x32x3:8x64x64x3:32x128x128x3"


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """An input of a graph; a free axis is None."""

    name: str
    dims: tuple[int | None, ...]

    @property
    def free(self) -> tuple[int, ...]:
        """The axes without a fixed size."""
        return tuple(axis for axis, size in enumerate(self.dims) if size is None)

    def __str__(self) -> str:
        return f"{self.name!r} [{', '.join('?' if size is None else str(size) for size in self.dims)}]"


def check_batch(batch: Sequence[int]) -> tuple[int, int, int]:
    """The batch sizes (smallest, optimal, largest) of an optimization profile, or an EngineError if they are not in that order."""
    sizes = tuple(batch) if isinstance(batch, Sequence) else ()
    if len(sizes) != 3 or any(type(size) is not int for size in sizes) or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise EngineError(f"batch must be three whole numbers, 1 <= smallest <= optimal <= largest, for example (1, 8, 32); got {batch!r}")
    return sizes


def check_shapes(shapes: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Shapes as tuples, or an EngineError if one is not three shapes of one rank that ascend on every axis."""
    return {name: _ascending(name, given) for name, given in shapes.items()}


def parse_shape(text: str) -> tuple[str, tuple[Shape, Shape, Shape]]:
    """`image=1x32x32x3:8x64x64x3:32x128x128x3` -> the input and its three shapes.

    Raises:
        EngineError: The text has another form, or the shapes do not ascend.
    """
    name, _, sizes = text.rpartition("=")
    shapes = [shape.split("x") for shape in sizes.split(":")]
    if not name or len(shapes) != 3 or not all(size.isascii() and size.isdigit() for shape in shapes for size in shape):
        raise EngineError(f"a shape has the form {SHAPE_FORM}; got {text!r}")
    return name, _ascending(name, [[int(size) for size in shape] for shape in shapes])


def profile_of(inputs: Sequence[GraphInput], batch: tuple[int, int, int], shapes: Profile) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The optimization profile of a graph: the given shapes, and the batch for inputs whose first axis alone is free.

    Raises:
        EngineError: A shape is given for no input of the graph, does not fit its input, or an input with a free axis other than the
            first has none.
    """
    names = [one.name for one in inputs]
    for name in shapes:
        if name not in names:
            raise EngineError(f"a shape is given for {name!r}, but the inputs of the graph are {', '.join(names)}{nearest(name, names)}")
    return {one.name: _shapes(one, batch, shapes) for one in inputs if one.free or one.name in shapes}


def example(given: GraphInput) -> str:
    """The command line's option for an input, with sizes to replace."""
    shapes = [tuple(size or (free if axis else batch) for axis, size in enumerate(given.dims)) for batch, free in EXAMPLE_SIZES]
    return f"--shape {given.name}={':'.join('x'.join(map(str, shape)) for shape in shapes)}"


def _shapes(given: GraphInput, batch: tuple[int, int, int], shapes: Profile) -> tuple[Shape, Shape, Shape]:
    if given.name in shapes:
        chosen = shapes[given.name]
        if not all(_fits(given, shape) for shape in chosen):
            raise EngineError(
                f"the shapes {[list(shape) for shape in chosen]} do not fit the input {given}: rank and fixed sizes must be its own"
            )
        return chosen
    if given.free != (0,):
        raise EngineError(
            f"input {given} has no fixed size on axis {', '.join(str(axis) for axis in given.free if axis)}: say which sizes the engine "
            f"takes with {example(given)} (in Python shapes={{name: (min, opt, max)}}, in a recipe compile.shapes), or export the model "
            "with a fixed input shape"
        )
    small, optimal, large = ((size, *(fixed or 0 for fixed in given.dims[1:])) for size in batch)
    return small, optimal, large


def _fits(given: GraphInput, shape: Shape) -> bool:
    return len(shape) == len(given.dims) and all(size in (None, chosen) for size, chosen in zip(given.dims, shape, strict=True))


def _ascending(name: str, given: Sequence[Sequence[int]]) -> tuple[Shape, Shape, Shape]:
    shapes = [tuple(shape) for shape in given] if isinstance(given, Sequence) else []
    whole = all(type(size) is int and size >= 1 for shape in shapes for size in shape)
    if len(shapes) != 3 or not whole or len({len(shape) for shape in shapes}) != 1:
        raise EngineError(
            f"the shapes of {name!r} must be three lists of one length, of whole numbers from 1: min, opt, max; got {given!r}"
        )
    small, optimal, large = shapes
    if not all(a <= b <= c for a, b, c in zip(small, optimal, large, strict=True)):
        raise EngineError(f"the shapes of {name!r} must ascend on every axis, min <= opt <= max; got {[list(shape) for shape in shapes]}")
    return small, optimal, large
