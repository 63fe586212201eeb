"""What the configuration in a model file may name: layers, their parts and operations, and nothing that runs code or touches files.

tf_keras 2.21 imports whatever `module` the entry of a model names, and runs TensorFlow operations on constants while it loads:

    {"class_name": "Functional", "module": "any_module_that_is_found", "config": ...}
    {"class_name": "TFOpLambda", "config": {"function": "print"},
     "inbound_nodes": [[["_CONSTANT_VALUE", -1, "...", {"output_stream": "file:///home/me/.bashrc"}]]]}

Its safe mode refuses Lambda layers only. CVE-2025-1550 and CVE-2025-8747 are the like in Keras 3, which has closed them. So a
file is refused before Keras reads it, unless all it names is in the packages of Keras where layers and their parts are, or was given by
the user.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfqat.errors import ModelError

LAMBDAS = ("Lambda", "__lambda__")
_NOT_LOADED = ("compile_config", "training_config")
"""Of the model as a whole: optimizer, loss and metrics, often the user's own, which no one loads."""

_CLASSES = re.compile(
    r"(tf_)?keras(\.src)?(\.engine\.(sequential|functional|training|base_layer|input_layer|input_spec)|\.models(\.\w+)?|"
    r"\.(layers|initializers|regularizers|constraints|activations|losses|metrics|optimizers|ops|dtype_policies|mixed_precision|quantizers|random"
    r"|backend|saving|legacy)(\.\w+)*)?"
)
_FUNCTIONS = re.compile(r"(tf_)?keras(\.src)?\.(activations|initializers|regularizers|constraints|losses|metrics|ops)(\.\w+)*|builtins")
_CLASS_NAME, _FUNCTION_NAME = re.compile(r"_{0,2}[A-Z]\w*"), re.compile(r"[a-z_]\w*")
_SPECS = re.compile(r"tensorflow\.python\.\w+(\.\w+)*|(tf_)?keras(\.\w+)*")

_READS_FILES = {"TFSMLayer": "filepath", "StringLookup": "vocabulary", "IntegerLookup": "vocabulary", "TextVectorization": "vocabulary"}
_OPERATION_SPACES = (
    "", "math", "nn", "linalg", "image", "signal", "bitwise", "quantization", "__operators__", "sparse", "ragged", "random", "strings",
    "audio", "dtypes", "sets", "experimental.numpy", "keras.backend", "keras.activations",
)  # fmt: skip
_NO_OPERATIONS = frozenset({
    "load_library", "load_op_library", "load_file_system_library", "py_function", "py_func", "numpy_function", "print", "Print",
    "import_graph_def", "read_file", "write_file", "matching_files", "WholeFileReader", "TextLineReader", "TFRecordReader",
    "FixedLengthRecordReader", "IdentityReader", "tf_record_iterator",
})  # fmt: skip
GRAPH_OPERATIONS = re.compile(
    r"(Read|Write)File|MatchingFiles|(Eager)?PyFunc(Stateless)?|PrintV2|Print|\w*Reader(V2)?|Reader\w+|\w*RecordDataset(V2)?|TextLineDataset|"
    r"(Save|Load|Snapshot|Cache)\w*Dataset(V2)?|\w*SummaryWriter\w*|Write\w*Summary|DebugIdentity\w*|DebugNan\w*|LoadAndRemapMatrix|"
    r"GenerateVocabRemapping|SaveSlices|Save|RestoreSlice|Restore|InitializeTableFromTextFile(V2)?|CreateSummaryDbWriter"
)
"""Operations of TensorFlow that read or write files, or run Python; SaveV2 and RestoreV2 are in every SavedModel, as its own loader."""


