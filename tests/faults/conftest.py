"""Commands with faults in them; --every-kill tries every point, else a few of each command."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from environment import with_devices
from faults.cases import CASES, Case, contents, make_inputs, unfinished


class Ended(NamedTuple):
    """How a run ended: its exit code (−9 killed), its output, the changes that it made or began."""

    code: int
    text: str
    changes: list[str]


class Server:
    """The process that forks the runs."""

    def __init__(self, cache: Path) -> None:
        environment = {
            **with_devices(1),
            "JAX_PLATFORMS": "cpu",
            "PYTHONWARNINGS": "ignore",
            "GIT_DIR": os.devnull,  # provenance notes the commit, which may change meanwhile
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


class Whole(NamedTuple):
    """A run without faults: its changes, the folder out/ that it left, and what that holds."""

    changes: list[str]
    out: Path
    contents: dict[str, bytes]


@pytest.fixture(scope="session")
def fresh(server, tmp_path_factory):
    """(case) → a folder with the inputs and the out/ of before, always at the same path."""
    inputs = tmp_path_factory.mktemp("inputs")
    make_inputs(inputs)
    before = {}
    work = tmp_path_factory.mktemp("faults") / "work"

    def make(case: Case) -> Path:
        if case.earlier and case.earlier not in before:
            folder = make(case._replace(earlier=()))
            ended = server.run(case._replace(flags=case.earlier), folder)
            assert ended.code == 0, ended.text
            before[case.earlier] = tmp_path_factory.mktemp("before") / "out"
            shutil.copytree(folder / "out", before[case.earlier])
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(inputs, work)
        if case.earlier:
            shutil.copytree(before[case.earlier], work / "out", dirs_exist_ok=True)
        return work

    return make


@pytest.fixture(scope="session")
def whole(server, fresh, tmp_path_factory):
    """(case) → its run without faults."""
    runs = {}

    def run(case: Case) -> Whole:
        if case not in runs:
            folder = fresh(case)
            ended = server.run(case, folder)
            assert ended.code == 0, ended.text
            assert ended.changes, "nothing was renamed: the output does not appear at once"
            assert not unfinished(folder / "out")
            out = tmp_path_factory.mktemp("whole") / "out"
            shutil.copytree(folder / "out", out)
            runs[case] = Whole(ended.changes, out, contents(out, case))
        return runs[case]

    return run


@pytest.fixture
def case(request) -> Case:
    """The command that the test is of."""
    found = CASES[request.param]
    if not request.config.getoption("--every-kill") and request.path.stem not in found.quick:
        pytest.skip("takes long: give --every-kill")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, indirect=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried, as the tests have recorded it."""
    tried = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.when == "call":
                tried.update(dict(report.user_properties))
    if tried:
        counts = ", ".join(f"{count} {what}" for what, count in tried.items())
        terminalreporter.write_line(f"faults: {counts}")
