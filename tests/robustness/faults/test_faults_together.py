"""Two at once: runs in one second, two --resume of one run, exports of one model and of one file. Each ends right, or says who has it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tfqat
from tfqat.engines.triton import export_triton
from tfqat.errors import EngineError
from tfqat.files import TEMPORARY

SETTINGS = ("deterministic=true", "training.epochs=10", "compile.enabled=false")
OPTIONS = [part for value in SETTINGS for part in ("--set", value)]


@pytest.mark.robustness
def test_two_runs_of_one_second_have_two_directories(
    tiny_project: Path, launcher: Any, checks: Any, counts: Counter[str], tmp_path: Path
) -> None:
    both = [launcher.start("run", "tiny.yaml", "--out", tmp_path / "runs", *OPTIONS, folder=tiny_project) for _ in range(2)]
    assert [command.wait() for command in both] == [0, 0], "\n".join(command.said for command in both)
    one, other = sorted((tmp_path / "runs").iterdir())
    checks.same_result(other, one)
    counts["pairs of commands at once"] += 1


@pytest.mark.robustness
def test_of_two_that_resume_one_run_the_second_says_which_process_has_it(
    tiny_project: Path, launcher: Any, checks: Any, counts: Counter[str], tmp_path: Path
) -> None:
    options = ["run", "tiny.yaml", *OPTIONS, "--set", "training.epochs=40"]
    launcher.run(*options, "--out", tmp_path / "whole", folder=tiny_project)
    cut = launcher.start(*options, "--out", tmp_path / "cut", folder=tiny_project)
    while not list((tmp_path / "cut").glob("*/checkpoint.npz")) and not cut.ended.wait(0.01):
        pass
    os.kill(cut.pid, signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    (directory,) = (tmp_path / "cut").iterdir()
    both = [launcher.start(*options, "--resume", directory, folder=tiny_project) for _ in range(2)]
    assert sorted(command.wait() for command in both) == [0, 2], "\n".join(command.said for command in both)
    worked, refused = sorted(both, key=lambda command: command.code)
    assert re.search(rf"error: the run in {directory} is under way in process ({worked.pid}|{cut.pid}) on .*: wait until it", refused.said)
    (reference,) = (tmp_path / "whole").iterdir()
    checks.same_result(directory, reference)
    counts["pairs of commands at once"] += 1


def together(*calls: Any) -> list[Any]:
    """The results or the exceptions of calls that begin at the same time, each in a thread."""
    barrier, found = threading.Barrier(len(calls)), [None] * len(calls)

    def work(number: int) -> None:
        barrier.wait()
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(scope="module")
def other_graph(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with another name of its output."""
    model = onnx.load(str(tiny_onnx))
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["scores" if one == name else one for one in node.output]
    model.graph.output[0].name = "scores"
    path = tmp_path_factory.mktemp("other") / "model.onnx"
    onnx.save(model, str(path))
    return path


def test_two_first_versions_of_different_models_do_not_share_a_config(
    tiny_onnx: Path, other_graph: Path, counts: Counter[str], tmp_path: Path
) -> None:
    for number in range(20):
        repository = tmp_path / str(number)
        found = together(*(partial(export_triton, graph, repository, name="net") for graph in (tiny_onnx, other_graph)))
        failed = [one for one in found if isinstance(one, EngineError)]
        (made,) = [one for one in found if not isinstance(one, Exception)]
        assert len(failed) == 1 and "describes another model, and is not overwritten" in str(failed[0])
        written = (repository / "net" / "config.pbtxt").read_text()
        assert written == made.config and ('"scores"' in written) == (made is found[1])
        assert sorted(path.name for path in (repository / "net").iterdir()) == ["1", "config.pbtxt"]
        counts["pairs of exports at once"] += 1


def test_two_first_versions_of_one_model_get_two_numbers(tiny_onnx: Path, counts: Counter[str], tmp_path: Path) -> None:
    for number in range(20):
        repository = tmp_path / str(number)
        found = together(*[partial(export_triton, tiny_onnx, repository, name="net")] * 2)
        assert sorted(one.version for one in found) == [1, 2], found
        assert sorted(one.kept_config for one in found) == [False, True]
        assert not list((repository / "net").glob(f"{TEMPORARY}*"))
        counts["pairs of exports at once"] += 1


