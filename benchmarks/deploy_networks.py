"""The seven networks of `deploy.py`, whose weights are random but for that of Fashion-MNIST, and their images: whole pixels, normalized."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from tfqat.form import Pixels
from tfqat.recipe.references import load_reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "architectures"))
import zoo  # noqa: E402

FAMILIES, FASHION_MNIST = ROOT / "examples" / "families", ROOT / "examples" / "fashion_mnist"
UNIT, SYMMETRIC, PLAIN = Pixels(std=(255.0,)), Pixels(mean=(127.5,), std=(127.5,)), Pixels()
SEEDS = {"calibration": 1, "validation": 2}


@dataclass(frozen=True, kw_only=True)
class Network:
    """How to build a network, and what it is proven on.

    Attributes:
        build: the model; of a given size in pixels and a number of classes if it is an application.
        data: the function that returns images, without the `_validation` or `_calibration` of its name; None: noise of two scales.
        pixels: how its images were normalized.
        free: whether height and width can be left free.
        examples: how many images parity is judged on. In a network of few layers a few ties are many of all codes, unless it sees more.
    """

    name: str
    build: Callable[..., Any]
    pixels: Pixels
    data: str | None = None
    free: bool = True
    examples: int = 48

    @property
    def is_application(self) -> bool:
        """Whether it can be built in any size."""
        return self.data is None

    def calibration(self, model: Any) -> np.ndarray:
        """Images to calibrate on: those of the data for it, or 16 of noise."""
        return self._images(model, 256, "calibration") if self.data else self._images(model, 16, "calibration")

    def validation(self, model: Any) -> np.ndarray:
        """Images to prove the network on."""
        return self._images(model, self.examples, "validation")

    def _images(self, model: Any, count: int, split: str) -> np.ndarray:
        """(count, height, width, channels), as the model takes them."""
        if self.data is None:
            found = zoo.batch(model, count, SEEDS[split], pixels=True)
        else:
            batches = load_reference(f"{self.data}_{split}", base=ROOT)().as_numpy_iterator()
            found = np.concatenate([batch[0] for batch, _ in zip(batches, range(1 + count // 32), strict=False)])[:count] * 255.0
        return self.pixels.normalized(np.rint(found).astype(np.uint8))


def freed(model: Any) -> Any:
    """The same model with free height and width."""
    image = tf_keras.Input((None, None, model.inputs[0].shape[-1]), name=model.input_names[0])
    copy = tf_keras.models.clone_model(model, image)
    copy.set_weights(model.get_weights())
    return copy


def _application(name: str, pixels: Pixels) -> Network:
    def build(size: int = 64, classes: int = 10) -> Any:
        tf_keras.utils.set_random_seed(0)
        model = getattr(tf_keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=classes, classifier_activation=None)
        noise = np.rint(zoo.batch(model, 8, 0, pixels=True)).astype(np.uint8)
        zoo.randomize(model, 0, pixels.normalized(noise))
        return model

    return Network(name=name, build=build, pixels=pixels, examples=16)


def _family(name: str, data: str, **more: Any) -> Network:
    build = load_reference(f"{FAMILIES / 'models.py'}:{name}", base=FAMILIES)
    return Network(name=name, build=build, pixels=UNIT, data=f"{FAMILIES / 'data.py'}:{data}", **more)


def _fashion_mnist() -> Any:
    return tf_keras.models.load_model(FASHION_MNIST / "float.keras")


_ALL = (
    Network(name="fashion_mnist", build=_fashion_mnist, pixels=UNIT, data=f"{FASHION_MNIST / 'data.py'}:bundled"),
    _application("ResNet50", SYMMETRIC),
    _application("MobileNetV2", SYMMETRIC),
    _application("EfficientNetB0", PLAIN),
    _family("unet", "masks", examples=96),
    _family("detector", "boxes", free=False),
    _family("vit", "patches", free=False),
)
NETWORKS = {network.name: network for network in _ALL}
