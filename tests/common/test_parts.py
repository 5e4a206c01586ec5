import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.common.parts import (
    Parts,
    Shard,
    cut,
    folder_beside,
    is_sealed,
    key_of,
    remove_empty,
    remove_parts,
    seal,
    stamp,
    write_npy,
)


def _squares(rows):
    return np.square(np.arange(rows.start, rows.stop, dtype=np.float32))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17])
@pytest.mark.parametrize("size", [1, 7, 8, 9])
def test_every_row_is_in_one_part_and_in_its_place(tmp_path, rows, size):
    parts = Parts(tmp_path, rows, size)
    asked = []
    whole = parts.whole(lambda part: asked.append(part) or _squares(part))
    np.testing.assert_array_equal(whole, _squares(range(rows)))
    assert whole.dtype == np.float32
    assert [row for part in asked for row in part] == list(range(rows))
    assert len(asked) == -(-rows // size)
    assert all(len(part) == size for part in asked[:-1])
    assert asked == cut(rows, size) == [part.rows for part in parts]
    assert {path.name for path in tmp_path.iterdir()} == {f"from-{p.start:09}.npy" for p in asked}
    assert not parts.left()


def test_rows_may_be_vectors_and_parts_numbered(tmp_path):
    parts = Parts(tmp_path, 5, 2, name="faces-{number:05d}.npy")
    whole = parts.whole(lambda rows: np.stack([_squares(rows)] * 3, axis=1), (3,))
    np.testing.assert_array_equal(whole, np.stack([_squares(range(5))] * 3, axis=1))
    assert [part.path.name for part in parts] == [f"faces-0000{i}.npy" for i in range(3)]
    assert Parts(tmp_path, 0, 2).whole(_squares, (3,)).shape == (0, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_shards_share_the_same_parts_out(tmp_path, count):
    parts = Parts(tmp_path, 9, 2)
    shards = [Shard(number, count) for number in range(count)]
    shares = [parts.left(shard) for shard in shards]
    assert [part for share in shares for part in share] == list(parts)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    parts.write(tmp_path / "from-000000004.npy", _squares(range(4, 6)))
    # What is there belongs to nobody's rest, and nobody takes over another's.
    for shard, share in zip(shards, shares, strict=True):
        assert parts.left(shard) == [part for part in share if part.rows.start != 4]


# Each run is killed where its second new part would appear.
_KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    real, calls = os.replace, 0
    def replace(*paths):
        global calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)
    os.replace = replace
    from ida_jax.common.parts import Parts
    parts = Parts(Path(sys.argv[1]), 9, 2)
    parts.whole(lambda rows: np.square(np.arange(rows.start, rows.stop, dtype=np.float32)))
""")


def test_killed_between_parts_it_goes_on(tmp_path):
    for kills in range(6):
        run = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)])
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob("from-*.npy"))) == kills + 1
    assert kills == 4  # five parts: a run makes one and dies at the next, the last makes one alone
    # What was being written when a run was killed is no part, and is beside them.
    assert len(list(tmp_path.glob(".from-*"))) == 4
    asked = []
    whole = Parts(tmp_path, 9, 2).whole(asked.append)
    np.testing.assert_array_equal(whole, _squares(range(9)))
    assert not asked


def test_what_is_there_is_taken_and_only_the_rest_is_made(tmp_path):
    parts = Parts(tmp_path, 9, 4)
    parts.write(tmp_path / "from-000000004.npy", np.full(4, -1, np.float32))
    asked = []
    whole = parts.whole(lambda rows: asked.append(rows) or _squares(rows))
    assert asked == [range(4), range(8, 9)]
    np.testing.assert_array_equal(whole, [0, 1, 4, 9, -1, -1, -1, -1, 64])
    # A caller's own rule for what is done: here, nothing ever.
    strict = Parts(tmp_path, 9, 4, done=lambda _: False)
    np.testing.assert_array_equal(strict.whole(_squares), _squares(range(9)))


def test_a_failing_part_leaves_no_file(tmp_path):
    def write(path, values):
        raise UserError("no room")

    def make(rows):
        if rows.start == 4:
            raise KeyboardInterrupt
        return _squares(rows)

    with pytest.raises(UserError, match="no room"):
        Parts(tmp_path, 9, 4, write=write).whole(_squares)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path, 9, 4).whole(make)
    assert [path.name for path in tmp_path.iterdir()] == ["from-000000000.npy"]
    with pytest.raises(UserError, match=r"cannot write .*absent"):
        Parts(tmp_path / "absent", 9, 4).whole(_squares)


@pytest.mark.parametrize("kept", [0, 1, 60, -1])
def test_a_torn_part_is_named_and_made_again(tmp_path, kept, capsys):
    parts = Parts(tmp_path, 9, 4)
    parts.whole(_squares)
    path = tmp_path / "from-000000004.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"from-000000004.npy is damaged .*delete it and run"):
        list(parts.values())
    assert [part.path for part in parts.left()] == [path]
    assert capsys.readouterr().err.count("from-000000004.npy is damaged (") == 1
    path.write_bytes(b"")
    np.testing.assert_array_equal(parts.whole(_squares), _squares(range(9)))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "from-000000004.npy is damaged (" in told
    assert "): it is made again" in told
    assert not parts.left()


@pytest.mark.parametrize("first", range(0, 168, 5))
def test_a_part_filled_with_zeros_or_one_flipped_bit_is_made_again(tmp_path, first):
    parts = Parts(tmp_path, 12, 4)
    parts.whole(_squares)
    for path, change in (("from-000000000.npy", "zeros"), ("from-000000008.npy", "bit")):
        content = bytearray((tmp_path / path).read_bytes())
        assert len(content) == 128 + 4 * 4 + 8 + 16
        if change == "zeros":
            content[first:] = bytes(len(content) - first)
        else:
            content[first % len(content)] ^= 4
        (tmp_path / path).write_bytes(content)
    assert len(parts.left()) == 2
    np.testing.assert_array_equal(parts.whole(_squares), _squares(range(12)))


def test_parts_of_older_versions_are_taken(tmp_path):
    np.save(tmp_path / "from-000000000.npy", np.full(4, -1, np.float32))
    np.testing.assert_array_equal(Parts(tmp_path, 4, 4).whole(_squares), [-1] * 4)


def test_a_sealed_file_is_what_was_sealed(tmp_path):
    path = tmp_path / "pairs.npy"
    assert not is_sealed(path)
    write_npy(path, np.arange(6).reshape(3, 2))
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), [[0, 1], [2, 3], [4, 5]])
    whole = path.read_bytes()
    for torn in (b"", whole[:-1], whole[:-24], whole[:100] + bytes(len(whole) - 100)):
        path.write_bytes(torn)
        assert not is_sealed(path)


def test_pickled_parts_are_refused(tmp_path):
    np.save(tmp_path / "from-000000000.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        list(Parts(tmp_path, 1, 1).values())


def test_another_jobs_parts_are_in_another_folder(tmp_path):
    output = tmp_path / "E.npy"
    ours, theirs = (folder_beside(output, key_of([setting])) for setting in ("ours", "theirs"))
    Parts(theirs, 3, 2).whole(lambda rows: -_squares(rows))
    np.testing.assert_array_equal(Parts(ours, 3, 2).whole(_squares), _squares(range(3)))
    assert folder_beside(output, key_of(["ours"])) == ours
    others = [
        tmp_path / f".{name}" for name in ("E.npy.gz.0123.parts", "E.npz.0123.parts", "other")
    ]
    for folder in others:
        folder.mkdir()
    (tmp_path / ".E.npy.abcd_123").write_bytes(b"half of an output")
    remove_parts(output)
    assert sorted(tmp_path.iterdir()) == sorted(others)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*file/E.npy"):
        folder_beside(tmp_path / "file" / "E.npy", "0123")


def test_another_jobs_parts_in_one_folder_are_refused_by_their_reader(tmp_path):
    def job(name):
        def write(path, values):
            write_npy(path, np.append(values, name))

        def read(path):
            *values, made_by = np.load(path)
            if made_by != name:
                raise UserError(f"{path} is another job's")
            return values

        return Parts(tmp_path, 3, 2, write=write, read=read)

    np.testing.assert_array_equal(job(1).whole(_squares), [0, 1, 4])
    np.testing.assert_array_equal(job(1).whole(_squares), [0, 1, 4])
    with pytest.raises(UserError, match="is another job's"):
        job(2).whole(_squares)


def test_keys_and_stamps_tell_jobs_apart(tmp_path):
    assert key_of([1, "a"]) == key_of([1, "a"]) != key_of([1, "b"])
    assert key_of({"a": 1, "b": tmp_path}) == key_of({"b": tmp_path, "a": 1})
    assert key_of([1], digits=16).startswith(key_of([1]))
    assert len(key_of([1])) == 12
    path = tmp_path / "x"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = stamp(path)
    assert stamp(path) == before
    os.utime(path, ns=(1, 2))
    touched = stamp(path)
    path.write_bytes(b"more")
    os.utime(path, ns=(1, 2))
    assert before != touched != stamp(path) != before


def test_a_folder_goes_only_where_nothing_in_it_is_finished(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / ".from-000000000.npy.abcd1234").write_bytes(b"half")
    remove_empty(folder)
    remove_empty(folder)  # and another process has removed it
    assert not folder.exists()
    folder.mkdir()
    write_npy(folder / "from-000000000.npy", np.zeros(1))
    remove_empty(folder)
    assert folder.is_dir()
