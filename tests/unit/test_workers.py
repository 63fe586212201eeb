"""Joining the processes of a run: what TF_CONFIG, Slurm's environment and the recipe may say. Two real processes: test_two_workers.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tfqat import workers
from tfqat.errors import RecipeError, TrainingError, WorkerError
from tfqat.recipe.distribution import DistributionConfig
from tfqat.training.replicas import check_split
from tfqat.workers import Message, Workers, join, processes_of_tf_config

ADDRESSES = ["host0:8888", "host1:8888"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def tf_config(**task: Any) -> str:
    return json.dumps({"cluster": {"worker": ADDRESSES}, "task": {"type": "worker", "index": 0} | task})


def test_without_the_block_a_process_is_alone(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TF_CONFIG", tf_config())
    alone = join(None)
    assert (alone.index, alone.count, alone.replicas, alone.is_chief, alone.strategy) == (0, 1, 1, True, None)


def test_multi_worker_without_an_environment(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"distribution\.strategy: multi_worker needs TF_CONFIG or Slurm's environment"):
        join(DistributionConfig(strategy="multi_worker"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "'cluster'"),
        ('{"cluster": {"worker": ["a:1"]}}', "'task'"),
        (tf_config(index=2), "worker 2"),
        (tf_config(type="ps"), "'ps'"),
    ],
)
def test_a_wrong_tf_config(environment: pytest.MonkeyPatch, text: str, found: str) -> None:
    environment.setenv("TF_CONFIG", text)
    with pytest.raises(WorkerError, match="TF_CONFIG cannot be used") as error:
        join(DistributionConfig(strategy="multi_worker"))
    assert found in str(error.value) and 'expected {"cluster"' in str(error.value)


def test_an_incomplete_slurm_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SLURM_PROCID", "0")
    environment.delenv("SLURM_STEP_NODELIST", raising=False)
    with pytest.raises(WorkerError, match="Slurm's environment cannot be used: KeyError: 'SLURM_STEP_NODELIST'; start"):
        join(DistributionConfig(strategy="multi_worker"))


@pytest.mark.parametrize(
    ("nodes", "tasks", "rank", "expected"),
    [
        ("gpu[07-08]", "2,1", 2, ["gpu07:8888", "gpu07:8889", "gpu08:8888"]),
        ("node[9-10]", "1(x2)", 0, ["node9:8888", "node10:8888"]),
        ("localhost", "2", 1, ["localhost:8888", "localhost:8889"]),
    ],
)
def test_addresses_by_slurm(environment: pytest.MonkeyPatch, nodes: str, tasks: str, rank: int, expected: list[str]) -> None:
    environment.delenv("SLURMD_NODENAME", raising=False)
    for name, value in {"PROCID": str(rank), "STEP_NODELIST": nodes, "STEP_TASKS_PER_NODE": tasks}.items():
        environment.setenv(f"SLURM_{name}", value)
    assert workers._cluster("distribution.strategy") == ({"worker": expected}, ("worker", rank))
    environment.setenv("SLURMD_NODENAME", "elsewhere")
    with pytest.raises(WorkerError, match=rf"runs task {rank} on elsewhere, expected .*--distribution=block"):
        workers._cluster("distribution.strategy")


def test_a_chief_among_the_tasks(environment: pytest.MonkeyPatch) -> None:
    cluster = {"chief": ["host0:1"], "worker": ["host1:1"]}
    environment.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    assert workers._cluster("distribution.strategy") == (cluster, ("worker", 0))


@pytest.mark.parametrize(("text", "count"), [(None, 1), ("{", 1), ("[]", 1), (tf_config(), 2)])
def test_processes_of_tf_config(environment: pytest.MonkeyPatch, text: str | None, count: int) -> None:
    if text is not None:
        environment.setenv("TF_CONFIG", text)
    assert processes_of_tf_config() == count


def test_a_message_keeps_what_it_holds(tmp_path: Path) -> None:
    message = Message(kind="train", settings={"baseline": 0.5}, files={"model.keras": bytes(range(256)) * 5, "empty": b""})
    again = Message.from_bytes(message.to_bytes())
    assert again == message
    again.unpack(tmp_path)
    assert (tmp_path / "model.keras").read_bytes() == message.files["model.keras"] and (tmp_path / "empty").read_bytes() == b""


def test_a_process_alone_sends_nothing() -> None:
    alone = Workers()
    with alone.released(), alone.together(Message(kind="train")):
        pass
    with pytest.raises(ValueError, match="own"), alone.released(), alone.together(Message(kind="train")):
        raise ValueError("own")


def test_a_process_that_is_gone_at_the_end_takes_no_result_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Workers, content: bytes) -> bytes:
        raise WorkerError("another process of this run was lost")

    monkeypatch.setattr(Workers, "_broadcast", broken)
    with Workers(index=0, count=2).released():
        pass
    with pytest.raises(ValueError, match="own"), Workers(index=0, count=2).released():
        raise ValueError("own")


def test_a_pipeline_that_raises_is_not_a_lost_process() -> None:
    two = Workers(index=0, count=2)
    with pytest.raises(tf.errors.FailedPreconditionError), two.meeting():
        raise tf.errors.FailedPreconditionError(None, None, "Table not initialized")
    with pytest.raises(WorkerError, match="another process of this run was lost"), two.meeting():
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Socket closed")


@pytest.mark.parametrize(("batch_size", "replicas"), [(33, 2), (64, 3)])
def test_a_batch_that_does_not_divide(batch_size: int, replicas: int) -> None:
    check_split(2 * replicas, replicas)
    with pytest.raises(TrainingError, match=rf"a batch of {batch_size} cannot be split evenly between {replicas} devices"):
        check_split(batch_size, replicas)
