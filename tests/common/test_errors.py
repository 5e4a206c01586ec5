"""How commands end; what a message may hold."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ida_jax.common.errors import UserError, exit_code, printable


def _started(body):
    """A command whose body says "ready", and what it says then."""
    code = "import gc, os, sys, time, weakref\nfrom ida_jax.common.errors import exit_code\n"
    code += (
        f"def run():\n{textwrap.indent(textwrap.dedent(body), '    ')}\nsys.exit(exit_code(run))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


_WAITING = {
    "in its own code": """
        print("ready", flush=True)
        time.sleep(60)
    """,
    "in a callback whose errors are lost": """
        def collected(phase, info):
            if phase == "start":
                print("ready", flush=True)
                time.sleep(60)
        gc.callbacks.append(collected)
        gc.collect()
        print("goes on", file=sys.stderr)
    """,
    "in a library that makes another error of it": """
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException as error:
            raise ImportError("no such module") from error
    """,
    "in a block that has to be left": """
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("left", flush=True)
    """,
}


@pytest.mark.parametrize("where", _WAITING)
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "terminated: "), (signal.SIGINT, 130, "\ninterrupted: ")],
)
def test_a_signal_ends_a_command_in_one_line(where, number, code, said):
    process = _started(_WAITING[where])
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == f"{said}the same command continues from what was finished\n"
    assert out == ("left\n" if "left" in where else "")


def test_a_signal_while_modules_are_imported_ends_at_once(tmp_path):
    (tmp_path / "slow.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    process = _started(f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.count("\n")) == (130, 2)


def test_a_forked_worker_ends_as_it_would(tmp_path):
    process = _started("""
        child = os.fork()
        if not child:
            print("ready", flush=True)
            time.sleep(60)
        print("signal", os.waitpid(child, 0)[1], flush=True)
    """)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    if not os.path.exists(children):
        process.kill()
        pytest.skip("no list of children here")
    with open(children) as opened:
        os.kill(int(opened.read()), signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (f"signal {int(signal.SIGTERM)}\n", "", 0)


def test_handlers_are_those_of_before_again():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.unraisablehook
    assert exit_code(lambda: None) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.unraisablehook is hook
    codes = []
    thread = threading.Thread(target=lambda: codes.append(exit_code(lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_full_disk_is_one_line(tmp_path, capsys):
    def full():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    if Path("/dev/full").is_char_device():
        assert exit_code(full) == 2
        assert capsys.readouterr().err == (
            "error: cannot write: No space left on device; make room, and run the same command "
            "again\n"
        )

    def broken():
        raise OSError(22, "another error")

    with pytest.raises(OSError, match="another error"):
        exit_code(broken)
    assert exit_code(lambda: (_ for _ in ()).throw(UserError("one line"))) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 1 TiB"), "not enough memory (Unable to allocate 1 TiB): "),
        (MemoryError(), "not enough memory: take smaller batches"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nmore"), "not enough memory (Out of "),
        (OSError(12, "Cannot allocate memory"), "not enough memory ([Errno 12] Cannot allocate"),
        (OSError(24, "Too many open files"), "Too many open files: raise the limit (ulimit -n)"),
        (OSError(5, "Input/output error"), "cannot use a file or folder: Input/"),
        (
            PermissionError(13, "Permission denied", "a\nb"),
            "cannot use a b: Permission denied",
        ),
    ],
)
def test_a_fault_of_the_machine_is_one_line(error, said, capsys):
    def failing():
        raise error

    assert exit_code(failing) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_control_characters_of_a_name_are_escaped():
    error = UserError("no face is named 'a\x1b[31m\x00b\u202ec'\nsecond line")
    assert str(error) == r"no face is named 'a\x1b[31m\x00b\u202ec' second line"


def test_letters_of_any_language_stay():
    assert str(UserError("'é 王 ⟨τ⟩' is unknown")) == "'é 王 ⟨τ⟩' is unknown"


def test_the_middle_of_a_very_long_message_is_left_out():
    message = str(UserError("line 1: 'x" + "9" * 5000 + "': expected a number"))
    assert len(message) < 1010
    assert message.startswith("line 1: 'x99")
    assert message.endswith("9': expected a number")


def test_names_beyond_ascii_in_the_c_locale(tmp_path):
    """With PYTHONUTF8=0 too, where Python could write no such name down."""
    (tmp_path / "Größe").mkdir()
    flags = ["prepare", "folder", "--from=Größe", "--name=t", "--data_dir=Ü"]
    done = subprocess.run(
        [sys.executable, "-m", f"ida_jax.{flags[0]}", *flags[1:]], cwd=tmp_path, text=True,
        capture_output=True, encoding="utf-8",
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Größe" in done.stderr


def test_a_folder_s_name_that_is_not_utf_8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/i/Andr\xe9"
    os.makedirs(folder)
    with open(folder + b"/1.jpg", "wb") as file:
        file.write(b"x")
    for command in (
        ["prepare", "folder", f"--from={tmp_path}/i", "--name=t", f"--data_dir={tmp_path}/d"],
        [
            "anchors",
            "build",
            f"--images={tmp_path}/i",
            "--model=M",
            f"--output={tmp_path}/a.safetensors",
        ],
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"ida_jax.{command[0]}", *command[1:]], capture_output=True,
            text=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "Andr" in done.stderr
        assert "UTF-8" in done.stderr


def test_what_a_terminal_may_have():
    assert printable("Größe τ\n2") == "Größe τ\n2"
    assert printable("a\x1b[31m\r\x00") == "a\\x1b[31m\\r\\x00"
