"""Runs commands with a fault in them: killed or stopped at their n-th change of a directory.

A process that has imported the package answers requests, a line of JSON each, by a fork: a run then
costs no imports. Nothing here may start a jax backend, whose threads a fork would lose.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import tempfile
from pathlib import Path

import ida_jax

# What commands import when they need it.
_LATER = (
    "array_record.python.array_record_module", "grain.python", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "onnx", "onnxruntime", "optax",
    "orbax.checkpoint.experimental.v1", "pyarrow.csv", "pyarrow.parquet", "safetensors",
    "scipy.optimize", "scipy.stats", "tensorboardX", "tensorflow_datasets",
)  # fmt: skip
_CHANGING = ("replace", "rename", "unlink", "remove", "rmdir")


def serve() -> None:
    for module in pkgutil.walk_packages(ida_jax.__path__, "ida_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATER:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _start(request) if request["do"] == "start" else _wait(request)
        answers.write(json.dumps(answer) + "\n")


_RUNNING: dict[int, tuple[str, str]] = {}


def _start(request: dict) -> dict:
    handle, errors = tempfile.mkstemp()
    os.close(handle)
    handle, changes = tempfile.mkstemp()
    os.close(handle)
    pid = os.fork()
    if not pid:
        os.chdir(request["folder"])
        os.setsid()
        with open(errors, "wb") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        _run(request, changes)
    _RUNNING[pid] = errors, changes
    return {"pid": pid}


def _run(request: dict, changes: str) -> None:
    code = 1
    try:
        _with_fault(request["fault"], request["at"], changes)
        sys.argv = [request["module"], *request["flags"]]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _with_fault(fault: str | None, at: int, changes: str) -> None:
    """Counts the changes under the working directory, and faults before the one numbered `at`."""
    count = 0
    here = os.getcwd()
    log = os.open(changes, os.O_WRONLY)

    def counted(change, name):
        def call(path, *args, **kwargs):
            nonlocal count
            text = os.fsdecode(path)
            if kwargs.get("dir_fd") is not None:  # shutil.rmtree
                text = os.path.join(os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), text)
            text = os.path.join(here, text)
            if os.getpid() == owner and text.startswith(here) and _changes(name, text):
                count += 1
                os.write(log, f"{name} {text}\n".encode())
                if count == at and fault is not None:
                    os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            return change(path, *args, **kwargs)

        return call

    owner = os.getpid()
    for name in _CHANGING:
        setattr(os, name, counted(getattr(os, name), name))


def _changes(name: str, path: str) -> bool:
    """Whether the call changes anything; the package removes some files without a look."""
    if name == "rmdir" and os.path.isdir(path):
        return not os.listdir(path)
    return os.path.lexists(path)


def _wait(request: dict) -> dict:
    """The end of a run, or that it has stopped."""
    _, status = os.waitpid(request["pid"], os.WUNTRACED)
    errors, changes = _RUNNING[request["pid"]]
    if os.WIFSTOPPED(status):
        return {"stopped": True}
    answer = {
        "stopped": False,
        "code": os.waitstatus_to_exitcode(status),
        "text": Path(errors).read_text(errors="replace"),
        "changes": Path(changes).read_text().splitlines(),
    }
    for path in _RUNNING.pop(request["pid"]):
        os.unlink(path)
    return answer


if __name__ == "__main__":
    serve()
