"""What is left of EfficientNet-Lite0's logits, with its real ImageNet weights, on photographs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.scoreboard.bench import Bench, outputs
from benchmarks.scoreboard.contests import Contest
from benchmarks.scoreboard.networks import EFFICIENTNET
from benchmarks.scoreboard.peers import TFQAT
from benchmarks.scoreboard.tables import NONE, Table, label, short
from tfqat.recipe.references import load_reference

TITLE = "ImageNet weights"
ABOUT = """EfficientNet-Lite0, after calibration on 64 crops of photographs, measured on 115 others beside the float model: signal to
quantization noise of the logits (dB), and how often the largest logit is the same. There is no fine-tuning, as there are no labelled
photographs."""
WAYS = ("keras", "literal", "deployed")


def measure(bench: Bench) -> list[dict[str, Any]]:
    """A row for each tool and variant."""
    agreement = load_reference("compare.py:agreement", base=EFFICIENTNET)
    network, folder = bench.network("efficientnet")
    images = np.load(network.test(folder)[0])
    reference = outputs(folder / "float.onnx", images, literal=True)
    rows = []
    for made in bench.artifacts("efficientnet"):
        row = {key: made[key] for key in ("peer", "variant", "refused", "not_exported") if key in made}
        found = {"keras": np.load(made["outputs"])} if "outputs" in made and "refused" not in made else {}
        if "path" in made:
            found |= {way: outputs(made["path"], images, literal=way == "literal") for way in WAYS[1:]}
        rows.append({**row, **{way: one if isinstance(one, str) else agreement(reference, one) for way, one in found.items()}})
    return rows


def tables(figures: list[dict[str, Any]]) -> Iterator[Table]:
    """SQNR and agreement for the model, and for its ONNX as written and as deployed."""
    header = ["", "Keras, dB", "same top-1", "ONNX literal, dB", "same top-1", "deployed, dB", "same top-1"]
    notes = [
        f"{label(row)}: {short(row.get('refused') or row['not_exported'])}" for row in figures if {"refused", "not_exported"} & set(row)
    ]
    notes += [f"{label(row)}, {way}: {short(row[way])}" for row in figures for way in WAYS if isinstance(row.get(way), str)]
    rows = [[label(row), *(cell for way in WAYS for cell in _cells(row.get(way)))] for row in figures]
    yield Table(title="EfficientNet-Lite0, 8 bits, beside float", header=header, rows=rows, notes=notes)


def _cells(one: Any) -> tuple[str, str]:
    return (f"{one['sqnr_db']:.1f}", f"{100 * one['top1_agreement']:.1f}%") if isinstance(one, dict) else (NONE, NONE)


def contests(figures: list[dict[str, Any]]) -> Iterator[Contest]:
    """By SQNR: the tool's own model (Keras, else ONNX as written), its ONNX as written, and deployed; 0.1 dB decides nothing."""
    ours = {row["variant"]: row for row in figures if row["peer"] == TFQAT.title and "refused" not in row}
    for way, variant in (("as quantized", "tensorrt"), ("literal", "tensorrt"), ("deployed", "onnxruntime")):
        mine = _measures(ours.get(variant, {}), way)
        for row in figures if mine else ():
            theirs = _measures(row, way)
            if row["peer"] == TFQAT.title or not theirs or (way == "literal" and "keras" not in row):
                continue
            text = f"{mine['sqnr_db']:.1f} dB, {theirs['sqnr_db']:.1f} dB"
            lead = mine["sqnr_db"] - theirs["sqnr_db"]
            yield Contest(section=TITLE, what=f"SQNR, {way}", peer=label(row), lead=lead, noise=0.1, text=text)


def _measures(row: dict[str, Any], way: str) -> dict[str, float]:
    found = row.get("keras") or row.get("literal") if way == "as quantized" else row.get(way)
    return found if isinstance(found, dict) else {}
