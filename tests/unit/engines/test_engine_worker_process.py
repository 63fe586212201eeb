"""The process around a build: what is said when it crashes, hangs, or reports errors. The workers here are short scripts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tfqat.engines.worker_process import Job, run_worker, timings_path
from tfqat.errors import EngineError

START = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
log = open(job["log_path"], "a")
def say(severity, message):
    log.write(json.dumps({"severity": severity, "message": message}) + "\\n"); log.flush()
def finish(**result):
    json.dump({"version": "1.2.3", "errors": [], **result}, open(job["result_path"], "w"))
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        title="TensorRT for RTX",
        module="json",
        onnx_path=tmp_path / "model.onnx",
        plan_path=tmp_path / "model.plan",
        compute_capability="SM86",
        profile={"image": ((1, 4), (8, 4), (32, 4))},
    )


def run(job: Job, script: str, timeout_s: float = 30) -> object:
    return run_worker(job, timeout_s=timeout_s, command=(sys.executable, "-c", START + script))


def failure(job: Job, script: str, timeout_s: float = 30) -> str:
    with pytest.raises(EngineError) as error:
        run(job, script, timeout_s)
    return str(error.value)


def test_a_build_returns_the_version_the_time_and_the_list_of_kernels(job: Job) -> None:
    script = 'say("VERBOSE", "Parsing node: stem [Conv]"); say("VERBOSE", "Layers:\\nName: x"); finish(built=True, seconds=0.5)'
    built = run_worker(job, timeout_s=30, command=(sys.executable, "-c", START + script))
    assert (built.version, built.seconds, built.layers_message) == ("1.2.3", 0.5, "Layers:\nName: x")


def test_the_worker_gets_absolute_paths_the_target_and_the_profile(job: Job) -> None:
    script = 'say("VERBOSE", "Layers:" + json.dumps([job[k] for k in ("onnx_path", "plan_path", "compute_capability", "profile")]))\n'
    built = run_worker(job, timeout_s=30, command=(sys.executable, "-c", START + script + "finish(built=True, seconds=0.5)"))
    assert (
        built.layers_message
        == f'Layers:["{job.onnx_path.resolve()}", "{job.plan_path.resolve()}", "SM86", {{"image": [[1, 4], [8, 4], [32, 4]]}}]'
    )


def test_a_crash_names_the_signal_and_the_node(job: Job) -> None:
    script = 'say("VERBOSE", "Parsing node: stem [Conv]"); say("VERBOSE", "Parsing node: head [Conv]"); os.abort()'
    assert failure(job, script) == (
        "TensorRT for RTX on model.onnx for SM86: the build crashed with signal SIGABRT; the last node parsed is head [Conv]"
    )


def test_a_log_line_cut_short_by_a_crash_is_left_out(job: Job) -> None:
    script = 'say("VERBOSE", "Parsing node: stem [Conv]"); log.write("{half"); log.flush(); os.abort()'
    assert failure(job, script).endswith("SIGABRT; the last node parsed is stem [Conv]")


def test_an_exit_code_comes_with_the_last_line_that_was_written(job: Job) -> None:
    message = failure(job, 'sys.exit("no such module")')
    assert message == "TensorRT for RTX on model.onnx for SM86: the build ended with exit code 1; it wrote: no such module"


def test_a_build_that_hangs_is_ended(job: Job) -> None:
    message = failure(job, 'say("VERBOSE", "Parsing node: stem [Conv]"); time.sleep(60)', timeout_s=1.5)
    assert "not built after 1.5 s; the last node parsed is stem [Conv]; give it more time with timeout_s (--timeout)" in message


def test_each_parser_error_names_its_node(job: Job) -> None:
    script = (
        'finish(built=False, errors=[{"node": "a/Q", "op": "QuantizeLinear", "message": "x\\n y"}, {"node": "", "op": "", "message": "z"}])'
    )
    assert failure(job, script).endswith("the graph cannot be built: node 'a/Q' (QuantizeLinear): x y; z")


def test_a_build_error_is_taken_from_the_log(job: Job) -> None:
    script = 'say("WARNING", "w"); say("ERROR", "FP32 GEMM\\nis not supported"); finish(built=False)'
    assert failure(job, script).endswith("the graph cannot be built: FP32 GEMM is not supported")


def test_what_tensorrt_is_not_asked_for_is_said_as_it_is(job: Job) -> None:
    assert failure(job, 'finish(built=False, refused="no timing cache here")') == (
        "TensorRT for RTX on model.onnx for SM86: no timing cache here"
    )


@pytest.mark.parametrize("there", [True, False])
def test_the_worker_gets_a_timing_cache_that_is_there_and_a_place_for_the_next(job: Job, tmp_path: Path, there: bool) -> None:
    cache = tmp_path / "t.cache"
    if there:
        cache.write_bytes(b"")
    script = 'say("VERBOSE", "Layers:" + json.dumps([job["timing_cache"], job["timing_cache_out"], job["fp16"]]))\n'
    command = (sys.executable, "-c", START + script + "finish(built=True, seconds=0.5)")
    built = run_worker(dataclasses.replace(job, timing_cache=cache, fp16=True), timeout_s=30, command=command)
    assert json.loads(built.layers_message[7:]) == [
        str(cache.resolve()) if there else None,
        str(timings_path(job.plan_path).resolve()),
        True,
    ]


def test_the_inspector_comes_back_with_the_result(job: Job) -> None:
    command = (sys.executable, "-c", START + 'finish(built=True, seconds=0.5, inspector="{}")')
    assert run_worker(job, timeout_s=30, command=command).inspector == "{}"
