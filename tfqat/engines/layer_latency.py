"""How long each Keras layer of an exported ONNX graph takes in ONNX Runtime on this machine, from ONNX Runtime's own profile.

The profile names the nodes of the graph that ONNX Runtime made of the exported one. What they are called (1.32, x86-64):

    Conv + Clip in int8, not fused with Q/DQ   stem                                     FusedConv, the name of the convolution
    Q, DQ and a convolution in one             stem, stem_token_63                      QLinearConv
    Q, DQ and a matrix product in one          mlp                                      MatMulIntegerToFloat, QLinearMatMul
    MatMul + bias                              logits/MatMul/MatMulAddFusion            Gemm
    x * sigmoid(x)                             swish/mul_1/QuickGeluFusion/             QuickGelu
    float Conv (+ Clip) (+ residual Add)       net/stem_relu/Relu6:0_nchwc              Conv, the *output* of Conv + Clip, without the Add
    copies, or moved behind or before a node   a/DQ/duplicated, a.out_dq, a.out_q, a_bias_dq
    new nodes for a memory layout              ReorderInput, ReorderOutput, Transpose, and the same with _token_7

So a node belongs to the exported node, or to the node that makes the exported value, whose name is the longest one that its own
starts with. Nodes are named `<layer>/<op>` in a Q/DQ graph, their products `<layer>` or `<layer>@2`, and `<model>/<layer>/<op>` in a
float graph. Four rules say whose time a node's is:

1. A node of a layer: that layer's. All calls of a shared layer count as one, because a float graph does not tell them apart.
2. BatchNorm or an activation that alone reads the output of a layer with a convolution or matrix product: that layer's, fused or
   not, so that float and INT8 can be compared.
3. Q/DQ and what ONNX Runtime added: the layers that read it, in equal shares; at an output of the graph, the layer that feeds it.
4. A node without a layer's name (tf2onnx names some `Sub__17`): the layer that all its neighbours belong to, else none.

A residual Add is fused into the convolution before it in float only, and its time is the convolution's there.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfqat.engines import onnxruntime as runtime
from tfqat.engines.graph import PRODUCT_OPS
from tfqat.errors import EngineError
from tfqat.models.names import given_name

UNATTRIBUTED = ""
"""The key of the time that belongs to no layer."""

WARMUP = 5
_CHAIN = 100
_QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FUSED_OPS = frozenset({"BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_KERNEL = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class _Node:
    """A node of an ONNX graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layer_latencies(path: Path | str, layers: Iterable[str], *, batch: int = 1, runs: int = 50) -> Mapping[str, float]:
    """The median time of each Keras layer in milliseconds, without the time that profiling itself takes.

    The graph runs as in `onnxruntime.latency_ms`: default kernels, threads and optimizations, noise as inputs. On an idle machine the
    sum over all keys is the latency of the graph; on a busy one it is less, as a median passes over the runs that had to wait.

    Args:
        path: What `export_onnx` or `export_float_onnx` wrote.
        layers: The names of all layers of the canonical model; of nested names the longest that fits a node is its layer.
        batch: Stands for the dynamic first axis.
        runs: How many runs the median is of, after a warm-up.

    Returns:
        Layer -> milliseconds, for the layers that have kernels of their own, and what belongs to none under `UNATTRIBUTED`. A layer
        that is fused into another one has no key.

    Raises:
        EngineError: The file is missing or cannot be loaded or run, no node belongs to any of the layers, or a number is below 1.
    """
    if min(batch, runs) < 1:
        raise EngineError(f"batch and runs must be at least 1; got batch={batch}, runs={runs}")
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} is not a file; expected an ONNX model, such as the model.onnx that `tfqat export` writes")
    with tempfile.TemporaryDirectory(prefix="tfqat-profile-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        times = _without_profiling(_profile(path, optimized, batch, runs), optimized.parent, runs)
        nodes = _nodes(optimized)
    exported = _nodes(path)
    names = {name: layer for layer in layers for name in (given_name(layer), layer)}
    owners = _owners(nodes, _known(exported, names))
    if not any(owners.values()):
        raise EngineError(
            f"no node of {path} belongs to any of the {len(set(names.values()))} layers, for example {next(iter(names), None)!r}; its "
            f"nodes are called as {exported[0].name if exported else None!r}. Pass the layers of the model that this file was exported from"
        )
    return _by_layer(times, owners)


def _profile(path: Path, optimized: Path, batch: int, runs: int) -> Mapping[str, float]:
    """The median microseconds of each node of the graph that ONNX Runtime makes, and writes to `optimized`."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(optimized)
    options.enable_profiling, options.profile_file_prefix = True, str(optimized.with_suffix(""))
    try:
        session = ort.InferenceSession(str(path), options, providers=list(runtime.PROVIDERS))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class (1.32)
        raise EngineError(f"ONNX Runtime cannot load {path}: {' '.join(str(error).split())}") from error
    try:
        feed = runtime.noise(session, batch, np.random.default_rng(0))
        for _ in range(WARMUP + runs):
            runtime.run(session, feed)
    finally:
        events = json.loads(Path(session.end_profiling()).read_text())
    # Durations are whole microseconds; the grouped median finds fractions in how often each occurs.
    return {node: statistics.median_grouped(times[WARMUP:], interval=1) for node, times in _durations(events).items()}


def _durations(events: Iterable[Mapping[str, Any]]) -> Mapping[str, list[int]]:
    """Microseconds of each node in each run; kernels that ran inside another one, such as a Loop's, are part of its time."""
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_KERNEL)]
    durations: dict[str, list[int]] = defaultdict(list)
    end = 0
    for event in sorted(kernels, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= end:
            durations[event["name"].removesuffix(_KERNEL)].append(event["dur"])
            end = event["ts"] + event["dur"]
    return durations


def _without_profiling(times: Mapping[str, float], folder: Path, runs: int) -> Mapping[str, float]:
    """Microseconds of each node less those that profiling adds to one: 3 to 4 here, as much as a small convolution takes.

    They are measured on a chain of nodes that compute next to nothing, as time in the profile less time of a run without a profile.
    No node takes less than one of these.
    """
    import onnx.parser

    body = "".join(f"v{number + 1} = Clip(v{number}, low, high)\n" for number in range(_CHAIN))
    shape = "float[1, 1, 1, 1]"  # of four dimensions, as most are: profiling writes them down while the clock runs
    head = f'<ir_version: 8, opset_import: ["" : 17]> chain ({shape} v0) => ({shape} v{_CHAIN}) <float low = {{-1}}, float high = {{1}}>'
    model = onnx.parser.parse_model(f"{head} {{ {body} }}")
    for number, node in enumerate(model.graph.node):
        node.name = f"clip{number}"
    path = folder / "chain.onnx"
    onnx.save(model, str(path))
    profiled = _profile(path, folder / "chain_optimized.onnx", 1, runs)
    least = runtime.latency_ms({"chain": path}, repeats=runs)["chain"] * 1e3 / len(profiled)
    added = max(statistics.median(profiled.values()) - least, 0.0)
    return {node: max(microseconds - added, least) for node, microseconds in times.items()}


def _by_layer(times: Mapping[str, float], owners: Mapping[str, Sequence[str]]) -> Mapping[str, float]:
    """The milliseconds of each layer from the microseconds of the nodes, which the owners of a node share equally."""
    found: dict[str, float] = defaultdict(float, {UNATTRIBUTED: 0.0})
    for node, microseconds in times.items():
        shares = owners.get(node) or (UNATTRIBUTED,)
        for layer in shares:
            found[layer] += microseconds / 1e3 / len(shares)
    return dict(found)


def _known(exported: Sequence[_Node], names: Mapping[str, str]) -> Mapping[str, str]:
    """The layer of each node and each value of the exported graph, by name; an empty one where no layer's name fits (rules 1 and 2)."""
    prefix = _prefix(exported, names)
    layers = [_layer(node, prefix, names) for node in exported]
    products = {layer for node, layer in zip(exported, layers, strict=True) if node.op in PRODUCT_OPS}
    readers = _readers(exported)
    values: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for node, own in zip(exported, layers, strict=True):
        source = node.inputs[0] if node.inputs else ""
        follows = node.op in _FUSED_OPS and len(readers[source]) == 1 and values.get(source) in products
        layer = values[source] if follows and values[source] else own
        nodes[node.name] = layer
        values |= dict.fromkeys(node.outputs, layer)
    return values | nodes


def _prefix(exported: Sequence[_Node], names: Mapping[str, str]) -> str:
    """What stands before the layers' names: the model's name in a float graph, nothing in a Q/DQ graph; with it most layers are found."""
    first = next((node for node in exported if node.op in PRODUCT_OPS), exported[0] if exported else None)
    parts = first.name.split("/") if first else []
    prefixes = ["".join(f"{part}/" for part in parts[:length]) for length in range(len(parts))] or [""]
    return max(prefixes, key=lambda prefix: len({_layer(node, prefix, names) for node in exported} - {""}))


def _layer(node: _Node, prefix: str, names: Mapping[str, str]) -> str:
    """The layer with the longest name that leads the node's name, or an empty one; a product of a Q/DQ graph may say `@2` at its end."""
    if not node.name.startswith(prefix):
        return ""
    path = node.name.removeprefix(prefix)
    call, _, number = path.rpartition("@")
    if number.isdecimal() and path not in names:
        path = call
    while path and path not in names:
        path = path.rpartition("/")[0]
    return names.get(path, "")


def _owners(optimized: Sequence[_Node], known: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """The layers that share the time of each node of the graph that is run (rules 3 and 4)."""
    own = [None if node.op in _QDQ_OPS else _lookup(node.name, known) for node in optimized]
    makers = {output: number for number, node in enumerate(optimized) for output in node.outputs}
    readers = _readers(optimized)
    above = _nearest([[makers[value] for value in node.inputs if value in makers] for node in optimized], own)
    sinks = [[number for value in node.outputs for number in readers[value]] for node in optimized]
    below = _nearest(sinks, own, backwards=True)
    owners: dict[str, tuple[str, ...]] = {}
    for number, (node, layer) in enumerate(zip(optimized, own, strict=True)):
        if layer is None:
            owners[node.name] = tuple(sorted(below[number] or above[number]))
        else:
            inside = above[number] == below[number] and len(below[number]) == 1
            owners[node.name] = (layer,) if layer else tuple(below[number]) if inside else ()
    return owners


def _nearest(neighbours: Sequence[Sequence[int]], own: Sequence[str | None], *, backwards: bool = False) -> Mapping[int, set[str]]:
    """The nearest layers on one side of each node: those of its neighbours, and beyond a neighbour that has none the nearest to that."""
    found: dict[int, set[str]] = {}
    for number in reversed(range(len(own))) if backwards else range(len(own)):
        layers = [found[other] if not own[other] else {str(own[other])} for other in neighbours[number]]
        found[number] = set().union(*layers)
    return found


def _lookup(name: str, known: Mapping[str, str]) -> str | None:
    """The layer of the longest known name that `name` is or starts with, up to a `/` or `_`; None if there is no such name."""
    ends = [len(name), *(end for end in range(len(name) - 1, 0, -1) if name[end] in "/_")]
    found = next((name[:end] for end in ends if name[:end] in known), None)
    return None if found is None else known[found]


def _readers(nodes: Sequence[_Node]) -> Mapping[str, list[int]]:
    """The numbers of the nodes that read each value."""
    readers: dict[str, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for value in dict.fromkeys(filter(None, node.inputs)):
            readers[value].append(number)
    return readers


def _nodes(path: Path) -> tuple[_Node, ...]:
    """The nodes of a file, in its order, which is topological."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return tuple(_Node(name=node.name, op=node.op_type, inputs=tuple(node.input), outputs=tuple(node.output)) for node in graph.node)
