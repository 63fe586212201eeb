"""The process that builds one engine: it reads a job (JSON), calls TensorRT, and leaves a result (JSON), a log and the plan.

It runs apart from tfqat because TensorRT can end the whole process on a graph it does not expect. Both packages, TensorRT for RTX
and the full TensorRT, have the API that is used here; the job names which one to import. The log has one JSON object for each
message, written at once, so that it tells what was being parsed if this process dies.

Job: `module`, `onnx_path`, `plan_path`, `log_path`, `result_path`, `compute_capability` (a name such as SM86, or null for the GPU
of this machine) and `batch` (smallest, optimal, largest).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tfqat.engines.layer_log import MARK

PARSING = "Parsing node:"
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")


def main(job_path: str) -> None:
    """Builds the engine of a job file and writes its result file."""
    job = json.loads(Path(job_path).read_text())
    with Path(job["log_path"]).open("w") as log:
        result = _build(job, importlib.import_module(job["module"]), log)
    Path(job["result_path"]).write_text(json.dumps(result))


def _build(job: dict[str, Any], trt: Any, log: TextIO) -> dict[str, Any]:
    started = time.perf_counter()
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["onnx_path"]):
        return {"version": trt.__version__, "built": False, "errors": [_error(parser.get_error(i)) for i in range(parser.num_errors)]}
    plan = builder.build_serialized_network(network, _config(job, trt, builder, network))
    if plan is None:
        return {"version": trt.__version__, "built": False, "errors": []}
    Path(job["plan_path"]).write_bytes(plan)
    return {"version": trt.__version__, "built": True, "errors": [], "seconds": time.perf_counter() - started}


def _strongly_typed(trt: Any) -> int:
    """The flag that makes the types in the ONNX file binding; where networks have no other kind it may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(job: dict[str, Any], trt: Any, builder: Any, network: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job["compute_capability"] is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, job["compute_capability"]), 0)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if len(tensor.shape) and tensor.shape[0] == -1]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            profile.set_shape(tensor.name, *[(size, *tuple(tensor.shape)[1:]) for size in job["batch"]])
        config.add_optimization_profile(profile)
    return config


def _error(error: Any) -> dict[str, str]:
    return {"node": error.node_name(), "op": error.node_operator(), "message": error.desc()}


def _logger(trt: Any, log: TextIO) -> Any:
    """A TensorRT logger that keeps errors, warnings, the node being parsed, and the list of kernels."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in SEVERITIES or message.startswith((PARSING, MARK)):
                log.write(json.dumps({"severity": severity.name, "message": message}) + "\n")
                log.flush()

    return Logger()


if __name__ == "__main__":
    main(sys.argv[1])
