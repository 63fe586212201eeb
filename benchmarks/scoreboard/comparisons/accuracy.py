"""Accuracy after quantization and after fine-tuning, for all tools, seeds, networks and widths of weights."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scoreboard.bench import Bench, outputs
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.networks import NETWORKS as NETWORKS_OF
from benchmarks.scoreboard.peer import Cannot
from benchmarks.scoreboard.peers import FLOAT, MCT, PEERS, TFMOT, TFQAT, Place
from benchmarks.scoreboard.spread import mean_and_deviation, paired
from benchmarks.scoreboard.tables import NONE, Table, difference, label, percent, short
from benchmarks.scoreboard.worker import Failed, Worker

TITLE = "Accuracy"
ABOUT = """Fashion-MNIST, 10,000 test images, two networks. A seed draws the images that calibrate (16 batches of 128) and orders those
that train; it is the same for all tools. Fine-tuning: one epoch over 8,000 images, SGD with momentum 0.9, batches of 64, a cosine to a
hundredth of the rate. tfqat gets the rate that it derives, 0.001; every other tool, and the float control, gets the better of 0.001 and
0.01, chosen on the test images of seed 0, to their advantage. Accuracy is that of the tool's own Keras model, else of its ONNX executed
as written. Differences are in points, paired by image and seed, ± their standard error (seeds and images). ONNX columns: seed 0;
literal has graph optimization off, deployed is a default session. MCT's QAT starts from its own initialization. Its GPTQ, with 4
bits alone, takes longer than all others together, and is measured where `--gptq` asks for it."""
NETWORKS = ("fashion_mnist", "residual")
BITS = (8, 4)
RATES = (1e-3, 1e-2)
ONE_SEED = ("GPTQ", "percentile", "onnxruntime", "uint8", "inserted")
"""Variants of seed 0 alone: two take long, two are other forms of a model, and the last has no calibration that a seed could change."""
Rights = list[np.ndarray]
"""Whether each test image was classified right, for each seed."""
LONGEST_FIRST = (MCT, TFMOT, FLOAT, TFQAT)
"""Tools that train; those that do not come after them, so that both processes end at about the same time."""


def measure(bench: Bench) -> dict[str, Any]:
    """All networks; two tools at a time, one core each, as no time is measured here."""
    found: dict[str, Any] = dict(bench.earlier)
    names = bench.networks or NETWORKS
    for name in names:
        _write_data(bench, name)
    wanted = [place for place in PEERS.values() if place == TFQAT or place.title in bench.tools_wanted or not bench.tools_wanted]
    jobs = [(FLOAT, 8), *((place, bits) for bits in BITS for place in wanted)]
    order = [(name, *job) for name in names for job in sorted(jobs, key=_length)]
    with ThreadPoolExecutor(2) as pool:
        running = {one: pool.submit(_rows, bench, *one) for one in order}
        for name in names:
            rows = [row for job in jobs for row in running[(name, *job)].result()]
            found[name] = _with_earlier(bench.earlier.get(name), _network(NETWORKS_OF[name].title, rows))
            bench.keep(found)
    return found


def _length(job: tuple[Place, int]) -> int:
    return LONGEST_FIRST.index(job[0]) if job[0] in LONGEST_FIRST else len(LONGEST_FIRST)


def _write_data(bench: Bench, name: str) -> None:
    network, folder = bench.network(name)
    for seed in range(bench.seeds):
        network.calibration(folder, seed)
        network.training(folder, seed, bench.training_images)
    network.test(folder)


def _network(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    float_right = next(row for row in rows if row["peer"] == FLOAT.title and row["kind"] == "PTQ")["right"]
    ours = {(row["bits"], row["kind"]): row["right"] for row in rows if row["peer"] == TFQAT.title and row["variant"] == "tensorrt"}
    return {"title": title, "rows": [_judged(row, float_right, ours.get((row["bits"], row["kind"]))) for row in rows]}


def _with_earlier(earlier: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """The rows of the run before, with those in their places that were measured again."""
    again = {(row["peer"], row["bits"]) for row in found["rows"]}
    rows: list[dict[str, Any]] = []
    for row in (earlier or {"rows": []})["rows"]:
        key = row["peer"], row["bits"]
        if key not in again:
            rows.append(row)
        elif not any((one["peer"], one["bits"]) == key for one in rows):
            rows += [one for one in found["rows"] if (one["peer"], one["bits"]) == key]
    return {**found, "rows": rows + [row for row in found["rows"] if row not in rows]}


def _judged(row: dict[str, Any], float_right: Rights, ours: Rights | None) -> dict[str, Any]:
    """The row with accuracies and differences in the place of the single images."""
    right = row.pop("right", None)
    if not right:
        return row
    row["accuracies"] = [float(one.mean()) for one in right]
    row["to_float"] = paired(np.stack(right), np.stack(float_right))
    if ours:
        row["to_tfqat"] = paired(np.stack(right), np.stack(ours[: len(right)]))
    return row


def _rows(bench: Bench, name: str, place: Place, bits: int) -> list[dict[str, Any]]:
    return list(_each_row(bench, name, place, bits))


def _each_row(bench: Bench, name: str, place: Place, bits: int) -> Iterator[dict[str, Any]]:
    """PTQ by every variant, then QAT, of one tool."""
    start = {"peer": place.title, "bits": bits}
    try:
        worker = bench.worker(place, threads=1)
    except (Cannot, Failed) as reason:
        yield {**start, "variant": "", "kind": "PTQ", "cannot": str(reason)}
        return
    with worker:
        for variant in worker.about["variants"]:
            if variant != "QAT" and (variant != "GPTQ" or (bits == 4 and bench.gptq)):
                bench.say(f"{name}: {place.title}, {variant}, {bits} bits")
                yield {**start, "variant": variant, "kind": "PTQ", **_tried(lambda: _ptq(bench, name, worker, bits, variant))}  # noqa: B023
        bench.say(f"{name}: {place.title}, QAT, {bits} bits")
        variant = worker.about["trains_from"]
        yield {**start, "variant": variant, "kind": "QAT", **_tried(lambda: _qat(bench, name, worker, bits))}


def _tried(measure: Any) -> dict[str, Any]:
    try:
        return measure()
    except (Cannot, Failed) as reason:
        return {"cannot": str(reason)}


def _ptq(bench: Bench, name: str, worker: Worker, bits: int, variant: str) -> dict[str, Any]:
    right: Rights = []
    shipped: dict[str, Any] = {}
    for seed in range(1 if variant in ONE_SEED else bench.seeds):
        _quantized(bench, name, worker, bits, variant, seed)
        found, files = _right(bench, name, worker, bits, exported=seed == 0)
        right.append(found)
        shipped |= files
    return {"right": right, **shipped}


def _qat(bench: Bench, name: str, worker: Worker, bits: int) -> dict[str, Any]:
    """The rate is chosen by seed 0; its model is the last that was trained with it."""
    variant = worker.about["trains_from"]
    if not variant:
        raise Cannot(_why_not(worker))
    rates = RATES[:1] if worker.place == TFQAT else RATES
    first = {rate: _finetuned(bench, name, worker, bits, variant, 0, rate) for rate in rates}
    rate = max(first, key=lambda one: float(first[one][0].mean()))
    rest = [_finetuned(bench, name, worker, bits, variant, seed, rate)[0] for seed in range(1, bench.seeds)]
    return {"right": [first[rate][0], *rest], "rate": rate, **first[rate][1]}


def _why_not(worker: Worker) -> str:
    try:
        worker.call("refuse_finetuning")
    except (Cannot, Failed) as reason:
        return str(reason)
    return "it has no fine-tuning"


def _finetuned(
    bench: Bench, name: str, worker: Worker, bits: int, variant: str, seed: int, rate: float
) -> tuple[np.ndarray, dict[str, Any]]:
    network, folder = bench.network(name)
    _quantized(bench, name, worker, bits, variant, seed)
    images, labels = (str(path) for path in network.training(folder, seed, bench.training_images))
    worker.call("finetune", images=images, labels=labels, schedule=asdict(replace(bench.schedule, learning_rate=rate)), seed=seed)
    return _right(bench, name, worker, bits, exported=seed == 0)


def _quantized(bench: Bench, name: str, worker: Worker, bits: int, variant: str, seed: int) -> None:
    network, folder = bench.network(name)
    worker.call("quantize", network=str(folder), batches=str(network.calibration(folder, seed)), bits=bits, variant=variant, seed=seed)


def _right(bench: Bench, name: str, worker: Worker, bits: int, *, exported: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Whether each image is right, and accuracies of the exported graph."""
    network, folder = bench.network(name)
    images, labels = network.test(folder)
    path = folder / f"{worker.place.module} {bits} bits.onnx"
    right, shipped = None, {}
    if worker.about["is_keras"]:
        out = path.with_suffix(".npy")
        worker.call("predict", images=str(images), out=str(out))
        right = np.load(out).argmax(axis=1) == labels
    if exported or right is None:
        found = _shipped(worker, path, np.load(images), labels, ways=(True, False) if exported else (True,))
        if right is None:
            right = found["literal"]
            if isinstance(right, str):
                raise Failed(right)
        shipped = {key: one if isinstance(one, str) else float(one.mean()) for key, one in found.items()}
    return right, shipped


