"""Programs to compare, each in a process of its own, so that neither's memory or libraries touch
the other's.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


class Failed(RuntimeError):
    """What a worker asked for could not be done; the message is its error in one line."""

    @property
    def out_of_memory(self) -> bool:
        """Whether memory was what it lacked; a process that the system killed counts too."""
        marks = ("out of memory", "out_of_memory", "resource_exhausted", "can't allocate",
                 "memoryerror", "bad_alloc", "outofmemory", f"with {-signal.SIGKILL}")  # fmt: skip
        return any(mark in str(self).lower() for mark in marks)


class Worker:
    """A process that makes a program and then answers calls of its functions, one at a time."""

    def __init__(
        self,
        make: Callable[..., Mapping[str, Callable]],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the process and waits until `make` has returned.

        Args:
          make: a module's function, to the functions that `ask` names.
          *arguments: its arguments.
          environment: variables set in the process alone, before it imports anything.

        Raises:
          Failed: `make` did.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        changed = environment or {}
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        self._process.start()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        theirs.close()
        try:
            self._answer()
        except Failed:
            self.close()
            raise

    def ask(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the program.

        Raises:
          Failed: it raised, or the process is gone.
        """
        try:
            self._connection.send((name, arguments))
        except OSError as error:
            raise Failed(f"its process ended with {self._process.exitcode}") from error
        return self._answer()

    def close(self) -> None:
        """Ends the process and waits until its memory is free."""
        self._process.kill()
        self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            done, value = self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise Failed(f"its process ended with {self._process.exitcode}") from error
        if not done:
            raise Failed(value)
        return value


def _serve(connection: Connection, make: Callable, arguments: tuple) -> None:
    functions = {}

    def answer(call: Callable[[], Any]) -> None:
        try:
            reply = (True, call())
        except Exception as error:
            lines = str(error).strip().splitlines()
            reply = (False, f"{type(error).__name__}: {lines[0] if lines else ''}")
            print(error, file=sys.stderr)
        connection.send(reply)

    answer(lambda: functions.update(make(*arguments)))
    while True:
        try:
            name, given = connection.recv()
        except EOFError:
            return
        answer(lambda name=name, given=given: functions[name](*given))


def peak_resident_bytes() -> int:
    """This process's largest main memory so far, as the system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int:
    """Main memory that could be taken now."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def torch_device() -> str:
    """PyTorch's device, "cuda" or "cpu", with a seed and its fastest float32 products."""
    import torch

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_answers(run: Callable, device: str, *, compile_seconds: float) -> dict[str, Callable]:
    """What a worker with a PyTorch program answers to: `run`, `memory` and `describe`."""
    import torch

    on_gpu = device == "cuda"

    def memory() -> dict[str, int | None]:
        return {
            "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
            "peak_resident_bytes": peak_resident_bytes(),
        }

    def describe() -> dict[str, Any]:
        return {
            "version": torch.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "cudnn": torch.backends.cudnn.version(),
            "compile_seconds": compile_seconds,
        }

    return {"run": run, "memory": memory, "describe": describe}
