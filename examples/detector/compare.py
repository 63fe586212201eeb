"""What int8 costs a detector, and what sensitivity analysis wins back: `python examples/detector/compare.py`.

Quantizes the detector after training, with weights of 8 and of 4 bits, and measures COCO's mAP on the test scenes. Beside the presets
`naive` and `selective` stands `hybrid`: `selective` with those layers at higher precision that `tfqat.sensitivity` finds on the validation
scenes, so that the mAP falls by a point at most. Nobody names them. Prints the tables and writes them as JSON.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tfqat
from tfqat.files import write_json
from tfqat.recipe.references import load_reference

FOLDER = Path(__file__).resolve().parent
calibration = load_reference(f"{FOLDER / 'data.py'}:calibration", base=FOLDER)
validation = load_reference(f"{FOLDER / 'data.py'}:validation", base=FOLDER)
scenes = load_reference(f"{FOLDER / 'data.py'}:scenes", base=FOLDER)
arrays = load_reference(f"{FOLDER / 'data.py'}:arrays", base=FOLDER)
average_precisions = load_reference(f"{FOLDER / 'metric.py'}:average_precisions", base=FOLDER)
mean_average_precision = load_reference(f"{FOLDER / 'metric.py'}:mean_average_precision", base=FOLDER)

BITS = (8, 4)  # of the weights; activations have 8
MAX_DROP = 0.01  # of mAP, on the validation scenes
BATCHES = 16  # of 32 validation scenes
PACKAGES = ("tfqat", "tensorflow", "tf-keras", "pycocotools")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("detector.json"), help="the JSON file to write")
    parser.add_argument("--max-drop", type=float, default=MAX_DROP, help="how much mAP the hybrid placement may lose")
    arguments = parser.parse_args()
    network = tfqat.load_model(FOLDER / "float.keras")
    rows, analyses = [_say(measured("float", network))], {}
    for bits in BITS:
        found, more = compare(network, bits, arguments.max_drop)
        rows, analyses[bits] = [*rows, *more], found.to_dict()
        _say_units(found)
    write_json(arguments.out, {"versions": {name: version(name) for name in PACKAGES}, "rows": rows, "sensitivity": analyses})
    print(f"written to {arguments.out}")


def compare(network: Any, bits: int, max_drop: float) -> tuple[tfqat.Sensitivity, list[Row]]:
    """What sensitivity finds at a width of the weights, and a row for each placement."""
    models = {preset: quantized(network, {"preset": preset, "weights": {"num_bits": bits}}) for preset in ("naive", "selective")}
    found = tfqat.sensitivity(
        models["selective"], validation(), metric=mean_average_precision, method="leave_one_in", max_drop=max_drop, batches=BATCHES
    )
    models["hybrid"] = quantized(network, found.placement)
    return found, [_say(measured(f"{name}, {bits}-bit weights", model)) for name, model in models.items()]


def quantized(network: Any, quantization: Any) -> Any:
    """The network, quantized after training by a preset or a Placement, and calibrated."""
    qmodel = tfqat.quantize_model(network, quantization)
    tfqat.calibrate(qmodel, calibration(), batches=8)
    return qmodel


def measured(name: str, network: Any) -> Row:
    """The average precisions on the test scenes."""
    images, labels = arrays(scenes("test"))
    return {"model": name, **average_precisions(network.predict(images, batch_size=100, verbose=0), labels)}


def _say(row: Row) -> Row:
    figures = "  ".join(f"{name} {100 * value:5.2f}" for name, value in row.items() if name != "model")
    print(f"{row['model']:24}  {figures}", flush=True)
    return row


def _say_units(found: tfqat.Sensitivity) -> None:
    print(f"validation scenes: float mAP {100 * found.float_value:.2f}, selective {100 * found.quantized_value:.2f}; one layer quantized:")
    for unit in found.units:
        print(f"  {', '.join(unit.layers):32}  {100 * unit.value:5.2f}  loses {100 * unit.score:5.2f} points")
    print(f"what hybrid asks for:\n{found.recipe or 'nothing more'}", flush=True)


if __name__ == "__main__":
    main()
