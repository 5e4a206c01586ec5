"""How a run's processes find one another: by flags, by JAX's own detection, or not at all."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from ida_jax.common.errors import UserError, exit_code
from ida_jax.common.processes import join_processes, launched

_JOIN = """
import sys
from ida_jax.common.errors import exit_code
from ida_jax.common.processes import agree, join_processes

def run():
    words = (sys.argv[1:2], map(int, sys.argv[2:]))
    names = ("coordinator", "count", "number", "wait")
    join_processes(**dict(zip(names, (word for part in words for word in part))))
    agree()
    import jax
    print(jax.process_index(), "of", jax.process_count())

sys.exit(exit_code(run))
"""


def _start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", _JOIN, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": "", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _step(number):
    """A SLURM step's environment."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
    }  # fmt: skip


def _slice(number):
    """A worker's environment on Kubernetes, in the first or second slice of a TPU."""
    return {
        "JAX_FORCE_TPU_INIT": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "127.0.0.1",
        "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": str(number),
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
    }  # fmt: skip


@pytest.mark.parametrize("environment", [None, _step, _slice], ids=["flags", "SLURM", "slices"])
def test_two_processes_find_one_another(environment):
    port = _free_port()
    if environment is None:
        jobs = [_start(f"127.0.0.1:{port}", 2, number) for number in range(2)]
    else:
        where = {"JAX_COORDINATOR_PORT": str(port)}
        jobs = [_start(**where, **environment(number)) for number in range(2)]
    said = [job.communicate(timeout=100) for job in jobs]
    assert [out.splitlines()[-1] for out, _ in said] == ["0 of 2", "1 of 2"], said
    assert [job.returncode for job in jobs] == [0, 0]


def test_a_process_whose_others_do_not_come_ends_in_one_line():
    at = f"127.0.0.1:{_free_port()}"
    jobs = [_start(at, 2, 1, 2), _start(at.replace("127", "nowhere.invalid"), 2, 1, 2)]
    jobs.append(_start(f"127.0.0.1:{_free_port()}", 2, 0, 2))
    for job in jobs:
        _, err = job.communicate(timeout=100)
        assert job.returncode == 2
        assert err.count("\n") == 1
        assert "error: the other processes have not come at" in err
        assert "within 2 s" in err


def test_who_is_alone_joins_nobody(monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("jax.distributed.initialize", pytest.fail)
    join_processes()  # the only task of a step
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    join_processes(count=1)  # and one that is told so
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "8")
    assert launched() == ("PMI_RANK", "PMI_SIZE", 8)


def test_mistakes(monkeypatch, capsys):
    given = {"coordinator": "a:1", "count": 2, "number": 0}
    for name in given:
        with pytest.raises(UserError, match="--process belong together: give all three"):
            join_processes(**{**given, name: None})
    for where in ("a", "a:", ":1", "a:0", "a:70000", "a:b"):
        with pytest.raises(UserError, match=f"--coordinator={where}: expected HOST:PORT"):
            join_processes(**{**given, "coordinator": where})
    for count, number in ((2, 2), (2, -1), (0, 0)):
        with pytest.raises(UserError, match=f"--process={number} of --processes={count}: expected"):
            join_processes(**{**given, "count": count, "number": number})
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--coordinator=a:{port}: process 0 cannot listen .*"):
            join_processes(**{**given, "coordinator": f"a:{port}"})

    # A launcher that jax does not know.
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setattr("jax.distributed.initialize", _finds_nobody)
    assert exit_code(join_processes) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "one of 4 processes (PMI_SIZE)" in said
    assert "--processes=$PMI_SIZE --process=$PMI_RANK, in sh -c" in said
    monkeypatch.delenv("PMI_SIZE")
    join_processes()  # it is alone
    monkeypatch.undo()
    assert jax.devices()
    join_processes()  # as is one that uses jax already
    with pytest.raises(UserError, match=r"cannot join .*: jax.distributed.initialize\(\) must be"):
        join_processes(coordinator=f"127.0.0.1:{_free_port()}", count=2, number=0)

    monkeypatch.setattr("jax.distributed.initialize", _fails)
    with pytest.raises(UserError, match=r"cannot join .*: 403: give .* or --processes=1 where"):
        join_processes()


def _finds_nobody(*_, **__):
    raise ValueError("coordinator_address should be defined.")


def _fails(*_, **__):
    raise RuntimeError("403\nForbidden")
