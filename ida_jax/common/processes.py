"""This process, its cores, and the others of its run (SLURM, Open MPI, a TPU pod, an address)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ida_jax.common.errors import UserError


class OthersFailed(UserError):
    """Another process has ended with an error of its own."""


def join_processes(
    *, coordinator: str | None = None, count: int | None = None, number: int | None = None
) -> None:
    """Joins the other processes through `jax.distributed`, if there are any.

    Call it before anything else uses jax. Without arguments the environment decides: a SLURM
    step or Open MPI job of several tasks, the workers of a TPU pod, or JAX_COORDINATOR_ADDRESS.
    A single process returns at once.

    Args:
      coordinator: HOST:PORT of process 0.
      count: the number of processes.
      number: this one's, from 0.

    Raises:
      UserError: some of the three arguments without the others, or no way to reach the others.
    """
    given = [value is not None for value in (coordinator, count, number)]
    if any(given) and not all(given):
        raise UserError("coordinator, processes and process belong together: give all three")
    if not any(given) and not _environment_names_several():
        return
    import jax

    # The CPU's own collectives; other backends bring theirs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        # A process that ends on an error waits this long for the others, and then ends them too.
        jax.distributed.initialize(coordinator, count, number, shutdown_timeout_seconds=20)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {str(error).splitlines()[0]}") from error


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


def _environment_names_several() -> bool:
    counts = (os.environ.get(n, "1") for n in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return (
        any(count.isdecimal() and int(count) > 1 for count in counts)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        or "JAX_COORDINATOR_ADDRESS" in os.environ
    )
