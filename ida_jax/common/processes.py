"""This process, its cores, and the others of its run, which JAX finds or flags name."""

import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError

_WAIT = 300  # seconds for the others, JAX's own
# Where a launcher tells its processes their number and how many they are.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


class OthersFailed(UserError):
    """Another process has ended with an error of its own."""


class Launched(NamedTuple):
    """What a launcher has told this process.

    Attributes:
      number: the environment's variable of its number.
      count: and of how many they are.
      several: their count.
    """

    number: str
    count: str
    several: int


def launched() -> Launched | None:
    """What a launcher says, of several the one that has started most; None where there is none."""
    found = [
        Launched(number, count, int(several))
        for number, count in _LAUNCHERS
        if number in os.environ and (several := os.environ.get(count, "")).isdecimal()
    ]
    return max(found, key=lambda launcher: launcher.several, default=None)


def join_processes(
    *,
    coordinator: str | None = None,
    count: int | None = None,
    number: int | None = None,
    wait: int = _WAIT,
) -> None:
    """Joins the other processes through `jax.distributed`, if there are any.

    Call it before anything else uses jax. Without arguments JAX's own detection decides (SLURM,
    Open MPI, TPU pods and several of their slices, Kubernetes' indexed jobs and job sets). A
    process that it finds nothing for is alone, and so are the only task of a step, which JAX would
    leave a single device, and a process that has used jax before.

    Args:
      coordinator: HOST:PORT of process 0.
      count: the number of processes; 1 alone looks for no others.
      number: this one's, from 0.
      wait: seconds after which the process ends where the others have not come.

    Raises:
      UserError: some of the three arguments without the others, or what cannot be; a launcher that
        has started several, whom JAX cannot bring together; no way to reach the others.
    """
    given = [value is not None for value in (coordinator, count, number)]
    if count == 1 and coordinator is None and not number:
        return
    if any(given):
        _check_given(coordinator, count, number)
    step = launched()
    if not any(given) and step and step.several == 1:
        return
    import jax

    late = threading.Timer(wait, _leave, [coordinator, wait])
    late.daemon = True
    late.start()
    try:
        with warnings.catch_warnings(record=True) as said:
            # A process that ends on an error waits this long for the others, and then ends them.
            jax.distributed.initialize(
                coordinator,
                count,
                number,
                initialization_timeout=2 * wait,  # after which JAX aborts
                shutdown_timeout_seconds=20,
            )
    except Exception as error:  # of a launcher's, a cloud's or Kubernetes' client too
        if any(given) or not str(error).startswith(_ALONE):
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"cannot join the other processes: {reason}: {_GIVE}, or --processes=1 where there "
                "are no others"
            ) from error
        if step and step.several > 1:
            raise UserError(
                f"this is one of {step.several} processes ({step.count}), which jax does not bring "
                "together here: give each --coordinator=HOST:PORT of the first, "
                f"--processes=${step.count} --process=${step.number}, in sh -c '…' so that its own "
                "shell fills them in; or --processes=1 to each that is a run of its own"
            ) from error
    finally:
        late.cancel()
    for warning in said:
        print(f"warning: {' '.join(str(warning.message).split())}", file=sys.stderr)


# How jax.distributed begins where neither its detection nor the environment knows of others, and
# where jax has been used without it.
_ALONE = ("coordinator_address should be defined", "jax.distributed.initialize() must be called")
_GIVE = "give --coordinator=HOST:PORT, --processes=N and --process=I"


def _check_given(coordinator: str | None, count: int | None, number: int | None) -> None:
    if coordinator is None or count is None or number is None:
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(
            f"--coordinator={coordinator}: expected HOST:PORT of process 0, such as node0:1234"
        )
    if not 0 <= number < count:
        raise UserError(
            f"--process={number} of --processes={count}: expected one of 0 … N−1 of N processes"
        )
    if number == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:  # on which jax would crash
            raise UserError(
                f"--coordinator={coordinator}: process 0 cannot listen at this port of its host "
                f"({error.strerror}): name another one"
            ) from error


def _leave(coordinator: str | None, wait: int) -> None:
    """Ends a process whose others have not come; JAX would abort it, with its stack."""
    at = f" at {coordinator}" if coordinator else ""
    line = (
        f"error: the other processes have not come{at} within {wait} s: start all of them, process "
        "0 on the host of that address, which the others must reach\n"
    )
    os.write(2, line.encode())
    os._exit(2)


def is_first() -> bool:
    """Whether this is process 0, which does the work of a single process."""
    import jax

    return jax.process_index() == 0


def agree(ok: bool = True) -> None:
    """Waits for every process.

    Args:
      ok: False where this process is about to end on an error, so that no other waits for it.

    Raises:
      OthersFailed: another process has failed.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    if jax.process_count() == 1:
        return
    # One device of each process: a CPU whose devices outnumber its threads could wait for itself.
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[number] for number in sorted(firsts)]), ("process",))
    flags = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec("process")), np.array([0 if ok else 1], np.int32)
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    failed = int(jax.jit(jnp.sum, out_shardings=everywhere)(flags))
    if ok and failed:
        raise OthersFailed(f"{failed} other processes have failed: their own messages say why")


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block that all processes leave together: if one fails in it, all do.

    Raises:
      OthersFailed: another process has failed.
    """
    try:
        yield
    except OthersFailed:
        raise
    except Exception:  # whatever it was: the others would otherwise wait for ever
        agree(ok=False)
        raise
    agree()


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
