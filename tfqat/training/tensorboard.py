"""What TensorBoard shows of the quantizers: the range of each, and how its codes are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.datasets import inputs_of
from tfqat.quantize import state


class QuantizationLog(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Writes after each epoch, for every quantizer, its amax (one per channel: a histogram) and a histogram of codes.

    Codes of weights are always written; those of activations where there is a batch to compute them with.

    Args:
        folder: the log folder of TensorBoard; the summaries go to `quantization` in it.
        batch: inputs of the model, as `model(batch)` takes them, or (inputs, labels, ...); None leaves the activations out.
    """

    def __init__(self, folder: str | Path, batch: Any = None) -> None:
        super().__init__()
        self._folder, self._batch = Path(folder), batch
        self._writer: Any = None
        self._inputs: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the summaries."""
        self._writer = tf.summary.create_file_writer(str(self._folder / "quantization"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write."""
        values = self._activations() if self._batch is not None else {}
        with self._writer.as_default(step=epoch):
            for name, handle in state.handles(self.model).items():
                if handle.amax.shape.rank:
                    tf.summary.histogram(f"amax/{name}", handle.amax)
                else:
                    tf.summary.scalar(f"amax/{name}", handle.amax)
                tensor = values.get(name) if handle.weight is None else handle.weight
                if tensor is not None:
                    tf.summary.histogram(f"codes/{name}", tf.cast(state.codes(handle, tensor), tf.float32), buckets=64)
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the summaries."""
        self._writer.close()

    def _activations(self) -> dict[str, Any]:
        if self._inputs is None:
            tensors = state.activation_inputs(self.model)
            self._inputs = (list(tensors), tf_keras.Model(self.model.inputs, list(tensors.values())))
        names, model = self._inputs
        return dict(zip(names, tf.nest.flatten(model(inputs_of(self._batch), training=False)), strict=True))
