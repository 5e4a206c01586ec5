"""The order of a loop's work; stop signals between two steps, in one process and in two."""

import itertools
import signal
import socket
import subprocess
import sys
import threading

import jax
import pytest
from environment import with_devices

from ida_jax.common.errors import Stopped, exit_code
from ida_jax.training.checkpoint import Checkpoints
from ida_jax.training.loop import Progress, preemption, training_steps


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
from ida_jax.training.loop import preemption

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
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, (tmp_path, count, n, port, int(sent)))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=with_devices(2),
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


def _drive(first_step, steps, *, stop=0, **options):
    """What the loop did, in order, over a state that counts its steps; one turn is one entry."""
    done = []
    checkpoints = Checkpoints(
        None, None, lambda step, state, accuracy: done.append(("save", step, state, accuracy)),
        lambda: done.append(("wait",)),
    )  # fmt: skip
    progress = Progress(first_step, first_step)
    loop = training_steps(
        progress, itertools.count(first_step), stage="toy", steps=steps,
        check=lambda step, values: done.append(("check", step, values["x"])),
        record=lambda step, values, speed: str(done.append(("record", step))),
        is_logged=lambda step: step % 2 == 0, checkpoints=checkpoints,
        stop_requested=lambda step: step == stop, **options,
    )  # fmt: skip
    try:
        for step, batch in loop:
            done.append(("step", step, batch))
            progress.state, progress.metrics = step, {"x": jax.numpy.float32(step)}
    except Stopped as stopped:
        done.append(("stopped", str(stopped)))
    return done, progress


def test_a_step_is_finished_while_the_next_one_runs_and_before_it_is_saved():
    done, progress = _drive(1, 5, checkpoint_every=3, accuracy=lambda step: step / 10)
    assert done == [
        ("step", 2, 1), ("step", 3, 2), ("check", 2, 2.0), ("record", 2), ("check", 3, 3.0),
        ("save", 3, 3, None), ("step", 4, 3), ("step", 5, 4), ("check", 4, 4.0), ("record", 4),
        ("check", 5, 5.0), ("save", 5, 5, 0.5),
    ]  # fmt: skip
    assert (progress.step, progress.saved) == (5, 5)


def test_only_what_is_recorded_or_saved_is_checked_where_a_loop_says_so():
    done, _ = _drive(0, 5, check_every_step=False, evaluate_every=3)
    assert [entry[1] for entry in done if entry[0] == "check"] == [2, 3, 4, 5]
    assert [entry[1] for entry in done if entry[0] == "save"] == [3, 5]


def test_a_stop_saves_waits_and_says_so_but_not_at_the_end():
    done, progress = _drive(0, 5, stop=3, evaluate_every=3, accuracy=lambda step: 1.0)
    assert done[-4:] == [
        ("check", 3, 3.0), ("save", 3, 3, None), ("wait",),
        ("stopped", "at step 3 of 5, which is saved: the same command goes on from there"),
    ]  # fmt: skip
    assert progress.saved == 3
    done, _ = _drive(0, 5, stop=5)
    assert done[-1] == ("save", 5, 5, None)


def test_turns_of_several_steps_end_at_the_last():
    done, progress = _drive(0, 7, stride=3)
    assert [entry[1:] for entry in done if entry[0] == "step"] == [(3, 0), (6, 1), (7, 2)]
    assert progress.step == 7
    assert _drive(7, 7)[0] == []
