"""The `export` block: the ONNX file, and what it looks like from outside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tfqat.form import Form
from tfqat.recipe.blocks import Block, Items, Text


class ExportConfig(Block):
    """The `export` block."""

    opset: int = Field(default=17, ge=13, le=23, description="ONNX opset; 13 is the first with per-channel Q/DQ.")
    fold_batchnorm: bool = Field(default=True, description="Fold each BatchNorm into the weight scales of the layer before it.")
    batch: int | None = Field(default=None, ge=1, description="A fixed batch size; null: free.")
    size: Items[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="Fixed sizes of the free axes of images, such as [224, 224]; null: as the model has them."
    )
    layout: Literal["nhwc", "nchw"] = Field(default="nhwc", description="Of images at the graph's inputs.")
    outputs: Items[Text] = Field(default=(), description="New names of the outputs, one each; empty: the model's.")

    @property
    def form(self) -> Form:
        """The outside of the graph."""
        return Form(batch=self.batch, size=self.size, layout=self.layout, outputs=self.outputs)
