import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ida_jax.common import outputs
from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.outputs import refuse_overwriting, writing


def _refused(inputs, outputs, **more):
    with pytest.raises(UserError, match=r"would overwrite|are one file|the next time") as caught:
        refuse_overwriting(inputs, outputs, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_told_by_identity(tmp_path, monkeypatch):
    source = tmp_path / "in" / "E.npy"
    source.parent.mkdir()
    source.write_bytes(b"faces")
    (tmp_path / "link.npy").symlink_to(source)
    os.link(source, tmp_path / "hard.npy")
    (tmp_path / "folder").symlink_to(source.parent)
    monkeypatch.chdir(source.parent)
    for name in (source, "E.npy", "../in/./E.npy", tmp_path / "link.npy", tmp_path / "hard.npy",
                 tmp_path / "folder" / "E.npy"):  # fmt: skip
        said = _refused({"--embeddings": source, "--names": None}, {"--output": name})
        assert "--output would overwrite --embeddings" in said
    refuse_overwriting({"--embeddings": source, "--names": None}, {"--output": "S.npy"})
    # Where letter case makes no other file, the system says so of files that exist.
    refuse_overwriting({"--embeddings": source}, {"--output": "e.npy"})
    # An input that is absent is another message's.
    refuse_overwriting({"--embeddings": tmp_path / "absent"}, {"--output": "S.npy"})


def test_two_outputs_are_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = _refused({}, {"--json": "x", "--plot": tmp_path / "x"})
    assert "--plot and --json are one file" in said
    refuse_overwriting({}, {"--json": "x", "--plot": None, "--calibration": "y"})


def test_devices_pipes_and_folders_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "link.npy").symlink_to(os.devnull)
    (tmp_path / "scores.npy").mkdir()
    for path in (tmp_path / "pipe.npy", tmp_path / "link.npy", "/dev/stdout", "/dev/fd/1"):
        with pytest.raises(UserError, match="a device or a pipe: name a file"):
            refuse_overwriting({}, {"--json": path})
        with pytest.raises(UserError, match="a device or a pipe: name a folder"):
            refuse_overwriting({}, {}, folders={"--output": path})
    with pytest.raises(UserError, match=r"--json is .*, a folder: name a file"):
        refuse_overwriting({}, {"--json": tmp_path / "scores.npy"})
    refuse_overwriting({}, {}, folders={"--output": tmp_path / "scores.npy"})
    (tmp_path / "folder").mkdir()
    refuse_overwriting({}, {"--output": tmp_path / "folder"})


def test_a_folder_neither_holds_an_input_nor_lies_in_one(tmp_path):
    crops = tmp_path / "crops"
    (crops / "ann").mkdir(parents=True)
    for folder in (crops, tmp_path, crops / "set" / "1.0.0"):
        _refused({"--from": crops}, {}, folders={"--data_dir": folder})
    for folder in (tmp_path / "set", tmp_path / "crops2"):
        refuse_overwriting({"--from": crops}, {}, folders={"--data_dir": folder})
    # A file among images is no image.
    refuse_overwriting({"--images": crops}, {"--output": crops / "E.npy"})


_HOLDS = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from ida_jax.common.outputs import writing
    folder = Path(sys.argv[2]) if sys.argv[2:] else None
    with writing({"--output": sys.argv[1]}, reading={}, folder=folder):
        print("holds", flush=True)
        time.sleep(60)
