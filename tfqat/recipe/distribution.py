"""The `distribution` block: the devices and hosts that a run works on together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tfqat.recipe.blocks import Block


class DistributionConfig(Block):
    """The `distribution` block."""

    strategy: Literal["mirrored", "multi_worker"] = Field(
        description="mirrored: all GPUs of this machine; multi_worker: the processes that TF_CONFIG or Slurm names."
    )
    synchronized_batchnorm: bool = Field(
        default=True,
        description="Training BatchNorm takes its statistics over the whole batch, as one device does; false: each device over its part.",
    )
