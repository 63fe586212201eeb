"""The `export` block: the ONNX file, and what it looks like from outside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tfqat.form import Form, Pixels, Target
from tfqat.recipe.blocks import Block, Items, Text


class PixelsConfig(Block):
    """uint8 images, which the graph normalizes itself."""

    mean: Items[float] = Field(default=(0.0,), min_length=1, description="Of the pixels, 0 to 255: one number, or one per channel.")
    std: Items[Annotated[float, Field(gt=0)]] = Field(default=(1.0,), min_length=1, description="What they are divided by, likewise.")


class ExportConfig(Block):
    """The `export` block."""

    opset: int = Field(default=17, ge=13, le=23, description="ONNX opset; 13 is the first with per-channel Q/DQ.")
    fold_batchnorm: bool = Field(default=True, description="Fold each BatchNorm into the weight scales of the layer before it.")
    target: Target | None = Field(
        default=None,
        description="What the graph is for: tensorrt (int8), or onnxruntime, its CPU kernels (uint8); null: as `quantization`.",
    )
    remainder: Literal["float32", "float16"] = Field(
        default="float32", description="Type of what is not quantized; TensorRT 11 computes in the type that is written."
    )
    weights: Literal["int8", "float"] = Field(
        default="int8", description="Weights as int8 codes, or as floats with Q and DQ behind them, for tools that want that."
    )
    external_data: bool | None = Field(
        default=None, description="Weights in a file of their own, model.onnx.data; null: above 1.5 GB, as a file of ONNX holds 2 GB."
    )
    batch: int | None = Field(default=None, ge=1, description="A fixed batch size; null: free.")
    size: Items[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="Fixed sizes of the free axes of images, such as [224, 224]; null: as the model has them."
    )
    layout: Literal["nhwc", "nchw"] = Field(default="nhwc", description="Of images at the graph's inputs.")
    pixels: PixelsConfig | None = Field(
        default=None, description="Take uint8 images, normalized by the graph: (pixel - mean) / std; null: as the model takes them."
    )
    outputs: Items[Text] = Field(default=(), description="New names of the outputs, one each; empty: the model's.")

    @property
    def form(self) -> Form:
        """The outside of the graph."""
        return Form(
            target=self.target or "tensorrt",
            remainder=self.remainder,
            weights=self.weights,
            batch=self.batch,
            size=self.size,
            layout=self.layout,
            pixels=Pixels(mean=self.pixels.mean, std=self.pixels.std) if self.pixels else None,
            outputs=self.outputs,
        )