def _shipped(worker: Worker, path: Path, images: np.ndarray, labels: np.ndarray, ways: tuple[bool, ...]) -> dict[str, Any]:
    try:
        worker.call("export", path=str(path))
    except (Cannot, Failed) as reason:
        return {"literal": str(reason)}
    found = {"literal" if literal else "deployed": outputs(path, images, literal=literal) for literal in ways}
    return {key: one if isinstance(one, str) else one.argmax(axis=1) == labels for key, one in found.items()}


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """One for each network, width and kind."""
    header = ["", "accuracy", "over seeds", "to float", "to tfqat", "ONNX literal", "ONNX deployed"]
    for network in figures.values():
        for bits in BITS:
            for kind in ("PTQ", "QAT"):
                rows = [row for row in network["rows"] if row["kind"] == kind and (row["bits"] == bits or row["peer"] == FLOAT.title)]
                title = f"{network['title']}: weights of {bits} bits, {'calibrated' if kind == 'PTQ' else 'fine-tuned'}"
                yield Table(title=title, header=header, rows=[_cells(row, bits) for row in rows], notes=_notes(rows))


def _cells(row: dict[str, Any], bits: int) -> list[str]:
    name = label(row) if row["peer"] != FLOAT.title else "float" if row["kind"] == "PTQ" else "float, trained on (control)"
    if "cannot" in row:
        return [name, "cannot", *[NONE] * 5]
    mean, deviation = mean_and_deviation(row["accuracies"])
    several = len(row["accuracies"]) > 1
    ours = row.get("to_tfqat") if row["bits"] == bits else None  # the float row stands in the tables of both widths
    rate = f", rate {row['rate']:g}" if "rate" in row else ""
    shipped = [percent(row[key]) if isinstance(row.get(key), float) else NONE for key in ("literal", "deployed")]
    over = f"± {100 * deviation:.2f}" if several else "one seed"
    return [f"{name}{rate}", percent(mean), over, difference(row["to_float"]), difference(ours), *shipped]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    found = [f"{label(row)}: cannot: {short(row['cannot'])}" for row in rows if "cannot" in row]
    texts = ((label(row), key, row[key]) for row in rows for key in ("literal", "deployed") if isinstance(row.get(key), str))
    return found + [f"{name}: no ONNX ({key}): {short(text)}" for name, key, text in texts]


def contests(figures: dict[str, Any]) -> Iterator[Contest]:
    """tfqat beside every other tool: the accuracy of each row, and of the PTQ graphs as they are deployed."""
    for network in figures.values():
        for row in network["rows"]:
            if row["peer"] in (TFQAT.title, FLOAT.title) or "to_tfqat" not in row:
                continue
            apart = row["to_tfqat"]
            what = f"{network['title']}, {row['bits']} bits, {row['kind']}"
            text = f"{difference(apart)} points to tfqat"
            noise = 2 * apart["standard_error"]
            yield Contest(section=TITLE, what=what, peer=label(row), lead=-apart["points"], noise=noise, text=text)
