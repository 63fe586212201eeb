"""`tfqat doctor`: each check as a table of machines, with what it says to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tfqat import doctor
from tfqat.doctor import Check
from tfqat.engines import onnxruntime, tensorrt, tensorrt_rtx

GIB = 2**30
YES, NO = (True, "1.0"), (False, "not here")
CPU, CUDA = (True, "1.2 (CPUExecutionProvider)"), (True, "1.2 (CUDAExecutionProvider, CPUExecutionProvider)")


def packages(*wanted: str, **installed: str) -> tuple[Check, ...]:
    return doctor.check_packages([Requirement(line) for line in wanted], {name.replace("_", "-"): v for name, v in installed.items()})


def backends(gpu: str | None = None, rtx: Any = YES, full: Any = YES, runtime: Any = CPU) -> dict[str, Check]:
    return {check.part.split()[1]: check for check in doctor.check_backends(gpu, rtx=rtx, full=full, runtime=runtime)}


# what is examined -> the level, and what the state and the advice say
CASES: dict[str, tuple[Any, str, str]] = {
    "Python 3.9": (doctor.check_python("3.9.18"), "missing", "tfqat needs Python 3.10 to 3.13"),
    "Python 3.10": (doctor.check_python("3.10.2"), "ok", ""),
    "Python 3.13": (doctor.check_python("3.13.0"), "ok", ""),
    "Python 3.14": (doctor.check_python("3.14.0"), "note", "TensorFlow may have no wheel"),
    "package missing": (packages("tf2onnx>=1.17,<1.18")[0], "missing", "pip install 'tf2onnx<1.18,>=1.17'"),
    "TensorFlow too old": (
        packages("tensorflow>=2.16,<2.22", tensorflow="2.15.1")[0],
        "missing",
        "pip install 'tensorflow<2.22,>=2.16'",
    ),
    "TensorFlow too new": (packages("tensorflow>=2.16,<2.22", tensorflow="2.22.0")[0], "missing", "takes <2.22,>=2.16"),
    "TensorFlow": (packages("tensorflow>=2.16,<2.22", tensorflow="2.21.0")[0], "ok", ""),
    "a release candidate": (packages("tensorflow>=2.16,<2.22", tensorflow="2.21.0rc1")[0], "ok", ""),
    "tf-keras of another version": (
        doctor.check_pair({"tensorflow": "2.18.1", "tf-keras": "2.21.0"})[0],
        "missing",
        "pip install 'tf-keras==2.18.*'",
    ),
    "ray missing": (doctor.check_extras({})[0], "note", "pip install 'tfqat[ray]'"),
    "pillow missing": (doctor.check_extras({})[2], "note", "pip install 'tfqat[images]'"),
    "ray": (doctor.check_extras({"ray": "2.4"})[0], "ok", ""),
    "RTX missing": (backends(rtx=NO)["tensorrt_rtx"], "note", "without a GPU: pip install tfqat[rtx]"),
    "both TensorRT missing": (backends(rtx=NO, full=NO)["tensorrt_rtx"], "note", "without either TensorRT no engine is built"),
    "TensorRT missing, GPU": (backends("NVIDIA A10", full=NO)["tensorrt"], "note", "pip install tfqat[tensorrt]"),
    "TensorRT missing, no GPU": (backends(full=NO)["tensorrt"], "note", "needs an NVIDIA GPU"),
    "ONNX Runtime missing": (backends(runtime=NO)["onnxruntime"], "missing", "pip install onnxruntime"),
    "ONNX Runtime": (backends()["onnxruntime"], "ok", ""),
    "ONNX Runtime without the GPU": (backends("NVIDIA A10")["onnxruntime"], "note", "pip install onnxruntime-gpu"),
    "ONNX Runtime with the GPU": (backends("NVIDIA A10", runtime=CUDA)["onnxruntime"], "ok", ""),
    "no GPU": (doctor.check_gpu(None, cuda=False), "note", "install NVIDIA's driver"),
    "GPU without CUDA's libraries": (doctor.check_gpu("NVIDIA A10", cuda=False), "note", "pip install 'tensorflow[and-cuda]'"),
    "GPU": (doctor.check_gpu("NVIDIA A10", cuda=True), "ok", ""),
    "VNNI": (doctor.check_vnni(True), "ok", ""),
    "no VNNI": (doctor.check_vnni(False), "note", "export.target: onnxruntime"),
    "VNNI not known": (doctor.check_vnni(None), "note", "onnx_deployed"),
    "disk": (doctor.check_disk(2 * GIB, Path("/x")), "ok", ""),
    "little disk": (
        doctor.check_disk(2 * GIB - 1, Path("/x")),
        "note",
        "little for runs in /x: write them elsewhere with `tfqat run --out`",
    ),
    "memory": (doctor.check_memory(4 * GIB), "ok", ""),
    "little memory": (doctor.check_memory(4 * GIB - 1), "note", "training.batch_size"),
    "memory not known": (doctor.check_memory(None), "ok", ""),
}


@pytest.mark.parametrize(("check", "level", "advice"), CASES.values(), ids=CASES)
def test_check(check: Check, level: str, advice: str) -> None:
    assert check.level == level
    assert advice in check.advice and bool(check.advice) == bool(advice)


def test_states() -> None:
    assert doctor.check_disk(3 * GIB, Path("/x")).state == "3.0 GiB"
    assert doctor.check_gpu("NVIDIA A10", cuda=True).state == "NVIDIA A10"
    assert doctor.check_pair({"tensorflow": "2.18.1", "tf-keras": "2.18.0"}) == () == doctor.check_pair({"tf-keras": "2.18.0"})


def test_this_machine(tmp_path: Path) -> None:
    found = {check.part: check for check in doctor.examine(tmp_path)}
    assert {"python", "tensorflow", "tf-keras", "onnxruntime", "backend tensorrt_rtx", "NVIDIA GPU", "free disk"} <= set(found)
    assert [check for check in found.values() if check.level == "missing"] == []
    assert float(found["available memory"].state.removesuffix(" GiB")) > 0.1


def test_a_bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is missing, doctor says so and does not fail."""
    lines = [Requirement("tensorflow>=2.16"), Requirement("tf2onnx")]
    monkeypatch.setattr(doctor, "_requirements", lambda: tuple(lines))
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    for module in (onnxruntime, tensorrt, tensorrt_rtx):
        monkeypatch.setattr(module, "is_available", lambda: NO)
    monkeypatch.setattr(onnxruntime, "cpu_has_vnni", lambda: False)
    found = {check.part: check for check in doctor.examine(tmp_path)}
    assert [part for part, check in found.items() if check.level == "missing"] == ["tensorflow", "tf2onnx", "backend onnxruntime"]
    assert found["CPU has VNNI"].level == "note"


def test_the_command_shows_the_advice_and_fails_for_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer
    from tfqat_cli.commands import doctor as command

    monkeypatch.setenv("COLUMNS", "200")
    checks = [Check(part="python", state="3.12"), Check(part="ray", state="-", level="note", advice="pip install 'tfqat[ray]'")]
    monkeypatch.setattr(doctor, "examine", lambda folder: tuple(checks))
    command.doctor()
    shown = capsys.readouterr().out
    assert "pip install 'tfqat[ray]'" in shown and "ready: nothing that tfqat needs is missing" in shown
    checks.append(Check(part="tf2onnx", state="not installed", level="missing", advice="pip install tf2onnx"))
    with pytest.raises(typer.Exit) as ended:
        command.doctor()
    assert ended.value.exit_code == 1
    assert "not usable before this is put right: tf2onnx" in capsys.readouterr().out
