"""The files that models lie in, looked through before Keras reads them: sound, of a size that is plausible, without links to other files.

A zip archive has a checksum for each member, so that a damaged one is told here. HDF5 can have weights "stored" in any other file (links,
external storage, virtual data sets; CVE-2026-1669 of Keras), and both formats can declare more zeros than there is memory.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tfqat.errors import ModelError
from tfqat.models.trust import check_config, check_operation, parsed

_RATIO, _ALWAYS = 20, 64 << 20
"""Contents may be 20 times as large as their file, as Keras does not compress, and 64 MB in any case."""

Check = Callable[[Any], None]


def check_keras_archive(path: Path, is_known: Callable[[str], bool] | None) -> None:
    """Refuse a `.keras` file that is damaged, or that a program to save models cannot have written.

    Args:
        path: the file.
        is_known: see `check_config`; None trusts what the configuration names.

    Raises:
        ModelError: with what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            for entry in archive.infolist():
                data = archive.read(entry)  # compares the checksum
                if entry.filename.endswith((".h5", ".hdf5")):
                    check_hdf5(io.BytesIO(data), path, size=entry.compress_size)
                elif entry.filename == "config.json" and is_known is not None:
                    check_config(parsed(data, str(path)), is_known, str(path))
    except ModelError:
        raise
    except Exception as error:  # zipfile raises errors of a dozen types, zlib's and struct's among them
        raise ModelError(f"model file {path} is damaged: {_text(error)}; save or copy it again") from error


def check_hdf5(source: Path | io.BytesIO, path: Path, *, size: int | None = None, is_known: Callable[[str], bool] | None = None) -> None:
    """Refuse an HDF5 file that is damaged, whose data lie in other files, or declare far more than it holds.

    Args:
        source: the file, or its bytes.
        path: for messages.
        size: bytes on disk; None: those of the file.
        is_known: see `check_config`, which then sees the configuration of a model; None: not looked at.

    Raises:
        ModelError: with what is wrong.
    """
    import h5py

    try:
        with h5py.File(source) as file:
            declared = 0
            for name, data in _datasets(file, path):
                declared += data.size * data.dtype.itemsize
                if data.external or data.is_virtual:
                    raise ModelError(_elsewhere(path, f"the weights {name}"))
            _check_size(declared, path.stat().st_size if size is None else size, path)
            if is_known is not None and "model_config" in file.attrs:
                check_config(parsed(file.attrs["model_config"], str(path)), is_known, str(path))
    except ModelError:
        raise
    except Exception as error:  # h5py's errors have the types of whatever HDF5's number maps to
        raise ModelError(f"model file {path} is damaged: {_text(error)}; save or copy it again") from error


def check_saved_model(folder: Path, is_known: Callable[[str], bool]) -> None:
    """Refuse a SavedModel whose graph reads or writes files or runs Python, or whose layers name what a model needs not name.

    Raises:
        ModelError: with what is wrong.
    """
    from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    for path in folder.rglob("*"):
        if path.is_symlink() and folder.resolve() not in path.resolve().parents:
            raise ModelError(_elsewhere(folder, str(path.relative_to(folder))))
    try:
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        metadata = saved_metadata_pb2.SavedMetadata.FromString((folder / "keras_metadata.pb").read_bytes())
        if (fingerprint := folder / "fingerprint.pb").exists():  # TensorFlow prints a traceback for a damaged one, and goes on
            fingerprint_pb2.FingerprintDef.FromString(fingerprint.read_bytes())
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ModelError(f"{folder} is damaged: {_text(error)}; save or copy it again") from error
    for operation in {node.op for graph in saved.meta_graphs for node in _nodes(graph.graph_def)}:
        check_operation(operation, str(folder))
    for node in metadata.nodes:
        if node.metadata:
            check_config(parsed(node.metadata, str(folder)), is_known, str(folder))


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    names: set[str] = set()
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(entry.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename or is_link:
            what = "is a link" if is_link else "would be unpacked outside"
            raise ModelError(f"model file {path} is refused: its member {entry.filename!r} {what}; save it again")
        if entry.flag_bits & 1:
            raise ModelError(f"model file {path} is encrypted, or damaged; save it again without a password")
        if entry.filename in names:
            raise ModelError(f"model file {path} is damaged: it has two members {entry.filename!r}; save it again")
        names.add(entry.filename)
    _check_size(sum(entry.file_size for entry in archive.infolist()), path.stat().st_size, path)


def _check_size(declared: int, stored: int, path: Path) -> None:
    if declared > max(_ALWAYS, _RATIO * stored):
        raise ModelError(
            f"model file {path} is refused: its {stored:,} bytes would become {declared:,}, more than {_RATIO} times as much; Keras does "
            "not compress: save the model again"
        )


def _datasets(group: Any, path: Path, seen: frozenset[Any] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every data set of an HDF5 file, with its name; soft links lead to one of them, or nowhere."""
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ModelError(_elsewhere(path, f"{group.name}/{name}"))
        if not isinstance(link, h5py.HardLink):
            continue
        found = group[name]
        if isinstance(found, h5py.Dataset):
            yield found.name, found
        elif isinstance(found, h5py.Group):
            address = h5py.h5o.get_info(found.id).addr
            if address not in seen:  # a group can hold itself
                yield from _datasets(found, path, seen | {address})


def _elsewhere(path: Path, what: str) -> str:
    return f"model file {path} is refused: {what} lies in another file; a model that is passed on holds its weights: save it again"


def _text(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