""")


def _holder(*paths):
    command = [sys.executable, "-c", _HOLDS, *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    return process


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_second_job_is_refused_and_a_dead_ones_lock_taken_over(tmp_path, as_folder):
    output, folder = tmp_path / "run" / "S.npy", tmp_path / "run" if as_folder else None
    if not as_folder:
        output.parent.mkdir()
    process = _holder(*filter(None, (output, folder)))
    (tmp_path / "other").symlink_to(tmp_path / "run")
    try:
        for name in ("run", "other"):
            here = tmp_path / name
            with (
                pytest.raises(UserError) as caught,
                writing({"-o": here / "S.npy"}, reading={}, folder=here if as_folder else None),
            ):
                raise AssertionError
            said = str(caught.value)
            assert f"is being written by process {process.pid} on {socket.gethostname()}" in said
            assert "\n" not in said
        if not as_folder:
            with writing({"-o": output.with_name("T.npy")}, reading={}):
                pass  # another output
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [path.name for path in output.parent.iterdir()] == [
        ".lock" if as_folder else ".S.npy.lock"
    ]
    with writing({"-o": output}, reading={}, folder=folder):
        output.write_bytes(b"scores")
    assert [path.name for path in output.parent.iterdir()] == ["S.npy"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"3", b"\xff", b"[" * 9000, b'{"pid": 1' + b"0" * 400 + b"}",
        b'{"pid": "7", "host": [1], "since": 1e999}', b'{"host": null, "since": NaN, "pid": -1}',
    ],
)  # fmt: skip
def test_a_lock_that_says_nothing_of_use_is_taken_over(tmp_path, content):
    (tmp_path / ".S.npy.lock").write_bytes(content)
    with writing({"-o": tmp_path / "S.npy"}, reading={}):
        pass
    (tmp_path / ".S.npy.lock").write_bytes(
        b'{"host": "else\\u001b[31mwhere", "pid": 1' + b"0" * 400 + b', "since": 1e999}'
    )
    with (
        pytest.raises(UserError, match=r"else\\x1b\[31mwhere: wait"),
        writing({"-o": tmp_path / "S.npy"}, reading={}),
    ):
        pass


def test_another_hosts_lock_says_its_age_and_how_to_go_on(tmp_path):
    lock, output = tmp_path / ".S.npy.lock", tmp_path / "S.npy"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": time.time() - 3 * 3600}))
    told = rf"process 7 on elsewhere, for 3 h: .*if that process has ended, delete {lock}"
    with pytest.raises(UserError, match=told), writing({"-o": output}, reading={}):
        raise AssertionError
    lock.unlink()
    # Killed before it said who it was, or with a page of zeros: nobody holds it.
    for content in (b"", b"\0" * 99, b"[1]"):
        lock.write_bytes(content)
        with writing({"-o": output}, reading={}):
            pass
        assert not lock.exists()


def test_one_of_many_at_once_gets_it(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from ida_jax.common.outputs import writing
        with writing({"-o": sys.argv[1]}, reading={}):
            handle = open(sys.argv[1] + ".one", "x")
            time.sleep(0.05)
            import os; os.unlink(sys.argv[1] + ".one")
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "S.npy")]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    said = [job.communicate()[1] for job in jobs]
    assert any(job.returncode == 0 for job in jobs)
    assert not any("FileExistsError" in text for text in said)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_goes(tmp_path):
    output, parts = tmp_path / "S[1].npy", tmp_path / ".S[1].npy.0123.parts"
    parts.mkdir()
    kept = [tmp_path / ".S[1].npy.note", tmp_path / ".S1.npy.abcd1234.tmp", parts / "part.npy"]
    for path in kept:
        path.write_bytes(b"")
    for path, folder in ((output, tmp_path), (parts / "part.npy", parts)):
        with written_whole(path) as temporary:
            os.link(temporary, folder / f".{path.name}.abcd1234.tmp")
            temporary.write_bytes(b"half")
    with writing({"-o": output}, reading={}):
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert sorted(found) == sorted([*kept, output, tmp_path / ".S[1].npy.lock"])


def test_a_folders_job_removes_nothing_that_another_may_be_writing(tmp_path):
    """The temporary files of its own, and those alone: as of a job in a folder of many things."""
    beside = tmp_path / ".S.npy.abcd1234.tmp"
    shared = tmp_path / ".E.npy.0123.parts" / ".0.npy.abcd1234.tmp"
    folders = tmp_path / "other" / ".results.json.abcd1234.tmp"
    deep = tmp_path / "crops" / "of" / "people" / ".1.jpg.abcd1234.tmp"
    own = [tmp_path / ".results.json.abcd1234.tmp", tmp_path / "anchors" / ".A.abcd1234.tmp"]
    for path in (beside, shared, folders, deep, *own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with (
        writing({"-o": tmp_path / "S.npy"}, reading={}),
        writing({}, reading={}, folder=tmp_path / "other"),
    ):
        for path in (beside, folders):
            path.write_bytes(b"half")
        with writing({}, reading={}, folder=tmp_path):
            assert all(path.exists() for path in (beside, shared, folders, deep))
            assert not any(path.exists() for path in own)


def test_the_root_folder_is_no_output():
    with pytest.raises(UserError, match="-o is /, the root of all folders: name one in it"):
        refuse_overwriting({}, {"-o": "/"})
    with pytest.raises(UserError, match="root"), writing({}, reading={}, folder=Path("/")):
        raise AssertionError


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    folder = tmp_path / "a" / "b"
    with writing({}, reading={}, folder=folder):
        assert (folder / ".lock").is_file()
    assert not folder.exists()
    with writing({}, reading={}, folder=folder):
        (folder / "results.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_where_no_lock_can_be_written_one_line_says_so(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*S\.npy: No such file.*; name a writable"),
        writing({"-o": tmp_path / "absent" / "S.npy"}, reading={}),
    ):
        raise AssertionError


def test_without_the_file_systems_locks_the_one_that_made_the_file_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_hold", lambda handle: None)
    output, lock = tmp_path / "S.npy", tmp_path / ".S.npy.lock"
    with writing({"-o": output}, reading={}):
        with (
            pytest.raises(UserError, match=f"by process {os.getpid()} on"),
            writing({"-o": output}, reading={}),
        ):
            raise AssertionError
        assert lock.exists()

    # Another host's process has made it, and says who it is a moment later.
    def other_host(seconds):
        assert seconds < 1
        lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": time.time()}))

    lock.touch()
    monkeypatch.setattr(outputs.time, "sleep", other_host)
    with (
        pytest.raises(UserError, match="by process 7 on elsewhere"),
        writing({"-o": output}, reading={}),
    ):
        raise AssertionError
