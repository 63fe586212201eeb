"""The networks that all tools get, and their data: written once to a folder that every process reads.

A folder holds `model.keras` (tf_keras), `model.json` and `weights.npz` (for other Keras), and `float.onnx`, its BatchNorms folded.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras
from tf_keras import layers

import tfqat
from benchmarks.scoreboard.environments import CACHE
from tfqat.export.onnx import export_float_onnx
from tfqat.recipe.references import load_reference

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FASHION_MNIST, EFFICIENTNET = EXAMPLES / "fashion_mnist", EXAMPLES / "efficientnet_lite0"
FLOAT_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class Network:
    """A float model and its data.

    Attributes:
        build: the trained model.
        data: (training images, their labels, test images, their labels); labels are None where there are none.
        batch_size: of calibration.
        batches: how many batches calibrate.
    """

    title: str
    build: Callable[[], Any]
    data: Callable[[], tuple[Any, Any, Any, Any]]
    batch_size: int
    batches: int

    def written(self, folder: Path) -> Path:
        """The folder with the model's files; written at the first call."""
        if not (folder / "float.onnx").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            model = self.build()
            model.save(folder / "model.keras")
            (folder / "model.json").write_text(model.to_json(), encoding="utf-8")
            np.savez(folder / "weights.npz", *model.get_weights())
            export_float_onnx(tfqat.load_model(model), folder / "float.onnx")
        return folder

    def calibration(self, folder: Path, seed: int) -> Path:
        """A file of batches (batches, batch size, ...): a draw from the training images, the same for all tools."""
        path = folder.with_name(f"{folder.name}_calibration_{seed}.npy")
        if not path.is_file():
            images = self.data()[0]
            count = self.batches * self.batch_size
            drawn = np.arange(len(images))[:count] if seed == 0 else np.random.default_rng(seed).permutation(len(images))[:count]
            np.save(path, images[np.sort(drawn)].reshape(self.batches, self.batch_size, *images.shape[1:]))
        return path

    def training(self, folder: Path, seed: int, count: int) -> tuple[Path, Path]:
        """Files of images and labels in the order of the seed."""
        paths = tuple(folder.with_name(f"{folder.name}_{name}_{seed}_{count}.npy") for name in ("images", "labels"))
        if not paths[1].is_file():
            order = np.random.default_rng(1000 + seed).permutation(len(self.data()[0]))[:count]
            for path, array in zip(paths, self.data()[:2], strict=True):
                np.save(path, array[order])
        return paths[0], paths[1]

    def test(self, folder: Path) -> tuple[Path, Any]:
        """A file of test images, and their labels."""
        path = folder.with_name(f"{folder.name}_test.npy")
        if not path.is_file():
            np.save(path, self.data()[2])
        return path, self.data()[3]


@cache
def fashion_mnist_data() -> tuple[Any, Any, Any, Any]:
    """The sample of the repository: 12,000 training images and the 10,000 test images, the same on every machine."""
    found: list[Any] = []
    for name in ("bundled_calibration", "bundled_validation"):
        batches = load_reference(f"data.py:{name}", base=FASHION_MNIST)().as_numpy_iterator()
        found += [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return found[0], found[1], found[2], found[3]


def fashion_mnist_model() -> Any:
    """The trained network of the example."""
    return tf_keras.models.load_model(FASHION_MNIST / "float.keras", compile=False)


def efficientnet_model() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights."""
    return load_reference("model.py:build", base=EFFICIENTNET)()


@cache
def efficientnet_data() -> tuple[Any, Any, Any, Any]:
    """Crops of photographs, without labels."""
    images = load_reference("data.py:images", base=EFFICIENTNET)
    return images("calibration"), None, images("test"), None


def residual_model() -> Any:
    """The residual network, trained once; the weights are kept beside the environments, by the hash of what made them."""
    source = load_reference("data.py:source", base=FASHION_MNIST)()[0]
    text = "".join(inspect.getsource(one) for one in (build_residual, train_residual, _residual_block, _conv_bn))
    path = CACHE / f"residual-{hashlib.sha256(f'{text} {source} {FLOAT_EPOCHS}'.encode()).hexdigest()[:10]}.keras"
    if not path.is_file():
        print(f"training the residual network on Fashion-MNIST from the {source}", file=sys.stderr, flush=True)
        path.parent.mkdir(exist_ok=True)
        trained = build_residual()
        trained.set_weights(train_residual().get_weights())
        trained.save(path)
    return tf_keras.models.load_model(path, compile=False)


def train_residual() -> Any:
    """SGD with a cosine schedule on the first source of Fashion-MNIST that this machine has (60,000 images, or the sample's 12,000)."""
    tf_keras.utils.set_random_seed(1)
    model = build_residual()
    train, validation = (load_reference(f"data.py:{name}", base=FASHION_MNIST)() for name in ("train", "validation"))
    steps = FLOAT_EPOCHS * len(train)
    rate = tf_keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 20, warmup_target=0.1, warmup_steps=steps // 20)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-4), loss, metrics=["accuracy"])
    model.fit(train, validation_data=validation, epochs=FLOAT_EPOCHS, verbose=2)
    return model


def build_residual() -> Any:
    """Conv-BN-ReLU and residual Adds, as in ResNet (He et al. 2016): three stages of two blocks, 259,562 parameters."""
    image = tf_keras.Input((28, 28, 1), name="image")
    x = _conv_bn(image, 32, 3, 2, "stem")
    for stage, channels in enumerate((32, 48, 64), start=1):
        for block in (1, 2):
            x = _residual_block(x, channels, 2 if stage > 1 and block == 1 else 1, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(10, name="logits")(x), name="residual")


def _residual_block(x: Any, channels: int, stride: int, name: str) -> Any:
    y = _conv_bn(x, channels, 3, stride, f"{name}_first")
    y = _conv_bn(y, channels, 3, 1, f"{name}_second", activation=False)
    if x.shape != y.shape:
        x = _conv_bn(x, channels, 1, stride, f"{name}_shortcut", activation=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _conv_bn(x: Any, channels: int, size: int, stride: int, name: str, activation: bool = True) -> Any:
    x = layers.Conv2D(channels, size, stride, "same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


NETWORKS: Mapping[str, Network] = {
    "fashion_mnist": Network(
        title="Fashion-MNIST, inverted residuals", build=fashion_mnist_model, data=fashion_mnist_data, batch_size=128, batches=16
    ),
    "residual": Network(title="Fashion-MNIST, residual", build=residual_model, data=fashion_mnist_data, batch_size=128, batches=16),
    "efficientnet": Network(title="EfficientNet-Lite0", build=efficientnet_model, data=efficientnet_data, batch_size=16, batches=4),
}
