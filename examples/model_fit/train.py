"""Quantization-aware training inside your own `model.fit`: `python examples/model_fit/train.py`, about two minutes on two cores."""

from pathlib import Path

import tf_keras

import tfqat
from tfqat.recipe.references import load_reference

EXAMPLE = Path(__file__).resolve().parent.parent / "fashion_mnist"
train, validation, calibration = (
    load_reference(f"data.py:{name}", base=EXAMPLE)() for name in ("bundled_train", "bundled_validation", "bundled_calibration")
)
loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# What you have: a trained model. What is new: the next lines.
model = tf_keras.models.load_model(EXAMPLE / "float.keras")
qmodel = tfqat.quantize_model(model)
tfqat.calibrate(qmodel, calibration, batches=16)
recipe = {"epochs": 20, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 1e-4}  # how the model was trained
plan = tfqat.qat_plan(recipe, examples=sum(len(labels) for _, labels in train))
tfqat.qat_compile(qmodel, plan, loss, ["accuracy"])
batches = train.rebatch(plan.batch_size)
history = qmodel.fit(batches, validation_data=validation, epochs=plan.epochs, callbacks=tfqat.qat_callbacks(plan), verbose=2)
print("fine-tuned:", qmodel.evaluate(validation, verbose=0)[1])

tfqat.export_onnx(qmodel, "model.onnx")
report = tfqat.verify(qmodel, "model.onnx", validation, examples=256)
print("the graph computes what was trained:", report.passed)
mine = tfqat.strip(qmodel, like=model)  # the fine-tuned weights in your own model, structure and names as they were
