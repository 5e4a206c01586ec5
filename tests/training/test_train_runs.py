"""Training as a command: stopped, killed, damaged, gone on, on other devices, in two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import cv2
import numpy as np
import pytest
from environment import with_devices
from face_sources import write_recordio

from ida_jax.artefacts import face_model
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.models.resnet import IResNet
from ida_jax.training.loop import read_metrics

# One block in place of a whole network: what is compiled anew for every device count is small.
CONFIG = """
from functools import partial

from ml_collections import ConfigDict

from ida_jax.artefacts import face_model
from ida_jax.models.resnet import IResNet
from ida_jax.runs.config import run_section

face_model._NETWORKS["tiny"] = partial(IResNet, (1,), (8,))


def get_config():
    c = run_section("test")
    c.stages = ("train",)
    c.train_data = ConfigDict({"name": "recordio", "dataset": "faces"})
    c.eval_data = c.train_data
    c.model.network, c.model.image_size = "tiny", 32
    c.model.options = ConfigDict({"embedding_dim": 16, "dropout_rate": 0.2})
    c.train.update(
        {"scale": 16.0, "margin": 0.2, "batch_size": 8, "steps": 40, "learning_rate": 0.005,
         "decay_steps": (30,), "checkpoint_every": 5, "log_every": 1}
    )
    c.k, c.evaluate.methods, c.evaluate.folds = 5, ("cosine", "ida_r"), 2
    return c
"""
TWO_PROCESSES = {
    "OMPI_MCA_orte_hnp_uri": "{job}.0;tcp://127.0.0.1:5000", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "{number}", "OMPI_COMM_WORLD_LOCAL_RANK": "{number}",
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The config's network in this process, which loads the models."""
    monkeypatch.setitem(face_model._NETWORKS, "tiny", partial(IResNet, (1,), (8,)))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """(workdir, *flags, devices=1, **environment) → the command, running."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.py").write_text(CONFIG)
    # Stored faces: rendering takes each process seconds of tracing.
    rng = np.random.default_rng(0)
    images = [cv2.imencode(".jpg", rng.integers(0, 256, (32, 32, 3), np.uint8))[1].tobytes()
              for _ in range(33)]  # fmt: skip
    write_recordio(folder / "faces", images, [row // 3 for row in range(33)])
    # A network is compiled once for all of these runs. The folder is theirs alone: an entry that is
    # half written, by a run of other tests or one that is killed, is a line on stderr.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

    def start(workdir, *flags, devices=1, **environment):
        command = [sys.executable, "-m", "ida_jax.main", f"--config={folder}/config.py"]
        command.append(f"--config.data_dir={folder}")
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *flags],
            env={**with_devices(devices), **kept, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def _finish(process, code=0):
    """What the process writes to the end, stdout and stderr."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err[-3000:]
    assert "Traceback" not in err
    return out, err


def _newest(workdir):
    """The step of the newest whole checkpoint, 0 where there is none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _signal_at(process, workdir, step, number):
    """Sends a signal once the run has saved a step."""
    deadline = time.monotonic() + 100
    while _newest(workdir) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)


def _model(workdir):
    return FaceModel.load(workdir / "model.safetensors")


def _losses(workdir):
    """Every step's, of which each is there once and in order."""
    records = read_metrics(workdir)
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return np.array([r["loss"] for r in records])


def _assert_close(workdir, other):
    """The same run but for rounding, which a PReLU near its kink magnifies after some steps."""
    off = np.abs(_losses(workdir) / _losses(other) - 1)
    assert len(off) == 40
    assert off[:5].max() < 1e-4
    assert off.max() < 0.05
    found, expected = _model(workdir).class_weights, _model(other).class_weights
    assert found.shape == expected.shape == (11, 16)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def _stopped_at(err):
    (line,) = [line for line in err.splitlines() if line.startswith("stopped: ")]
    assert line.endswith("which is saved: the same command goes on from there")
    return int(line.split("at step ")[1].split()[0])


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    _finish(start(workdir))
    return workdir


@pytest.mark.bits
def test_killed_stopped_and_damaged_it_ends_in_the_same_model(start, undisturbed, tmp_path):
    process = start(tmp_path)
    _signal_at(process, tmp_path, 5, signal.SIGKILL)
    _finish(process, -signal.SIGKILL)
    killed_after = _newest(tmp_path)

    process = start(tmp_path)
    _signal_at(process, tmp_path, killed_after + 5, signal.SIGTERM)
    step = _stopped_at(_finish(process)[1])
    assert killed_after < step < 40
    newest = tmp_path / "checkpoints" / str(step)
    assert newest.is_dir()
    assert not (tmp_path / "model.safetensors").exists()

    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    _, err = _finish(start(tmp_path))
    assert f"{step} is damaged" in err
    assert f"it is renamed to corrupt-{step}; the newest whole one is of step" in err
    assert (tmp_path / "checkpoints" / f"corrupt-{step}").is_dir()

    assert _model(tmp_path).fingerprint == _model(undisturbed).fingerprint
    np.testing.assert_array_equal(_model(tmp_path).class_weights, _model(undisturbed).class_weights)
    np.testing.assert_array_equal(_losses(tmp_path), _losses(undisturbed))


def test_eight_devices_and_then_two(start, undisturbed, tmp_path):
    process = start(tmp_path, devices=8)
    _signal_at(process, tmp_path, 5, signal.SIGTERM)
    step = _stopped_at(_finish(process)[1])
    assert step < 40
    _, err = _finish(start(tmp_path, devices=2))
    assert f"step {step} was saved by 8 devices in 1 processes; 2 in 1 go on" in err
    _assert_close(tmp_path, undisturbed)


def test_two_processes_are_one_run(start, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stages = '--config.stages=("train","anchors","evaluate")'
    running = [
        start(
            tmp_path, stages, devices=2,
            **{k: v.format(job=port, number=number) for k, v in TWO_PROCESSES.items()},
        )
        for number in range(2)
    ]  # fmt: skip
    (out, _), (other_out, other_err) = map(_finish, running)
    _assert_close(tmp_path, undisturbed)
    # The first one alone does what follows, and tells of it.
    assert json.loads((tmp_path / "results.json").read_text())["protocols"]
    assert "report:" in out
    assert "report:" not in other_out
    assert not other_err


def test_two_that_do_not_find_one_another_share_no_workdir(start, tmp_path):
    both = [start(tmp_path) for _ in range(2)]  # each takes itself for the only one
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    both.sort(key=lambda process: process.poll() is None)
    second, first = both
    assert first.poll() is None
    out, err = _finish(second, 2)
    assert not out
    assert err.count("\n") == 1
    assert f"{tmp_path} is being written by process {first.pid} on {socket.gethostname()}" in err
    assert "give each --coordinator, --processes and --process" in err
    _signal_at(first, tmp_path, 5, signal.SIGTERM)
    assert _stopped_at(_finish(first)[1]) == _newest(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_loss_that_is_not_finite(start, tmp_path):
    flags = ("--config.train.decay_factor=1e30", "--config.train.decay_steps=(12,)")
    _, err = _finish(start(tmp_path, *flags), 2)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the loss is" in line
    assert "was still finite: begin another --workdir" in line
    assert (tmp_path / "checkpoints" / "10").is_dir()
    assert not (tmp_path / "model.safetensors").exists()
    assert np.isfinite(_losses(tmp_path)).all()
