"""Commands with faults in them; --every-kill tries every point, else a few of each command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from faults.cases import make_inputs


class Ended(NamedTuple):
    """How a run ended: its exit code (−9 killed), its output, the changes that it made or began."""

    code: int
    text: str
    changes: list[str]


class Server:
    """The process that forks the runs."""

    def __init__(self, cache: Path) -> None:
        environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "PYTHONWARNINGS": "ignore",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def _ask(self, **request: object) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, case, folder: Path, *, fault: str | None = None, at: int = 0) -> int:
        """The pid of a run that faults ("kill" or "stop") before its change number `at`."""
        return self._ask(
            do="start", module=case.module, flags=case.flags, folder=str(folder), fault=fault, at=at
        )["pid"]

    def wait(self, pid: int) -> Ended | None:
        """How it ended; None where it has stopped."""
        answer = self._ask(do="wait", pid=pid)
        if answer.pop("stopped"):
            return None
        return Ended(**answer)

    def run(self, case, folder: Path, *, fault: str | None = None, at: int = 0) -> Ended:
        return self.wait(self.start(case, folder, fault=fault, at=at))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("cache"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def fresh(inputs, tmp_path):
    """() → a new folder with the inputs and an empty out/, always at the same path."""

    def make() -> Path:
        folder = tmp_path / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(inputs, folder)
        return folder

    return make
