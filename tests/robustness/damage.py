"""Files that are cut short or have a few bits flipped, and the commands that read each of them."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to the bytes of a file."""

    how: str
    at: int

    def __str__(self) -> str:
        return f"{self.how} at {self.at:,}"

    def done(self, data: bytes) -> bytes:
        """The damaged bytes."""
        if self.how == "cut":
            return data[: self.at]
        changed = bytearray(data)
        length = 1 if self.how == "bit" else 16
        for index in range(self.at, min(self.at + length, len(changed))):
            changed[index] ^= 1 << (self.at % 8) if self.how == "bit" else 0xFF
        return bytes(changed)


def damages(data: bytes, count: int, seed: str) -> Iterator[Damage]:
    """`count` damages: cuts, flips of a bit and of 16 bytes in turn; half of them near the ends, where formats keep their tables."""
    chance = random.Random(seed)
    for number in range(count):
        how = ("cut", "bit", "bytes")[number % 3]
        edge = chance.randrange(min(len(data), 400) or 1)
        at = chance.choice([edge, len(data) - 1 - edge, chance.randrange(len(data) or 1), chance.randrange(len(data) or 1)])
        yield Damage(how=how, at=max(0, at))


def is_in_a_member(path: Path, at: int) -> bool:
    """Whether a byte of a zip file is of the data of a member, which its checksum covers."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            start = entry.header_offset + 30 + name + extra
            if start <= at < start + entry.compress_size:
                return True
    return False


Command = Callable[[Path], tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A file of a kind.

    Attributes:
        kind: as it is counted.
        file: within the folder that is copied for it.
        commands: what reads it, each given that folder.
        codes: exit codes that are right: 1 where a command says "not proven" or "findings".
        keeps: whether the command changes nothing in that folder.
    """

    kind: str
    file: str
    commands: tuple[Command, ...]
    codes: tuple[int, ...] = (0, 2)
    keeps: bool = True


def _tfqat(*arguments: str) -> Command:
    """Arguments in which `FOLDER` is the folder and `OUT` another one for results."""
    return lambda folder: tuple(one.replace("FOLDER", str(folder)).replace("OUT", str(folder.parent / "out")) for one in arguments)


PLAN, INIT = _tfqat("plan", "FOLDER/FILE"), _tfqat("init", "FOLDER/FILE", "--out", "OUT/new")
VERIFY = _tfqat("verify", "FOLDER", "--examples", "20")
EXPORT = _tfqat("export", "FOLDER", "-o", "OUT/new.onnx")
REPORT = _tfqat("report", "FOLDER")
RECALIBRATE = _tfqat("calibrate", "--from", "FOLDER", "--method", "max", "--out", "OUT/runs")
RESUME = _tfqat("run", "FOLDER/tiny.yaml", "--set", "training.epochs=3", "--set", "qat.max_epochs_divisor=1", "--resume", "FOLDER/run")
GRAPH = (
    _tfqat("lint", "FOLDER/model.onnx"),
    _tfqat("compile", "FOLDER/model.onnx", "-o", "OUT/new.plan", "--target", "SM86"),
    _tfqat("bench", "FOLDER/model.onnx", "--rounds", "2", "--batch", "1"),
    _tfqat("infer", "FOLDER/model.onnx", "-i", "FOLDER/image.npy"),
    _tfqat("verify", "FOLDER/float.onnx", "--against", "FOLDER/model.onnx", "--examples", "4"),
    _tfqat("export", "FOLDER/model.onnx", "--triton", "OUT/repository"),
)
INFER = _tfqat("infer", "FOLDER/model.onnx", "-i", "FOLDER/FILE")


def at(command: Command, file: str) -> Command:
    """A command with the name of the file put in."""
    return lambda folder: tuple(str(one).replace("FILE", file) for one in command(folder))


RUN_FILES = {
    "manifest.json": (VERIFY, EXPORT, RECALIBRATE),
    "recipe.yaml": (VERIFY, EXPORT, RECALIBRATE, REPORT),
    "metrics.json": (VERIFY, EXPORT, REPORT),
    "placement.json": (RECALIBRATE, REPORT),
    "calibration.json": (RECALIBRATE, REPORT),
    "history.csv": (REPORT,),
    "parity.json": (REPORT,),
    "engine.json": (REPORT,),
    "qat.keras": (VERIFY, EXPORT),
    "quantized.keras": (_tfqat("export", "FOLDER/quantized.keras", "-o", "OUT/new.onnx"),),
    "model.sm86.plan.json": (_tfqat("infer", "FOLDER/model.sm86.plan", "-i", "FOLDER/image.npy"),),
    "model.sm86.plan": (_tfqat("infer", "FOLDER/model.sm86.plan", "-i", "FOLDER/image.npy"),),
}
CUT_OFF = ("state.json", "checkpoint.npz", "manifest.json", "quantized.keras", "placement.json")
MODELS = ("float.keras", "three.keras", "float.h5", "three.h5")
SAVED_MODEL = (
    "saved_model.pb",
    "keras_metadata.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
    "fingerprint.pb",
)
DATA = ("image.npy", "image.npz", "image.png", "image.jpg")
INFER_UNIT = _tfqat("infer", "FOLDER/model.onnx", "-i", "FOLDER/FILE", "--unit")
INIT_FROM = _tfqat("init", "--from", "FOLDER/foreign.yaml", "--out", "OUT/new")
