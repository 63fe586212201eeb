"""What a model takes and gives, tensor by tensor, and whether arrays fit: every misfit with its name, what came and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.engines.profile import Shape
from tfqat.errors import EngineError, nearest
from tfqat.form import Form

Feed = dict[str, "np.ndarray[Any, Any]"]
_IMAGE_RANKS = (3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name, dtype: its name, and its type as NumPy calls it.
        shape: its sizes; None: free.
        profile: the smallest, optimal and largest shape that an engine takes; None: no bounds.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    profile: tuple[Shape, Shape, Shape] | None = None

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} [{', '.join(self._size(axis) for axis in range(len(self.shape)))}]"

    def _size(self, axis: int) -> str:
        size = self.shape[axis]
        if size is not None:
            return str(size)
        return "?" if self.profile is None else f"{self.profile[0][axis]}..{self.profile[2][axis]}"

    def takes(self, shape: Sequence[int], axes: Iterable[int]) -> bool:
        """Whether a shape of the same rank fits on these axes."""
        return all(self._fits(axis, shape[axis]) for axis in axes)

    def _fits(self, axis: int, size: int) -> bool:
        fixed = self.shape[axis]
        if fixed is not None:
            return size == fixed
        return self.profile is None or self.profile[0][axis] <= size <= self.profile[2][axis]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, without the profile."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def graph_tensors(model: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and the outputs of a ModelProto."""
    constants = {one.name for one in model.graph.initializer}
    return (
        tuple(_of_proto(value) for value in model.graph.input if value.name not in constants),
        tuple(_of_proto(value) for value in model.graph.output),
    )


def _of_proto(value: Any) -> Tensor:
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Tensor(name=value.name, dtype=helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape=shape)


def is_batched(inputs: Sequence[Tensor]) -> bool:
    """Whether the first axis of all inputs is the batch: free in all of them, or of the same size."""
    return bool(inputs) and all(one.shape for one in inputs) and len({one.shape[0] for one in inputs}) == 1


def feed_of(inputs: Sequence[Tensor], given: Any, form: Form) -> Feed:
    """Arrays for the inputs, by name, in their types.

    Args:
        inputs: what the model takes.
        given: an array for a model of one input; a tuple in the order of the inputs; or a mapping by name.
        form: of the graph, for what an error says of layouts and pixels.

    Raises:
        EngineError: an input is missing or unknown, or an array has another type, rank or shape; if inputs have the batch as their first
            axis, its size is free here, and the same in all of them.
    """
    batched = is_batched(inputs)
    feed = {one.name: _fitting(one, value, form, batched) for one, value in _named(inputs, given)}
    counts = {name: len(value) for name, value in feed.items()} if batched else {}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise EngineError(f"the inputs have different numbers of examples: {found}; expected the same on the first axis of all of them")
    return feed


def _named(inputs: Sequence[Tensor], given: Any) -> list[tuple[Tensor, Any]]:
    names = [one.name for one in inputs]
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise EngineError(f"there is no input {name!r}; expected {_list(inputs)}{nearest(str(name), names)}")
        missing = [name for name in names if name not in given]
        if missing:
            raise EngineError(f"input {', '.join(map(repr, missing))} is missing: got {list(given)}, expected {_list(inputs)}")
        return [(one, given[one.name]) for one in inputs]
    several = isinstance(given, tuple) or (isinstance(given, list) and len(inputs) > 1)
    values = tuple(given) if several else (given,)
    if len(values) != len(inputs):
        raise EngineError(
            f"got {len(values)} arrays for {len(inputs)} inputs; expected {_list(inputs)}: give a tuple in this order, or a mapping by name"
        )
    return list(zip(inputs, values, strict=True))


def _list(inputs: Sequence[Tensor]) -> str:
    return ", ".join(map(str, inputs))


def _fitting(tensor: Tensor, value: Any, form: Form, batched: bool) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise EngineError(f"input {tensor.name!r} is no array ({error}); expected {tensor}") from error
    _check_shape(tensor, array.shape, form, batched)
    return np.ascontiguousarray(_in_type(tensor, array, form)).reshape(array.shape)


def _check_shape(tensor: Tensor, shape: Shape, form: Form, batched: bool) -> None:
    axes = range(1 if batched else 0, len(tensor.shape))
    if len(shape) == len(tensor.shape) and tensor.takes(shape, axes):
        return
    if batched and len(shape) == len(tensor.shape) - 1 and tensor.takes((1, *shape), axes):
        hint = "; one example needs a batch axis in front: x[None]"
    elif len(shape) != len(tensor.shape):
        hint = f"; the rank is {len(shape)} instead of {len(tensor.shape)}"
    else:
        hint = _transposed(tensor, shape, form, axes) or f"; axis {_wrong(tensor, shape, axes)} does not fit"
    batch = ", any number of examples on the first axis" if batched else ""
    raise EngineError(f"input {tensor.name!r} has the shape {list(shape)}; expected {tensor}{batch}{hint}")


def _wrong(tensor: Tensor, shape: Shape, axes: Iterable[int]) -> str:
    return ", ".join(str(axis) for axis in axes if not tensor.takes(shape, (axis,)))


def _transposed(tensor: Tensor, shape: Shape, form: Form, axes: Iterable[int]) -> str:
    """What to do if the array has its channels at the other end; empty if that would not fit either."""
    if len(shape) not in _IMAGE_RANKS:
        return ""
    axes = tuple(axes)
    first, last = (shape[0], shape[-1], *shape[1:-1]), (shape[0], *shape[2:], shape[1])
    known = " (it was exported with the layout nchw)" if form.layout == "nchw" else ""
    if tensor.takes(first, axes):
        return f"; the model takes channels first{known}, and this array has them last: np.moveaxis(x, -1, 1) would fit"
    return (
        "; the model takes channels last, and this array has them first: np.moveaxis(x, 1, -1) would fit"
        if tensor.takes(last, axes)
        else ""
    )


def _in_type(tensor: Tensor, array: np.ndarray[Any, Any], form: Form) -> np.ndarray[Any, Any]:
    """The same numbers in the input's type: between types of float, and between whole numbers that have the value; nothing else."""
    wanted = np.dtype(tensor.dtype)
    if array.dtype == wanted:
        return array
    if _is_float(array.dtype) and _is_float(wanted):
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
        if np.isinf(converted).sum() == np.isinf(array).sum():
            return converted
        raise EngineError(f"input {tensor.name!r} has values beyond {wanted}, the type that the model takes; expected {tensor}")
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if not array.size or (limits.min <= array.min() and array.max() <= limits.max):
            return array.astype(wanted)
        raise EngineError(
            f"input {tensor.name!r} has values from {array.min()} to {array.max()}; expected {tensor}, as the model takes {wanted}"
        )
    raise EngineError(f"input {tensor.name!r} has the type {array.dtype}; expected {tensor}{_type_hint(array.dtype, wanted, form)}")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f"


def _type_hint(got: np.dtype[Any], wanted: np.dtype[Any], form: Form) -> str:
    if wanted == np.uint8 and form.pixels is not None:
        numbers = f"mean {list(form.pixels.mean)} and std {list(form.pixels.std)}"
        return f"; the graph takes pixels from 0 to 255 and normalizes them itself, by {numbers}"
    if got == np.uint8 and _is_float(wanted):
        return "; normalize pixels as the training data were, or export the graph with --mean and --std, so that it takes pixels"
    return f"; convert it with .astype({wanted.name!r}) if the numbers are the ones that the model was trained on"
