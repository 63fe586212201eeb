"""The `quantization` block of a recipe: which layers are quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from tfqat.form import Target
from tfqat.recipe.blocks import Block, Items, Text
from tfqat.spec import MAX_BITS, MIN_BITS

Preset = Literal["naive", "hybrid", "selective"]
Method = Literal["max", "percentile", "entropy", "mse", "best"]


class WeightsConfig(Block):
    """How weights are quantized."""

    num_bits: int = Field(default=8, ge=MIN_BITS, le=MAX_BITS, description="Width of a weight's code, in bits.")
    calibrator: Literal["max", "mse"] = Field(
        default="max", description="How amax is chosen, per scale: the largest magnitude, or the least squared error of the weights."
    )
    granularity: Literal["per_channel", "per_tensor"] = Field(
        default="per_channel", description="One scale per output channel, or one per weight tensor."
    )


class ActivationsConfig(Block):
    """How activations are quantized, always per tensor."""

    num_bits: Literal[8] = Field(default=8, description="Width of an activation's code, in bits.")
    calibrator: Method = Field(
        default="percentile",
        description="How amax is chosen from the histogram of magnitudes; best: per point, by the error of the layers that read it.",
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="Per cent of magnitudes that lie within amax; for `percentile` only."
    )


class Override(Block):
    """Other settings for the layers that match; a key that is not given keeps the value of the `quantization` block.

    Read it through `QuantizationConfig.resolve`: `weights` and `activations` hold defaults for keys that were not given.
    """

    match: Text = Field(description="Layers by name glob, `re:` regular expression, or layer class.")
    weights: WeightsConfig | None = Field(default=None, description="Keys of `quantization.weights` to replace.")
    activations: ActivationsConfig | None = Field(default=None, description="Keys of `quantization.activations` to replace.")

    @model_validator(mode="after")
    def _replaces_something(self) -> Override:
        if not any(block and block.model_fields_set for block in (self.weights, self.activations)):
            raise ValueError("at least one key of weights or activations to replace")
        return self

    @field_serializer("weights", "activations")
    def _given_keys(self, block: Block | None) -> dict[str, Any] | None:
        return None if block is None else block.model_dump(exclude_unset=True)


class CustomLayer(Block):
    """How a layer class of the user's own is quantized."""

    class_name: Text = Field(description="Name of the layer class.")
    inputs: Items[Annotated[int, Field(ge=0)]] = Field(default=(0,), description="Which inputs are read quantized, by index.")
    weight: Text | None = Field(default=None, description="Attribute of the layer that holds its weight, e.g. kernel; null: no weight.")
    channel_axes: Items[Annotated[int, Field(ge=0)]] = Field(
        default=(), description="Axes of the weight that index output channels; empty: one scale for all."
    )

    @model_validator(mode="after")
    def _axes_have_a_weight(self) -> CustomLayer:
        if self.channel_axes and not self.weight:
            raise ValueError("weight, the attribute that channel_axes belong to")
        return self


class QuantizationConfig(Block):
    """The `quantization` block: which layers are quantized, and how."""

    preset: Preset = Field(default="selective", description="Placement rules: naive, hybrid, or selective (TensorRT's rules).")
    target: Target | None = Field(
        default=None,
        description="What the placement is for: tensorrt, or onnxruntime, its CPU kernels; null: `export.target`, or tensorrt.",
    )
    weights: WeightsConfig = Field(default=WeightsConfig(), description="How weights are quantized.")
    activations: ActivationsConfig = Field(default=ActivationsConfig(), description="How activations are quantized.")
    skip: Items[Text] = Field(default=(), description="Layers that stay float, by name glob, `re:` regular expression, or layer class.")
    force: Items[Text] = Field(default=(), description="Layers to quantize although the rules keep them float; patterns as in `skip`.")
    small_products: Literal["int8", "float"] = Field(
        default="int8", description="Products with fewer than 16 input or output channels: int8, or float, which is often faster."
    )
    custom_layers: Items[CustomLayer] = Field(default=(), description="Layer classes of your own that are quantized.")
    overrides: Items[Override] = Field(default=(), description="Other settings for some layers; of two that match, the later one wins.")

    def resolve(self, overrides: Iterable[Override] = ()) -> tuple[WeightsConfig, ActivationsConfig]:
        """The settings of a layer that `overrides`, in this order, match."""
        weights, activations = self.weights, self.activations
        for override in overrides:
            if override.weights:
                weights = weights.model_copy(update=override.weights.model_dump(exclude_unset=True))
            if override.activations:
                activations = activations.model_copy(update=override.activations.model_dump(exclude_unset=True))
        return weights, activations

    def narrow_weights(self) -> dict[tuple[str | int, ...], int]:
        """Path within the block -> bits, for each weight width below 8 bits."""
        paths: dict[tuple[str | int, ...], int] = {("weights", "num_bits"): self.weights.num_bits}
        for index, override in enumerate(self.overrides):
            if override.weights and "num_bits" in override.weights.model_fields_set:
                paths["overrides", index, "weights", "num_bits"] = override.weights.num_bits
        return {path: bits for path, bits in paths.items() if bits < MAX_BITS}
