"""Runs commands with a fault in them: killed or stopped at their n-th change of a directory.

A process that has imported the package answers requests, a line of JSON each, by a fork: a run then
costs no imports. Nothing here may start a jax backend, whose threads a fork would lose.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

_CHANGES = ("replace", "rename", "unlink", "remove", "rmdir")


def serve() -> None:
    import ida_jax.runs.run  # noqa: F401  most of the package, jax included

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
            if os.getpid() == owner and (not os.path.isabs(text) or text.startswith(here)):
                count += 1
                os.write(log, f"{name} {text}\n".encode())
                if count == at and fault is not None:
                    os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            return change(path, *args, **kwargs)

        return call

    owner = os.getpid()
    for name in _CHANGES:
        setattr(os, name, counted(getattr(os, name), name))


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
