"""Writes a model repository of Triton Inference Server: `DIR/<name>/config.pbtxt` and `DIR/<name>/<version>/model.onnx` or `model.plan`."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfqat import files
from tfqat.engines.build import PLAN_SUFFIXES
from tfqat.engines.graph import read_graph
from tfqat.engines.metadata import metadata_path, read_metadata
from tfqat.engines.options import DEFAULT_BATCH
from tfqat.engines.tensors import Tensor, graph_tensors
from tfqat.engines.triton_config import Kind, config_text, interface_text
from tfqat.errors import EngineError
from tfqat.form import Form

CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """What was written.

    Attributes:
        name, version: of the model.
        directory: of the model, in the repository.
        path: of the model file.
        max_batch_size: 0: without batching.
        config: the text of `config.pbtxt`.
        kept_config: whether that was there before, and was left as it was.
    """

    name: str
    version: int
    directory: Path
    path: Path
    max_batch_size: int
    config: str
    kept_config: bool


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model file and what the server must know of it."""

    path: Path
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    largest_batch: int
    kind: Kind
    beside: tuple[str, ...] = ()


def export_triton(
    model: Path | str,
    repository: Path | str,
    *,
    name: str | None = None,
    max_batch_size: int | None = None,
    kind: Kind | None = None,
    instances: int = 1,
    max_queue_delay_us: int = 0,
) -> TritonModel:
    """Put a model into a Triton model repository, as the next version if the model is there; nothing is overwritten.

    Args:
        model: an ONNX graph, or a plan of TensorRT that `tfqat compile` wrote, with its metadata beside it.
        repository: the folder that is given to the server; made if it is missing.
        name: of the model; default: the file's name.
        max_batch_size: the most examples that the server joins to a batch; default: the largest batch of a plan, else 32.
        kind: where instances run; default: `gpu` for a plan, `cpu` for a graph of the target onnxruntime, else `auto`.
        instances: of the model, on each GPU or on the CPU.
        max_queue_delay_us: microseconds that a request may wait for others.

    Raises:
        EngineError: the model cannot be read or served, a number is wrong, or the model in the repository takes or gives something else.
        RunDirectoryError: the repository cannot be written.
    """
    source = _source(Path(model))
    called = Path(model).name.split(".")[0] if name is None else name
    if not _NAME.fullmatch(called):
        raise EngineError(f"a model's name has letters, digits, and -, _ and . behind the first; got {called!r}")
    if instances < 1 or max_queue_delay_us < 0:
        raise EngineError(f"instances must be at least 1 and max_queue_delay_us at least 0; got {instances} and {max_queue_delay_us}")
    batch = _max_batch(source, max_batch_size)
    interface = interface_text(called, source.platform, batch, source.inputs, source.outputs)
    config = config_text(interface, batch, kind or source.kind, instances, max_queue_delay_us)
    directory = Path(repository) / called
    try:
        path, kept = _written(source, directory, interface, config)
    except OSError as error:
        raise files.unwritable(directory, error) from error
    return TritonModel(
        name=called,
        version=int(path.parent.name),
        directory=directory,
        path=path,
        max_batch_size=batch,
        config=config if kept is None else kept,
        kept_config=kept is not None,
    )


def _source(path: Path) -> _Source:
    if path.suffix == ".onnx":
        graph = read_graph(path)
        inputs, outputs = graph_tensors(graph.model)
        kind: Kind = "cpu" if Form.of(graph.metadata).target == "onnxruntime" else "auto"
        return _Source(
            path=path,
            platform="onnxruntime_onnx",
            inputs=inputs,
            outputs=outputs,
            largest_batch=DEFAULT_BATCH[2],
            kind=kind,
            beside=_external_files(graph.model),
        )
    if path.suffix not in PLAN_SUFFIXES:
        raise EngineError(f"{path} is neither an ONNX graph (.onnx) nor a plan ({', '.join(PLAN_SUFFIXES)})")
    if not path.is_file():
        raise EngineError(f"{path} is not a file; expected an engine, such as the model.plan that `tfqat compile` writes")
    metadata = read_metadata(path) or {}
    if metadata.get("backend") == "tensorrt_rtx":
        raise EngineError(
            f"{path} was built by TensorRT for RTX, whose engines Triton does not load: build it with --backend tensorrt on the server's "
            "kind of GPU, or give the ONNX graph"
        )
    if "inputs" not in metadata or "outputs" not in metadata:
        raise EngineError(
            f"{metadata_path(path)} is missing or does not list the inputs and outputs: compile the engine again with this version"
        )
    return _Source(
        path=path,
        platform="tensorrt_plan",
        inputs=_tensors(metadata["inputs"], metadata_path(path)),
        outputs=_tensors(metadata["outputs"], metadata_path(path)),
        largest_batch=min((shapes[2][0] for shapes in metadata.get("profile", {}).values()), default=DEFAULT_BATCH[2]),
        kind="gpu",
    )


