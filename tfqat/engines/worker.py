"""The process that builds one engine: it reads a job (JSON), calls TensorRT, and leaves a result (JSON), a log and the plan.

It runs apart from tfqat because TensorRT can end the whole process on a graph it does not expect. The job names the package to
import; `tensorrt_api` knows how they differ. The log has one JSON object for each message, written at once, so that it tells what was
being parsed if this process dies.

Job: `module`, `onnx_path`, `plan_path`, `log_path`, `result_path`, `compute_capability` (a name such as SM86, or null for the GPU
of this machine), `profile` (input -> smallest, optimal, largest shape), `fp16`, `timing_cache` (a file to read, or null) and
`timing_cache_out` (where its successor goes, or null).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tfqat.engines import tensorrt_api as api
from tfqat.engines.layer_log import MARK

PARSING = "Parsing node:"
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")


def main(job_path: str) -> None:
    """Builds the engine of a job file and writes its result file."""
    job = json.loads(Path(job_path).read_text())
    with Path(job["log_path"]).open("w") as log:
        result = build(job, importlib.import_module(job["module"]), log)
    Path(job["result_path"]).write_text(json.dumps(result))


def build(job: dict[str, Any], trt: Any, log: TextIO) -> dict[str, Any]:
    """Builds an engine with the given package and returns the result.

    It has `built`, `version`, and `seconds` and `inspector` of an engine that was built, or else the parser's `errors`, or in
    `refused` why TensorRT was not asked to build or its engine could not be kept.
    """
    result: dict[str, Any] = {"version": str(trt.__version__), "built": False, "errors": [], "refused": ""}
    try:
        return result | _build(job, trt, log)
    except api.RefusedError as error:
        return result | {"refused": str(error)}
    except OSError as error:
        return result | {"refused": f"a file of the build cannot be read or written: {error}"}


def _build(job: dict[str, Any], trt: Any, log: TextIO) -> dict[str, Any]:
    started = time.perf_counter()
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(api.network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["onnx_path"]):
        return {"errors": [api.parser_error(parser.get_error(i)) for i in range(parser.num_errors)]}
    config = _config(job, trt, builder)
    cache = api.attach_timing_cache(trt, config, _timings(job)) if job["timing_cache_out"] else None
    plan = builder.build_serialized_network(network, config)
    if logger.failed is not None:
        raise logger.failed
    if plan is None:
        return {}
    Path(job["plan_path"]).write_bytes(plan)
    if cache is not None:
        Path(job["timing_cache_out"]).write_bytes(cache.serialize())
    seconds = time.perf_counter() - started
    return {"built": True, "seconds": seconds, "inspector": api.inspect(trt, logger, plan, job["profile"])}


def _config(job: dict[str, Any], trt: Any, builder: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    api.set_precision(trt, config, fp16=job["fp16"])
    api.set_target(trt, config, job["compute_capability"])
    api.add_profile(builder, config, job["profile"])
    return config


def _timings(job: dict[str, Any]) -> bytes:
    return Path(job["timing_cache"]).read_bytes() if job["timing_cache"] else b""


def _logger(trt: Any, log: TextIO) -> Any:
    """A TensorRT logger that keeps errors, warnings, the node being parsed, and the list of kernels."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.failed: OSError | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity.name in SEVERITIES or message.startswith((PARSING, MARK)):
                try:
                    log.write(json.dumps({"severity": severity.name, "message": message}) + "\n")
                    log.flush()
                except OSError as error:  # one that leaves a callback of TensorRT ends the process
                    self.failed = error

    return Logger()


if __name__ == "__main__":
    main(sys.argv[1])
