"""The `qat` block: how the fine-tuning schedule follows from the float recipe, and how quantizers take part in training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tfqat.recipe.blocks import Block, Items, Text


class OptimizerConfig(Block):
    """The optimizer that fine-tunes, whatever trained the float model."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field(
        default="sgd", description="Keras optimizer; others than sgd are taken with a warning."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum, for sgd and rmsprop.")
    nesterov: bool = Field(default=False, description="Nesterov momentum, for sgd only.")


class AmaxConfig(Block):
    """What happens to the calibrated ranges in training."""

    weights: Literal["frozen", "dynamic", "learned"] = Field(
        default="frozen", description="frozen: as calibrated; dynamic: the largest magnitude at each step; learned: trained (LSQ)."
    )
    activations: Literal["frozen", "learned", "pact"] = Field(
        default="frozen", description="frozen: as calibrated; learned: trained (LSQ); pact: trained (PACT) behind a ReLU, elsewhere LSQ."
    )


class DistillConfig(Block):
    """Training towards the outputs of the float model, beside the labels: loss = (1 - weight) * loss + weight * distillation."""

    temperature: float = Field(default=2.0, gt=0, description="Both models' outputs are divided by it before the softmax (Hinton 2015).")
    weight: float = Field(default=0.5, gt=0, le=1, description="Share of the distillation in the loss; 1: no labels.")
    features: Items[Text] = Field(default=(), description="Layers whose outputs are also compared with the float model's.")


def _batchnorm(value: Any) -> Any:
    if value in ("train", "freeze"):
        return value
    share = value.get("freeze_after") if isinstance(value, dict) and set(value) == {"freeze_after"} else None
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1:
        return {"freeze_after": float(share)}
    raise ValueError("train, freeze, or {freeze_after: 0.5}, a share of the steps from 0 to 1")


class QatConfig(Block):
    """The `qat` block: how the fine-tuning schedule follows from the `training` block."""

    batch_size_divisor: int = Field(default=2, ge=1, description="QAT batch size = max(1, batch_size // this).")
    max_epochs_divisor: int = Field(default=10, ge=1, description="QAT epochs = max(1, epochs // this).")
    lr_decay_factor: float = Field(default=0.01, gt=0, le=1, description="QAT peak learning rate and weight decay = float ones x this.")
    warmup_epochs_divisor: int = Field(default=10, ge=1, description="Warm-up = QAT epochs / this, in epochs; at most 10% of all steps.")
    cosine_final_lr_ratio: float = Field(default=0.01, ge=0, le=1, description="Last learning rate / peak learning rate.")
    disable_phase_callbacks: bool = Field(default=True, description="Switch off EMA, model averaging and phase callbacks.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="The optimizer that fine-tunes.")
    weight_decay: float | None = Field(default=None, ge=0, description="Weight decay; null: the float one x lr_decay_factor.")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        default="float32", description="What layers compute in while training; fake quantization, variables and outputs: float32."
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Gradients are scaled down to this norm, all together; null: not.")
    ema: bool = Field(default=False, description="Average the weights over steps; needs disable_phase_callbacks: false.")
    amax: AmaxConfig = Field(default=AmaxConfig(), description="What happens to the calibrated ranges.")
    gradient: Literal["clipped", "pass_through"] = Field(
        default="clipped", description="Gradient of a value that the range clips: none, or as if it were not. Trained ranges: none."
    )
    batchnorm: Annotated[str | dict[str, float], BeforeValidator(_batchnorm)] = Field(
        default="train", description="BatchNorm: train, freeze, or {freeze_after: 0.5}, a share of the steps."
    )
    distill: DistillConfig | None = Field(default=None, description="Train towards the outputs of the float model too; null: not.")
    control: bool = Field(
        default=False, description="Train the float model on the same schedule beside it, to tell training longer from training aware."
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="Save what a killed run continues from every so many steps too; null: after each epoch only."
    )
