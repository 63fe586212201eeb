"""Writes the Q/DQ graph of a placement before anything is calibrated: what TensorRT would see, to look at or to build a trial engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfqat import numerics
from tfqat.export.onnx import ExportReport, export_onnx
from tfqat.placement.plan import Placement
from tfqat.quantize import state
from tfqat.quantize.apply import quantize_model

NOT_CALIBRATED: Mapping[str, str] = {"tfqat.calibrated": "false"}
"""The metadata entry of such a graph."""


def export_planned(model: Any, placement: Placement, path: str | Path, *, opset: int = 17, fold_batchnorm: bool = True) -> ExportReport:
    """Write the Q/DQ graph of a placement with placeholders for the ranges of activations.

    Weights have their real codes and scales. Every activation has the scale 1 (amax = hi), so the graph computes nothing useful; its
    metadata says `tfqat.calibrated: false`.

    Args:
        model: the model that was planned.
        placement: its placement.
        path: the file to write; written whole or not at all.
        opset: 13 to 23.
        fold_batchnorm: fold BatchNorm into the scales of the convolution before it.

    Raises:
        ExportError: see `export_onnx`.
    """
    qmodel = quantize_model(model, placement)
    handles = state.handles(qmodel)
    ranges = {
        name: numerics.weight_amax(handle.weight, handle.point.spec).numpy()
        if handle.weight is not None
        else np.float32(handle.point.spec.hi)
        for name, handle in handles.items()
    }
    state.set_ranges(qmodel, ranges)
    return export_onnx(qmodel, path, opset=opset, fold_batchnorm=fold_batchnorm, metadata=NOT_CALIBRATED)
