"""Signals ask for a stop between two steps, in one process and in two."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from ida_jax.common.errors import Stopped, exit_code
from ida_jax.training.preemption import preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_and_the_handlers_are_put_back(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with preemption() as requested:
        assert not requested(1)
        signal.raise_signal(number)
        assert requested(2)
        assert requested(3)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with preemption() as requested:
        assert not requested(4)


def test_schedulers_may_repeat_sigterm():
    with preemption() as requested:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert requested(1)


@pytest.fixture
def pythons_own_ctrl_c():
    """KeyboardInterrupt, whatever the tests' runner does on Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_ctrl_c")
def test_a_second_ctrl_c_ends_at_once(capfd):
    with preemption() as requested:
        signal.raise_signal(signal.SIGINT)
        assert requested(1)
        assert "Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_error_puts_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), preemption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_touches_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with preemption() as requested:
            seen.append((requested(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_stopped_run_ends_well(capsys):
    def run() -> None:
        raise Stopped("at step 7 of 9: the same command goes on from there")

    assert exit_code(run) == 0
    assert capsys.readouterr().err == (
        "stopped: at step 7 of 9: the same command goes on from there\n"
    )


RUN = """
import os, signal, sys, time
import numpy as np
from ida_jax.common.errors import Stopped, exit_code
from ida_jax.common.processes import join_processes
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.preemption import preemption

folder, count, number, port, sent = sys.argv[1], *map(int, sys.argv[2:6])
if count > 1:
    join_processes(coordinator=f"127.0.0.1:{port}", count=count, number=number)
import jax
from jax.sharding import NamedSharding, PartitionSpec

mesh = jax.make_mesh((jax.device_count(),), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def put(value, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def state(step):
    rows = 11 + -11 % jax.device_count()
    weight = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    return {"step": put(np.int32(step)), "head": {"weight": put(weight + step, "model")}}


def run():
    with open_checkpoints(folder, num_classes=11) as checkpoints, preemption() as requested:
        restored = checkpoints.restore(state(0))
        first = restored.step if restored else 0
        if restored:
            for shard in restored.state["head"]["weight"].addressable_shards:
                rows = np.arange(shard.index[0].start or 0, shard.index[0].stop or 12)
                rows = rows[rows < 11]
                assert (np.asarray(shard.data)[: len(rows), 0] == 4 * rows + first).all()
        print("from", first, flush=True)
        for step in range(first + 1, first + 300):
            time.sleep(0.02)
            if step == first + 5 and number == count - 1:
                os.kill(os.getpid(), sent)
            if requested(step):
                checkpoints.save(step, state(step))
                checkpoints.wait()
                raise Stopped(f"at step {step}")


sys.exit(exit_code(run))
"""


def run_processes(tmp_path, count, sent):
    """Every process's first step and last line; all must exit with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, (tmp_path, count, n, port, int(sent)))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for n in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    first = {line for out, _ in outputs for line in out.splitlines() if line.startswith("from")}
    stopped = {err.split("stopped: ")[1].splitlines()[0] for _, err in outputs}
    assert len(first) == len(stopped) == 1, outputs
    return int(first.pop().split()[-1]), int(stopped.pop().split()[-1])


def test_two_processes_stop_at_one_step_and_one_goes_on(tmp_path):
    first, stopped = run_processes(tmp_path, 2, signal.SIGTERM)  # only the second is signalled
    assert first == 0
    assert stopped > 5
    assert run_processes(tmp_path, 2, signal.SIGINT)[0] == stopped
    steps = [int(path.name) for path in tmp_path.iterdir()]
    first, stopped = run_processes(tmp_path, 1, signal.SIGTERM)
    assert first == max(steps)
    assert stopped >= first + 5
