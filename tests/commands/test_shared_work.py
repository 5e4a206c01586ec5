"""Shards of rescore and embed, which know nothing of one another, and --join."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import reference

from ida_jax import rescore
from ida_jax.common import shards
from ida_jax.common.errors import UserError, exit_code
from ida_jax.common.shards import made_once
from ida_jax.rescoring import job, pairs

FACES = 7 * reference.unit((90, 16), 1, clusters=5)
ANCHORS = 3 * reference.unit((60, 16), 0, clusters=5)
# Sorted, so that a shard needs some of the faces; of rows 40 … 49 none needs any.
ROWS = np.sort(np.random.default_rng(0).integers(90, size=(301, 2)), axis=0)
PAIRS = np.where((ROWS >= 40) & (ROWS < 50), ROWS - 10, ROWS)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "_FACE_SLAB", 8)
    np.save("faces.npy", FACES)
    np.save("anchors.npy", ANCHORS)
    np.save("pairs.npy", PAIRS)
    np.savetxt("pairs.csv", PAIRS, fmt="%d", delimiter=",")
    return tmp_path


_FLAGS = (
    "--embeddings=faces.npy --pairs=pairs.npy --anchors=anchors.npy --output=scores.npy --chunk=32"
)


def _rescore(*more, flags=_FLAGS):
    rescore.main([*flags.split(), *more])


def _hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.bits
@pytest.mark.parametrize(
    ("flags", "count"),
    [(_FLAGS, 1), (_FLAGS, 3), (_FLAGS, 10), (_FLAGS.replace("pairs.npy", "pairs.csv"), 4),
     (f"{_FLAGS} --method=cosine", 2)],
)  # fmt: skip
@pytest.mark.parametrize("tiled", [False, True])
def test_shards_in_any_order_make_the_same_bytes(files, flags, count, tiled, monkeypatch, capsys):
    if tiled:  # 12 tiles a side, most of whose faces are not held by a shard
        monkeypatch.setattr(pairs, "_TILE_BITS", 3)
        monkeypatch.setattr(pairs, "_CELLS_A_PAIR", 16)
    _rescore(flags=flags)
    alone = {name: (files / name).read_bytes() for name in ("scores.npy", "scores.npy.origin.json")}
    for name in alone:
        (files / name).unlink()
    for number in np.random.default_rng(count).permutation(count):
        _rescore(f"--shard={number}/{count}", flags=flags)
        assert not (files / "scores.npy").exists()
    capsys.readouterr()
    _rescore("--join", flags=flags)
    assert "301 scores by" in capsys.readouterr().out
    assert {name: (files / name).read_bytes() for name in alone} == alone
    assert not _hidden(files)


@pytest.mark.parametrize("output", ["keyed.csv", "keyed"])
def test_the_key_column_is_carried(files, output):
    lines = [f"{first},{second},k{7 * n}" for n, (first, second) in enumerate(PAIRS.tolist())]
    (files / "ids.csv").write_text("\n".join(["first,second,id", *lines, ""]))
    flags = _FLAGS.replace("pairs.npy", "ids.csv").replace("scores.npy", output) + " --key=id"
    _rescore(flags=flags)
    alone = _contents(files / output)
    (files / "other").mkdir()
    for number in (2, 0, 1):
        _rescore(f"--shard={number}/3", f"--output=other/{output}", flags=flags)
    with pytest.raises(UserError, match=r"shards of other settings \(key was id, is now None"):
        _rescore("--join", f"--output=other/{output}", flags=flags.removesuffix(" --key=id"))
    _rescore("--join", f"--output=other/{output}", flags=flags)
    assert _contents(files / "other" / output) == alone
    assert not _hidden(files / "other")


def _contents(output):
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name: path.read_bytes() for path in files}


def test_a_missing_shard_is_named_and_nothing_is_lost(files, capsys):
    (files / "scores.npy").write_bytes(b"an earlier one")
    for shard in ("0/4", "3/4", "1/4"):
        _rescore(f"--shard={shard}")
    before = _hidden(files)
    with pytest.raises(UserError, match=r"scores.npy: shard 2/4 is not finished: run --shard=2/4"):
        _rescore("--join")
    assert (files / "scores.npy").read_bytes() == b"an earlier one"
    assert _hidden(files) == before
    (part,) = files.glob(".scores.npy.*/scores-00000.npy")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"2 shards \(0/4, 2/4\) are not finished"):
        _rescore("--join")
    _rescore("--shard=0/4")
    # Without either flag the command makes what is missing itself.
    _rescore()
    assert np.load("scores.npy").shape == (301,)
    assert not _hidden(files)
    with pytest.raises(UserError, match=r"scores\.npy has no shards to join: run this"):
        _rescore("--join")


def test_shards_of_other_settings_are_refused(files):
    _rescore("--shard=0/2")
    np.save("others.npy", FACES[:, ::-1])
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    for change, more in (
        ("tau was None, is now 2.0", ["--tau=2"]),
        ("chunk was 32, is now 16", ["--chunk=16"]),
        (r"embeddings was .*faces\.npy, is now .*others\.npy", ["--embeddings=others.npy"]),
    ):
        for sharing in (["--shard=1/2"], ["--join"], []):
            with pytest.raises(UserError, match=rf"shards of other settings \({change}"):
                _rescore(*more, *sharing)
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before
    faces = (files / "faces.npy").stat()
    os.utime("faces.npy", ns=(faces.st_atime_ns, faces.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"shards of other settings \(embeddings has changed\)"):
        _rescore("--join")
    os.utime("faces.npy", ns=(faces.st_atime_ns, faces.st_mtime_ns))
    _rescore("--shard=1/2")
    _rescore("--join")
    assert not _hidden(files)


def test_a_shard_reads_the_faces_of_its_pairs_alone(files):
    _rescore()
    alone = np.load("scores.npy")
    faces = FACES.copy()
    own = PAIRS[: 32 * 5]  # half of the ten chunks
    others = np.setdiff1d(np.arange(90), own)
    assert len(others) > 20
    faces[others] = np.nan
    np.save("faces.npy", faces)
    _rescore("--shard=0/2")
    made = [np.load(path) for path in sorted(files.glob(".scores.npy.*/scores-*.npy"))]
    np.testing.assert_allclose(np.concatenate(made), alone[: 32 * 5], atol=1e-6)
    with pytest.raises(UserError, match=f"{len(np.intersect1d(PAIRS[160:], others)) - 5} more are"):
        _rescore("--shard=1/2")


def test_mistakes(files, monkeypatch, capsys):
    before = sorted(path.name for path in files.iterdir())
    for text in ("2/2", "-1/2", "1", "1/0", "a/b", "0/2/3", ""):
        with pytest.raises(UserError, match="expected I/N, the share I of 0 … N−1"):
            _rescore(f"--shard={text}")
    with pytest.raises(UserError, match="--shard makes a share and --join needs all of them"):
        _rescore("--shard=0/2", "--join")
    for sharing in ("--shard=0/2", "--join"):
        with pytest.raises(UserError, match=f"--engine=ray and {sharing}: Ray shares the work"):
            _rescore("--engine=ray", sharing)
    with pytest.raises(UserError, match="--output would overwrite --pairs"):
        _rescore("--output=pairs.npy", "--shard=0/2")
    for number, count in (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("PMI_RANK", "PMI_SIZE")):
        with monkeypatch.context() as patch:
            patch.setenv(number, "1")
            patch.setenv(count, "4")
            capsys.readouterr()
            assert exit_code(_rescore) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert f"--shard=${number}/${count}" in said
    np.savetxt("bad.csv", np.r_[PAIRS, [[3, 90]]], fmt="%d", delimiter=",")
    with pytest.raises(UserError, match=r"bad.csv, line 302.*90"):
        _rescore("--pairs=bad.csv", "--shard=1/2")
    (files / "bad.csv").unlink()
    assert sorted(path.name for path in files.iterdir()) == before
    _rescore("--shard=7/64")
    assert "fewer chunks of 32 pairs than shards" in capsys.readouterr().out


# Killed before its third rename: the note, then parts.
_KILLED = textwrap.dedent("""
    import os, signal, sys
    real, calls = os.replace, 0
    def replace(*paths):
        global calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)
    os.replace = replace
    from ida_jax import rescore
    rescore.main(sys.argv[1:])