def check_config(config: Any, is_known: Callable[[str], bool], file: str) -> None:
    """Refuse the configuration of a model that names other things than parts of Keras models.

    Args:
        config: the model, or a part of it, as JSON.
        is_known: whether a registered name is one of the classes that the user gave or has registered with Keras.
        file: for messages.

    Raises:
        ModelError: with what it names.
    """
    if isinstance(config, Mapping):
        config = {key: value for key, value in config.items() if key not in _NOT_LOADED}
    for part in _parts(config):
        name = part.get("class_name")
        if not isinstance(name, str):
            continue
        if name in LAMBDAS:
            raise ModelError(lambda_refused(file))
        settings = part.get("config")
        _check_name(part, name, settings, is_known, file)
        if isinstance(settings, Mapping):
            _check_settings(name, settings, file)
            if isinstance(settings.get("layer"), str) and settings["layer"].lstrip().startswith("{"):  # of a Keras3Layer
                check_config(parsed(settings["layer"], file), is_known, file)


def check_operation(operation: str, file: str) -> None:
    """Refuse an operation of a TensorFlow graph that reads or writes files, or runs Python.

    Raises:
        ModelError: it is one.
    """
    if GRAPH_OPERATIONS.fullmatch(operation):
        raise ModelError(_refused(file, f"the TensorFlow operation {operation}, which can read or write files or run code"))


def parsed(text: str | bytes, file: str) -> Any:
    """JSON of a model file; a ModelError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"model file {file} is damaged: its configuration is no JSON ({error}); save the model again") from error


def _parts(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a JSON value; a loop, as a file can nest deeper than Python's stack."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)


def _check_name(part: Mapping[str, Any], name: str, settings: Any, is_known: Callable[[str], bool], file: str) -> None:
    """The object that `module` and a name lead to, as Keras looks it up: first among what is registered."""
    module, is_function = part.get("module"), name == "function"
    found = settings if is_function else part.get("spec_name", name) if name == "__typespec__" else name
    registered = found if is_function else part.get("registered_name", name)
    if module is None or (isinstance(registered, str) and is_known(registered)):
        return
    allowed = _FUNCTIONS if is_function else _SPECS if name == "__typespec__" else _CLASSES
    spelled = _FUNCTION_NAME if is_function else _CLASS_NAME
    is_builtin = module == "builtins" and found in vars(builtins)
    if not (isinstance(found, str) and allowed.fullmatch(str(module)) and spelled.fullmatch(found)) or is_builtin:
        raise ModelError(_refused(file, f"{module}.{found}", own=not is_builtin))


def _check_settings(name: str, settings: Mapping[str, Any], file: str) -> None:
    """What a layer's settings say of files and operations."""
    key = _READS_FILES.get(name)
    if key and isinstance(settings.get(key), str):
        raise ModelError(_refused(file, f"{name}, whose {key} is another file, {settings[key]!r}"))
    operation = {"TFOpLambda": "function", "SlicingOpLambda": "function", "ClassMethod": "cls_symbol"}.get(name)
    if operation and not _is_arithmetic(str(settings.get(operation))):
        raise ModelError(_refused(file, f"the operation tf.{settings.get(operation)}"))
    if name == "TensorFlowOpLayer":
        for found in re.findall(r'"?op"?\s*:\s*"(\w+)"', json.dumps(settings.get("node_def")).replace("\\", "")):
            check_operation(found, file)


def _is_arithmetic(symbol: str) -> bool:
    space, _, name = re.sub(r"^compat\.v[12]\.", "", symbol).rpartition(".")
    return space in _OPERATION_SPACES and name not in _NO_OPERATIONS


def _refused(file: str, what: str, *, own: bool = False) -> str:
    advice = "only if you trust the file, load it with unsafe=True (--unsafe on the command line)"
    if own:
        advice = (
            "rebuild a subclassed model with the functional API; give the classes of custom layers as custom_objects "
            f"(`model.custom_objects` in a recipe), or, {advice}"
        )
    return f"model file {file} names {what}, which is no part of Keras and could do anything when the model is loaded or run: {advice}"


def lambda_refused(file: str) -> str:
    """What is said of a file with a Lambda layer."""
    return (
        f"model file {file} holds a Lambda layer, whose Python code is in the file and could do anything when it is loaded. Only if you "
        "trust the file: load it with unsafe=True (--unsafe on the command line)"
    )
