"""The text of a `config.pbtxt` of Triton Inference Server.

The text is that of the message ModelConfig of Triton's model_config.proto. How axes are written:

    first axis free in all inputs and outputs     max_batch_size: 32   dims without that axis   dynamic_batching { }
    a fixed batch, or an axis that is no batch    max_batch_size: 0    dims with all axes       no batching
    nothing left behind the batch                 dims: [ 1 ]          reshape: { shape: [ ] }

ONNX Runtime's backend refuses a max_batch_size above 0 for a graph whose first axis is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from tfqat.engines.tensors import Tensor
from tfqat.errors import EngineError

Kind = Literal["auto", "cpu", "gpu"]

_TYPES = {"bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64"}
_TYPES |= {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
"""Triton's types, without their TYPE_, by NumPy's names."""


def interface_text(name: str, platform: str, batch: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """What a server must not get otherwise for another version: the platform, the batch, inputs and outputs."""
    head = f'name: {_quoted(name)}\nplatform: "{platform}"\nmax_batch_size: {batch}\n'
    return head + _block("input", inputs, batch) + _block("output", outputs, batch)


def _block(kind: str, tensors: Sequence[Tensor], batch: int) -> str:
    """`input [ { name: ... }, { ... } ]`."""
    entries = ",\n".join(_entry(one, batch) for one in tensors)
    return f"{kind} [\n{entries}\n]\n"


def _entry(tensor: Tensor, batch: int) -> str:
    if tensor.dtype not in _TYPES:
        raise EngineError(f"tensor {tensor} has a type that Triton lacks; expected one of {', '.join(_TYPES)}")
    sizes = [-1 if size is None else size for size in (tensor.shape[1:] if batch else tensor.shape)]
    dims = f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else "dims: [ 1 ]\n    reshape: { shape: [ ] }"
    return f"  {{\n    name: {_quoted(tensor.name)}\n    data_type: TYPE_{_TYPES[tensor.dtype]}\n    {dims}\n  }}"


def config_text(interface: str, batch: int, kind: Kind, instances: int, delay: int) -> str:
    """The whole text: the interface, and what a server may be told otherwise."""
    waiting = f" max_queue_delay_microseconds: {delay} " if delay else " "
    batching = f"dynamic_batching {{{waiting}}}\n" if batch else ""
    group = f"instance_group [\n  {{\n    count: {instances}\n    kind: KIND_{kind.upper()}\n  }}\n]\n"
    return f"{interface}{batching}{group}version_policy: {{ latest: {{ num_versions: 1 }} }}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # text format has the escapes of JSON for quotes, backslashes and line ends