""")


def test_a_lost_shard_ends_no_other(files, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(files)
    flags = _FLAGS.split()
    _rescore()
    alone = (files / "scores.npy").read_bytes()
    (files / "scores.npy").unlink()
    command = [sys.executable, "-c", _KILLED, *flags, "--shard=1/2"]
    other = [sys.executable, "-m", "ida_jax.rescore", *flags, "--shard=0/2"]
    lost, living = subprocess.Popen(command), subprocess.Popen(other)
    assert lost.wait(120) == -signal.SIGKILL
    assert living.wait(120) == 0
    with pytest.raises(UserError, match="shard 1/2 is not finished"):
        _rescore("--join")
    # In a shell of its own, as a launcher's step runs it.
    line = f"{sys.executable} -m ida_jax.rescore {_FLAGS} --shard=$SLURM_PROCID/$SLURM_NTASKS"
    step = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    subprocess.run(["sh", "-c", line], env=os.environ | step, check=True, timeout=120)
    _rescore("--join")
    assert (files / "scores.npy").read_bytes() == alone
    assert not _hidden(files)


def test_what_all_shards_need_one_of_them_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "_POLL", 0.01)
    path, claim, made = tmp_path / "pairs.npy", tmp_path / ".pairs.npy.claim", []

    def make(lives):
        made.append(claim.exists())
        if len(made) == 1:  # a second one comes
            other.start()
            while "waiting for another shard" not in capsys.readouterr().err:
                lives()
        path.write_bytes(b"rows")

    other = threading.Thread(target=lambda: made_once(path, make, done=path.is_file))
    made_once(path, make, done=path.is_file)
    other.join(10)
    assert made == [True]
    assert not claim.exists()

    # Of a maker that has shown no life for long, or has failed meanwhile, nobody waits for the end.
    for last in (0, time.time()):
        path.unlink()
        claim.touch()
        os.utime(claim, (last, last))
        if last:
            threading.Timer(0.1, claim.unlink).start()
        made_once(path, make, done=path.is_file)
        assert not claim.exists()
    assert len(made) == 3


def test_shards_that_start_at_once_read_a_list_once(files):
    flags = _FLAGS.replace("pairs.npy", "pairs.csv").split()
    command = [sys.executable, "-c", _COUNTED, *flags]
    jobs = [subprocess.Popen([*command, f"--shard={i}/2"]) for i in range(2)]
    assert [job.wait(120) for job in jobs] == [0, 0]
    assert (files / "conversions").read_text() == "one\n"
    _rescore("--join", flags=" ".join(flags))
    assert len(np.load(files / "scores.npy")) == len(PAIRS)
    assert not [name for name in _hidden(files) if "claim" in name]


# All of them come to the list before the first has read it.
_COUNTED = textwrap.dedent("""
    import os, sys, time
    from ida_jax import rescore
    from ida_jax.rescoring import job
    real = job.convert_pairs
    def convert(*args, **kwargs):
        with open("conversions", "a") as file:
            file.write("one\\n")
        time.sleep(0.5)
        real(*args, **kwargs)
    job.convert_pairs = convert
    listed = job._listed
    def together(*args):
        open(f"here-{os.getpid()}", "x").close()
        while sum(name.startswith("here-") for name in os.listdir(".")) < 2:
            time.sleep(0.01)
        return listed(*args)
    job._listed = together
    rescore.main(sys.argv[1:])
""")
