"""The float types of layers: models of mixed precision are taken in float32, the type of their variables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tf_keras

MIXED = ("mixed_float16", "mixed_bfloat16")
"""Policies of either Keras that compute in 16 bits on variables of float32."""


def is_mixed(layer: Any) -> bool:
    """Whether a layer has such a policy."""
    policy = getattr(layer, "dtype_policy", None)
    return getattr(policy, "name", None) in MIXED


def without_mixed(config: Any) -> Any:
    """A layer's configuration with every mixed `dtype` in it, nested ones too, replaced by float32."""
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" and _names_mixed(value) else without_mixed(value) for key, value in config.items()}
    if isinstance(config, tuple):
        return tuple(without_mixed(value) for value in config)
    return [without_mixed(value) for value in config] if isinstance(config, list) else config


def _names_mixed(value: Any) -> bool:
    if isinstance(value, dict):
        value = (value.get("config") or {}).get("name")
    return getattr(value, "name", value) in MIXED


@contextmanager
def float32_policy() -> Iterator[None]:
    """Layers that are made within it have float32, whatever the user's global policy is."""
    before = tf_keras.mixed_precision.global_policy()
    if before.name == "float32":
        yield
        return
    tf_keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
