"""Where channels can be scaled between layers: from what makes a tensor, through positively homogeneous layers, to what multiplies it.

    before   Conv -> BN -> ReLU -> Conv2        after   one link: producer BN, consumer Conv2, channels those of BN

A function f is positively homogeneous if f(x / s) = f(x) / s for every s > 0. A layer that is not, or that joins the channels of several
tensors, keeps everything that it reads or makes out of a link.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules import classes
from tfqat.placement.rules.classes import WEIGHTS

CAP = 6.0
"""The bound of `relu6`."""

# Positively homogeneous channel by channel, and at training too: noise of a fixed size is not.
_TIES = (
    {"LeakyReLU", "PReLU", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Flatten"}
    | {f"Cropping{size}" for size in ("1D", "2D", "3D")}
    | classes.AVERAGE_POOLS
    | classes.MAX_POOLS
    | classes.PADDINGS
    | classes.UPSAMPLINGS
)
_HOMOGENEOUS = frozenset({"linear", "relu", "leaky_relu"})
_AFFINE = frozenset({"BatchNormalization", "LayerNormalization"})


@dataclass(frozen=True, kw_only=True)
class Link:
    """Tensors whose channels share one factor each.

    Attributes:
        producers: what makes them: the layers whose output channels are divided.
        readers: the quantized products that read them, with the tensor that each reads; their input channels are multiplied.
        caps: the ReLU6 layers between, with their bound.
        channels: how many.
    """

    producers: tuple[Node, ...]
    readers: tuple[tuple[TensorRef, Node], ...]
    caps: tuple[tuple[Node, float], ...]
    channels: int


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links of a model; `left`: product -> why the channels that it reads stay as they are."""

    links: tuple[Link, ...]
    left: dict[str, str]


def find_links(graph: ModelGraph) -> Links:
    """Every link of a canonical float model."""
    search = _Search(graph=graph)
    for node in graph.nodes:
        search.add(node)
    for output in graph.outputs:
        search.block(output, "it is an output of the model")
    return search.found()


@dataclass(kw_only=True)
class _Search:
    """Sets of tensors that are tied, each with what was found at them, in the order of the graph."""

    graph: ModelGraph
    parents: dict[TensorRef, TensorRef] = field(default_factory=dict)
    blocked: dict[TensorRef, str] = field(default_factory=dict)
    producers: dict[TensorRef, Node] = field(default_factory=dict)
    readers: dict[TensorRef, list[Node]] = field(default_factory=dict)
    caps: dict[TensorRef, tuple[Node, float]] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        output = TensorRef(layer=node.name)
        reason = _obstacle(self.graph, node)
        if node.class_name in WEIGHTS and len(node.inputs) == 1:
            self.readers.setdefault(node.inputs[0], []).append(node)
            if reason:
                self.block(node.inputs[0], reason)
            self._produce(node, output, reason or _obstacle_of_activation(node))
        elif node.class_name in _AFFINE:
            self.block(node.inputs[0], f"{node.name}, a {node.class_name}, reads them")
            self._produce(node, output, reason)
        elif reason:
            for tensor in (*node.inputs, *(TensorRef(layer=node.name, index=index) for index in range(len(node.shapes)))):
                self.block(tensor, reason)
        else:
            self.parents[self._root(node.inputs[0])] = self._root(output)
            cap = _cap(node)
            if cap is not None:
                self.caps[output] = (node, cap)

    def block(self, tensor: TensorRef, reason: str) -> None:
        self.blocked.setdefault(tensor, reason)
        self._root(tensor)

    def found(self) -> Links:
        groups: dict[TensorRef, list[TensorRef]] = {}
        for tensor in list(self.parents):
            groups.setdefault(self._root(tensor), []).append(tensor)
        links, left = [], {}
        for tensors in groups.values():
            readers = tuple((tensor, node) for tensor in tensors for node in self.readers.get(tensor, ()))
            if not readers:
                continue
            reason = next((self.blocked[tensor] for tensor in tensors if tensor in self.blocked), None)
            if reason is None:
                producers = tuple(self.producers[tensor] for tensor in tensors if tensor in self.producers)
                caps = tuple(self.caps[tensor] for tensor in tensors if tensor in self.caps)
                links.append(Link(producers=producers, readers=readers, caps=caps, channels=int(producers[0].shapes[0][-1] or 0)))
            else:
                left.update({node.layer: reason for _, node in readers})
        return Links(links=tuple(links), left=left)

    def _produce(self, node: Node, output: TensorRef, reason: str | None) -> None:
        self.producers[output] = node
        self._root(output)
        if reason:
            self.block(output, reason)

    def _root(self, tensor: TensorRef) -> TensorRef:
        self.parents.setdefault(tensor, tensor)
        while self.parents[tensor] != tensor:
            tensor = self.parents[tensor]
        return tensor


def _obstacle(graph: ModelGraph, node: Node) -> str | None:
    """Why the channels that a layer reads, or those that it makes, cannot be scaled; None if they can."""
    name, kind = node.name, node.class_name
    if not node.inputs:
        return f"they come from {name}, an input of the model"
    if len(graph.calls(node.layer)) > 1:
        return f"{node.layer} is called several times"
    if node.config.get("data_format") == "channels_first":
        return f"{name} has its channels first"
    if kind in WEIGHTS:
        return f"{name} is a convolution of {node.config['groups']} groups" if node.config.get("groups", 1) > 1 else None
    if kind in _AFFINE:
        return _obstacle_of_affine(graph, node)
    if kind in ("ReLU", "Activation"):
        return _obstacle_of_activation(node)
    return None if kind in _TIES else f"{kind} {name} is not positively homogeneous in each channel by itself"


def _obstacle_of_affine(graph: ModelGraph, node: Node) -> str | None:
    axis = node.config.get("axis", -1)
    axes: Iterable[int] = [axis] if isinstance(axis, int) else axis
    if list(axes) not in ([-1], [len(graph.shape(node.inputs[0])) - 1]):
        return f"{node.name} normalizes another axis than the channels"
    return None if node.config.get("scale", True) else f"{node.name}, a {node.class_name}, has no gamma that could be divided"


def _obstacle_of_activation(node: Node) -> str | None:
    """Why an activation, a layer or a part of a product, cannot be scaled through."""
    if node.class_name == "ReLU":
        bounded = node.config.get("max_value") is not None
        if node.config.get("threshold") or (bounded and node.config.get("negative_slope")):
            return f"{node.name} is a ReLU with a threshold, or with a bound and a slope"
        return None
    name = classes.activation_name(node)
    if name == "relu6":
        return f"relu6 is part of {node.name}, and no layer of its own" if node.class_name in WEIGHTS else None
    return None if name in _HOMOGENEOUS else f"{name} of {node.name} is not positively homogeneous"


def _cap(node: Node) -> float | None:
    if node.class_name == "ReLU":
        bound = node.config.get("max_value")
        return None if bound is None else float(bound)
    return CAP if node.class_name == "Activation" and classes.activation_name(node) == "relu6" else None
