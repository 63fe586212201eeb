"""A bench computes, with some of its units switched, what a model that is quantized so computes: bit for bit, without tracing again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfqat
from tfqat.analysis.bench import Bench, Level
from tfqat.analysis.raised import raised
from tfqat.errors import NotCalibratedError
from tfqat.models import graph as model_graph
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of

MIXED = {
    "weights": {"num_bits": 4},
    "overrides": [{"match": "b1", "weights": {"num_bits": 8}}, {"match": "fc", "weights": {"num_bits": 2}}],
}
CASES = {
    "residual": ("residual", "selective"),
    "naive": ("residual", "naive"),
    "mobile": ("mobile", "selective"),
    "w4": ("residual", MIXED),
}


def bits(values: Any) -> list[bytes]:
    return [np.asarray(value).tobytes() for value in tf.nest.flatten(values)]


@pytest.fixture(scope="module")
def qmodels(networks: SimpleNamespace, images: np.ndarray, calibrated: Callable[..., Any]) -> dict[str, Any]:
    return {case: calibrated(getattr(networks, name)(), images, quantization) for case, (name, quantization) in CASES.items()}


@pytest.fixture(scope="module")
def benches(qmodels: dict[str, Any]) -> dict[str, Bench]:
    return {case: Bench(qmodel) for case, qmodel in qmodels.items()}


@pytest.fixture
def w4(qmodels: dict[str, Any]) -> Any:
    return qmodels["w4"]


@pytest.fixture
def bench(benches: dict[str, Bench]) -> Bench:
    """The bench of `w4`, as planned."""
    benches["w4"].set({})
    return benches["w4"]


def built(qmodel: Any, bench: Bench, levels: dict[str, Level]) -> Any:
    """A model that is quantized with these levels from the start: the ranges of `qmodel`, those of weights with 8 bits anew."""
    placement = raised(placement_of(qmodel), bench.graph, bench.units, levels, dict.fromkeys(levels, ""))
    model = tfqat.quantize_model(tfqat.strip(qmodel), placement)
    ranges, planned = state.ranges(qmodel), state.handles(qmodel)
    found = {}
    for name, handle in state.handles(model).items():
        same = handle.point.spec == planned[name].point.spec
        found[name] = ranges[name] if same else np.max(np.abs(handle.weight), axis=tuple(range(handle.weight.shape.rank - 1)))
    state.set_ranges(model, found)
    return model


def assert_same(found: Any, expected: Any, other: Any) -> None:
    """Equal but for what float rounding makes of it: 10,000 times closer than to `other`, in squares, which is what a switch changes."""
    found, expected, other = (np.asarray(tf.nest.flatten(value)[0], np.float64) for value in (found, expected, other))
    assert np.sum((found - expected) ** 2) <= 1e-4 * np.sum((expected - other) ** 2) > 0


@pytest.mark.parametrize("case", CASES)
def test_as_planned_and_in_float(case: str, qmodels: dict[str, Any], benches: dict[str, Bench], images: np.ndarray) -> None:
    bench, planned, plain = benches[case], qmodels[case](images), tfqat.strip(qmodels[case])(images)
    bench.set({})
    assert_same(bench.outputs(images), planned, plain)
    bench.set({}, others="float")
    assert_same(bench.outputs(images), plain, planned)


@pytest.mark.parametrize("case", CASES)
def test_every_switch_does_something_of_its_own(case: str, benches: dict[str, Bench], images: np.ndarray) -> None:
    """But for a Concat in float whose output is quantized again with the same scale: rounding twice is rounding once."""
    bench = benches[case]
    for others, level in (("planned", "float"), ("float", "planned")):
        changes: list[tuple[str, Level]] = [(unit.name, level) for unit in bench.units]  # type: ignore[misc]
        found = {change: bits(outputs)[0] for change, outputs in bench.sweep(images, changes, {}, others=others)}  # type: ignore[arg-type]
        same = {change for change, outputs in found.items() if change and outputs == found[None]}
        assert same == ({("concat", "float")} if case == "mobile" and others == "planned" else set())
        assert len(set(found.values())) == len(found) - len(same)


BUILT: list[tuple[str, dict[str, Level]]] = [
    ("residual", {"a1": "float"}),
    ("residual", {"a2": "float", "pool": "float"}),
    ("naive", {"a_add": "float"}),
    ("mobile", {"left": "float", "fc": "float"}),
    ("mobile", {"concat": "float", "project": "float", "dw": "float"}),
    ("w4", {"fc": "int8"}),
    ("w4", {"stem": "int8", "a1": "int8", "a2": "int8", "b2": "int8", "fc": "int8"}),
    ("w4", {"stem": "int8", "b2": "float", "fc": "int8"}),
]


@pytest.mark.parametrize(("case", "levels"), BUILT, ids=[f"{case}-{'-'.join(levels)}" for case, levels in BUILT])
def test_levels_are_the_model_that_is_planned_so(
    case: str, levels: dict[str, Level], qmodels: dict[str, Any], benches: dict[str, Bench], images: np.ndarray
) -> None:
    bench = benches[case]
    levels = {next(unit.name for unit in bench.units if name in unit.layers): level for name, level in levels.items()}
    bench.set(levels)
    assert_same(bench.outputs(images), built(qmodels[case], bench, levels)(images), qmodels[case](images))


def test_weights_in_8_bits_are_the_codes_that_8_bits_give(w4: Any, bench: Bench) -> None:
    """The values of the level int8 are the fake-quantized ones of an 8-bit grid, and come and go with the level."""
    kernel, handle = tfqat.strip(w4).get_layer("fc").kernel.numpy(), state.handles(bench.model)["fc/kernel"]
    scale = np.abs(kernel).max(axis=0) / np.float32(127)
    bench.set({"fc": "int8"})
    assert not bool(handle.enabled)
    np.testing.assert_array_equal(handle.weight.numpy(), np.rint(kernel / scale) * scale)
    bench.set({})
    assert bool(handle.enabled)
    np.testing.assert_array_equal(handle.weight.numpy(), kernel)


def test_int8_of_a_unit_that_has_8_bits_is_as_planned(bench: Bench, images: np.ndarray) -> None:
    assert [unit.num_bits for unit in bench.units] == [4, 4, 4, 8, 4, 8, 2]
    planned = bits(bench.outputs(images))
    bench.set({"b1": "int8", "pool": "int8"})
    assert bits(bench.outputs(images)) == planned


@pytest.mark.parametrize(("level", "others"), [("planned", "float"), ("float", "planned"), ("int8", "float"), ("int8", "planned")])
@pytest.mark.parametrize("case", CASES)
def test_a_sweep_is_each_change_by_itself(case: str, benches: dict[str, Bench], images: np.ndarray, level: Level, others: Level) -> None:
    bench, base = benches[case], {benches[case].units[2].name: level}
    changes = [(unit.name, level) for unit in reversed(bench.units)]
    swept = {change: bits(outputs) for change, outputs in bench.sweep(images, changes, base, others=others)}
    assert set(swept) == {None, *changes}
    for change in swept:
        bench.set({**base, **dict([change] if change else [])}, others=others)
        assert swept[change] == bits(bench.outputs(images)), change


def test_a_sweep_goes_along_the_model_and_ends_with_the_base(bench: Bench, images: np.ndarray) -> None:
    changes = [("fc", "float"), ("stem", "float"), ("fc", "int8"), ("a2", "float")]
    order = [change for change, _ in bench.sweep(images, changes, {"b1": "float"})]
    assert order == [("stem", "float"), ("a2", "float"), ("fc", "float"), ("fc", "int8"), None]
    bench.set({"b1": "float"})
    base = bits(bench.outputs(images))
    assert [bits(outputs) for _, outputs in bench.sweep(images, [], {"b1": "float"})] == [base]


def test_a_sweep_leaves_the_bench_at_its_base(bench: Bench, images: np.ndarray) -> None:
    list(bench.sweep(images, [("fc", "float"), ("a1", "int8")], {"stem": "float"}))
    after = bits(bench.outputs(images))
    bench.set({"stem": "float"})
    assert bits(bench.outputs(images)) == after


def test_a_sweep_that_is_left_half_way_does_not_disturb_the_next(bench: Bench, images: np.ndarray) -> None:
    planned = bits(bench.outputs(images))
    next(iter(bench.sweep(images, [("a1", "float"), ("fc", "float")], {})))
    bench.set({})
    assert bits(bench.outputs(images)) == planned


@pytest.mark.parametrize("case", CASES)
def test_one_piece_begins_at_every_unit(case: str, benches: dict[str, Bench]) -> None:
    bench = benches[case]
    firsts = [bench.first_piece(unit.name) for unit in bench.units]
    assert firsts == sorted(set(firsts)) == list(range(len(bench.pieces.chain)))
    for unit in bench.units:
        nodes = bench.pieces.chain[bench.first_piece(unit.name)].nodes
        assert nodes[0] in bench.switched[unit.name], (unit.name, nodes)


def test_the_model_that_is_given_stays_as_it_was(w4: Any, images: np.ndarray) -> None:
    def now() -> Any:
        return bits(w4.weights), bits(w4(images)), model_graph.read(w4), placement_of(w4)

    before = now()
    bench = Bench(w4)
    list(bench.sweep(images, [(unit.name, "int8") for unit in bench.units], {}, others="float"))
    assert now() == before
    assert not {id(weight) for weight in w4.weights} & {id(weight) for weight in bench.model.weights}


def test_a_quantizer_that_two_units_share_is_one_for_each(qmodels: dict[str, Any], benches: dict[str, Bench]) -> None:
    qmodel, bench = qmodels["residual"], benches["residual"]
    handles = state.handles(bench.model)
    pair = [handles[f"stem_relu/for/{unit}"] for unit in ("a1", "a2")]
    assert "stem_relu" not in handles
    assert [float(handle.amax) for handle in pair] == [float(state.ranges(qmodel)["stem_relu"])] * 2
    bench.set({"a1": "float"})
    assert [bool(handle.enabled) for handle in pair] == [False, True]
    fed = model_graph.read(bench.model)
    assert [fed.node(name).inputs[index].layer for name, index in (("a1", 0), ("a_add", 1))] == ["stem_relu/for/a1.q", "stem_relu/for/a2.q"]


def test_a_scale_group_keeps_its_scale(benches: dict[str, Bench]) -> None:
    handles = state.handles(benches["mobile"].model)
    grouped = {name: float(handle.amax) for name, handle in handles.items() if name.startswith(("left_relu", "right_relu", "concat"))}
    assert len(grouped) == 3 and len(set(grouped.values())) == 1


def test_a_model_without_ranges_is_refused(networks: SimpleNamespace) -> None:
    with pytest.raises(NotCalibratedError, match=r"13 of 13 quantizers of model 'residual' have no range, the first is 'image'"):
        Bench(tfqat.quantize_model(networks.residual()))


def test_a_part_of_a_point_is_like_the_point(w4: Any, bench: Bench) -> None:
    points = {point.id: point for point in placement_of(bench.model).points}
    origin = next(point for point in placement_of(w4).points if point.id == "stem_relu")
    part = points["stem_relu/for/a1"]
    assert replace(part, id=origin.id, edges=origin.edges) == origin


def test_float_is_what_the_model_was_before_its_weights_were_corrected(networks: SimpleNamespace, calibrated: Callable[..., Any]) -> None:
    x = np.random.default_rng(2).normal(size=(16, 12)).astype(np.float32)
    model = networks.chain()
    corrected = networks.chain()
    for name in ("first", "second"):
        layer = corrected.get_layer(name)
        layer.set_weights([0.9 * layer.kernel.numpy(), layer.bias.numpy() + 1])
    qmodel = calibrated(corrected, x)
    bench = Bench(qmodel, model)
    bench.set({}, others="float")
    assert_same(bench.outputs(x), model(x), corrected(x))
    bench.set({})
    assert_same(bench.outputs(x), qmodel(x), model(x))
    bench.set({"first": "float"})
    half = networks.chain()
    half.get_layer("second").set_weights(corrected.get_layer("second").get_weights())
    assert_same(bench.outputs(x), built_with(qmodel, half, bench)(x), qmodel(x))


def built_with(qmodel: Any, model: Any, bench: Bench) -> Any:
    """`model` with the quantizers and ranges of `qmodel`, but for those of the unit `first`."""
    placement = raised(placement_of(qmodel), bench.graph, bench.units, {"first": "float"}, {"first": ""})
    found = tfqat.quantize_model(model, placement)
    state.set_ranges(found, {name: value for name, value in state.ranges(qmodel).items() if name in state.handles(found)})
    return found