def _tensors(found: Sequence[Mapping[str, Any]], path: Path) -> tuple[Tensor, ...]:
    try:
        return tuple(Tensor(name=one["name"], dtype=one["dtype"], shape=tuple(one["shape"])) for one in found)
    except (KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is damaged: an input or output lacks its name, type or shape ({error}); compile the engine again"
        ) from error


def _external_files(model: Any) -> tuple[str, ...]:
    """The names of the files that hold data of a graph."""
    return tuple(sorted({entry.value for one in model.graph.initializer for entry in one.external_data if entry.key == "location"}))


def _max_batch(source: _Source, given: int | None) -> int:
    free = all(one.shape and one.shape[0] is None for one in (*source.inputs, *source.outputs))
    if not free:
        if given:
            raise EngineError(
                f"{source.path} has no free batch axis in all inputs and outputs, so the server cannot batch; got max_batch_size {given}: "
                "export it without a fixed batch, or leave max_batch_size out"
            )
        return 0
    largest = source.largest_batch if source.platform == "tensorrt_plan" else None
    if given is not None and (given < 1 or (largest is not None and given > largest)):
        raise EngineError(
            f"max_batch_size must be {'at least 1' if largest is None else f'1 to {largest}, the largest batch of the plan'}; got {given}"
        )
    return given or source.largest_batch


def _kept_config(directory: Path, interface: str) -> str | None:
    """The configuration that is there, which may differ in all but the interface; None if there is none."""
    path = directory / CONFIG
    try:
        found = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    there = set(_parts(found))
    for part in re.split(r"\n(?=\w)", interface.strip()):
        if _plain(part) not in there:
            raise EngineError(
                f"{path} describes another model, and is not overwritten: it lacks {' '.join(part.split())!r}. Give another name, or "
                "another repository"
            )
    return found


def _parts(text: str) -> list[str]:
    """The top-level fields, each without white space."""
    bare = re.sub(r"#.*", "", text)
    return [_plain(part) for part in re.split(r"\n(?=\w)", bare.strip())]


def _plain(text: str) -> str:
    """Text format without comments and white space."""
    return "".join(re.sub(r"#.*", "", text).split())


def _written(source: _Source, directory: Path, interface: str, config: str) -> tuple[Path, str | None]:
    """The model file in the next version's folder, which appears whole, and the configuration that was there before, which stays.

    Nothing else is left of a failure. Of two processes that write the first version at once, one writes the configuration, and the other
    finds it.
    """
    _kept_config(directory, interface)  # another model is refused before anything is copied
    with files.folder_for(directory), files.staging(directory) as staging:
        folder = staging / "version"
        folder.mkdir()
        name = "model.onnx" if source.platform == "onnxruntime_onnx" else "model.plan"
        shutil.copyfile(source.path, folder / name)
        for beside in source.beside:
            (folder / beside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path.parent / beside, folder / beside)
        with files.one_at_a_time(directory):
            kept = _kept_config(directory, interface)
            if kept is None:
                files.write_text(directory / CONFIG, config)
            try:
                return _placed(folder, directory) / name, kept
            except OSError:
                if kept is None:
                    (directory / CONFIG).unlink(missing_ok=True)
                raise


def _placed(folder: Path, directory: Path) -> Path:
    """The folder under the next free number; if another process takes that first, under the one after it."""
    while True:
        taken = [int(one.name) for one in directory.iterdir() if one.name.isdecimal()]
        try:
            return folder.rename(directory / str(max(taken, default=0) + 1))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