def scaled(qmodel: Any, factor: float) -> Any:
    """The same network with other weights, whose graph has constants at the same places."""
    from tfqat.models import graph

    copy = graph.clone(qmodel)
    copy.set_weights([value * factor if value.dtype == np.float32 and value.ndim == 4 else value for value in qmodel.get_weights()])
    return copy


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.robustness)])
def test_two_exports_to_one_path_leave_one_of_them(rounds: int, tiny_quantized: Any, counts: Counter[str], tmp_path: Path) -> None:
    """With the constants in a file of their own, graph and constants belong together."""
    import onnx_ir as ir

    from tfqat.export import onnx as export

    models = [tiny_quantized, scaled(tiny_quantized, 0.5)]
    graphs = []
    for number, model in enumerate(models):
        tfqat.export_onnx(model, tmp_path / f"{number}.onnx", metadata={"number": str(number)})
        graphs.append(ir.load(tmp_path / f"{number}.onnx"))
    wanted = [
        {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(str(tmp_path / f"{n}.onnx")).graph.initializer} for n in (0, 1)
    ]
    for number in range(rounds):
        path = tmp_path / f"both-{number}" / "model.onnx"
        path.parent.mkdir()
        found = together(*(partial(export._write_with_data, graph.clone(), path) for graph in graphs))
        assert all(isinstance(one, int) for one in found), found
        left = onnx.load(str(path))
        constants = wanted[int({entry.key: entry.value for entry in left.metadata_props}["number"])]
        assert all(np.array_equal(onnx.numpy_helper.to_array(one), constants[one.name]) for one in left.graph.initializer)
        assert sorted(one.name for one in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
        counts["pairs of exports at once"] += 1


def test_the_constants_of_the_graph_before_go_with_it(tiny_quantized: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, external_data=True)
    assert (tmp_path / "model.onnx.data").exists()
    tfqat.export_onnx(tiny_quantized, path)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    (tmp_path / "model.onnx.data").write_bytes(b"the user's own, which the graph does not read")
    tfqat.export_onnx(tiny_quantized, path)
    assert (tmp_path / "model.onnx.data").exists()


def test_a_directory_that_another_process_has(tmp_path: Path) -> None:
    """Two handles of one process exclude each other as those of two do."""
    from tfqat.errors import RunDirectoryError
    from tfqat.run_directory import RunDirectory

    directory = RunDirectory.create(tmp_path, "net", recipe_hash="1", seed=0, recipe_folder=tmp_path)
    with directory.held():
        directory.mark("running", stage="qat")
        (directory / ".writing-half").write_text("of the process that works")
        again = RunDirectory.reopen(directory.path, recipe_hash="1")
        with (
            pytest.raises(RunDirectoryError, match=rf"{directory.path} is under way in process \d+ on .*: wait until it ends"),
            again.held(),
        ):
            raise AssertionError("two have it")
        assert (directory / ".writing-half").exists()
    again = RunDirectory.reopen(directory.path, recipe_hash="1")
    directory.mark("complete", stage="report")
    with pytest.raises(RunDirectoryError, match="is complete; leave out --resume"), again.held():
        raise AssertionError("it ended meanwhile")
    assert json.loads((directory / "manifest.json").read_text())["status"] == "complete"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    from tfqat.run_directory import RunDirectory

    directory = RunDirectory.create(tmp_path, "net", recipe_hash="1", seed=0, recipe_folder=tmp_path)
    (directory / ".writing-file").write_text("half")
    (directory / ".writing-folder").mkdir()
    (directory / ".writing-folder" / "model.onnx").write_text("half")
    with RunDirectory.reopen(directory.path, recipe_hash="1").held():
        assert sorted(path.name for path in directory.path.iterdir()) == ["manifest.json", "run.log"]
