import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

from ida_jax.common.errors import UserError
from ida_jax.tables import score_output
from ida_jax.tables.labelled_scores import read_scores
from ida_jax.tables.score_output import check_output, write_scores

SUFFIXES = ["npy", "csv", "parquet"]


@given(
    scores=hnp.arrays(np.float32, st.integers(0, 40)),
    size=st.integers(1, 50),
    suffix=st.sampled_from(SUFFIXES),
)
def test_scores_come_back_and_chunks_leave_no_trace(tmp_path_factory, scores, size, suffix):
    folder = tmp_path_factory.mktemp("scores")
    chunks = (scores[start : start + size] for start in range(0, len(scores), size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_output, "_BLOCK", 16)
        write_scores(folder / f"a.{suffix}", chunks, len(scores))
        write_scores(folder / f"b.{suffix}", iter([scores]), len(scores))
    content = (folder / f"a.{suffix}").read_bytes()
    assert content == (folder / f"b.{suffix}").read_bytes()
    if suffix == "npy":
        back = np.load(folder / "a.npy")
        assert back.dtype == np.float32
    elif suffix == "csv":
        lines = content.decode().split("\n")
        assert lines[0] == "score"
        assert lines[-1] == ""
        back = np.array(lines[1:-1], dtype=np.float64).astype(np.float32)
        assert all(text == "nan" for text in np.array(lines[1:-1])[np.isnan(scores)])
    else:
        table = parquet.read_table(folder / "a.parquet")
        assert table.column_names == ["score"]
        back = table["score"].to_numpy()
        assert back.dtype == np.float32
    np.testing.assert_array_equal(back, scores)
    if len(scores):
        again = read_scores(folder / f"a.{suffix}").astype(np.float32)
        np.testing.assert_array_equal(again, scores)


def test_csv_digits(tmp_path):
    scores = np.array([0.1, -2.5, 1e-5, np.nan, 1 / 3], np.float32)
    write_scores(tmp_path / "s.csv", [scores], 5)
    assert (tmp_path / "s.csv").read_text() == "score\n0.1\n-2.5\n0.00001\nnan\n0.33333334\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_number_of_scores_leaves_the_output(tmp_path, suffix):
    path = tmp_path / f"s.{suffix}"
    path.write_text("before")
    scores = np.zeros(10, np.float32)
    for chunks, count in (([scores], 11), ([scores], 9), ([], 1), ([scores, scores], 10)):
        with pytest.raises(ValueError, match=f"for {count} pairs"):
            write_scores(path, chunks, count)
    with pytest.raises(ValueError, match=r"shape \[2, 5\]"):
        write_scores(path, [scores.reshape(2, 5)], 10)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_outputs_are_refused_before_the_work(tmp_path):
    check_output(tmp_path / "s.npy")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"ends in '.txt': scores are one of .npy, .csv, .parquet"):
        check_output(tmp_path / "s.txt")
    with pytest.raises(UserError, match=r"cannot write .*no/s.csv: No such file"):
        check_output(tmp_path / "no" / "s.csv")
    (tmp_path / "s.parquet").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        check_output(tmp_path / "s.parquet")


# The limit on a file's size is the nearest to a full disk that needs no rights: a real OSError,
# once the signal that comes with it is ignored.
_FULL_DISK = """
import resource, signal, sys
import numpy as np
from ida_jax.common.errors import exit_code
from ida_jax.tables.score_output import write_scores
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
scores = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
sys.exit(exit_code(lambda: write_scores(sys.argv[1], [scores], len(scores))))
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line_and_keeps_the_output(tmp_path, suffix):
    path = tmp_path / f"s.{suffix}"
    path.write_text("before")
    ended = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: cannot write {path}: ")
    assert ended.stderr.count("\n") == 1
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(tmp_path):
    (tmp_path / "disk" / "scores").mkdir(parents=True)
    (tmp_path / "scores").symlink_to(tmp_path / "disk" / "scores")
    for value in (1.0, 2.0):
        write_scores(tmp_path / "scores", [np.full(3, value, np.float32)], 3)
        assert read_scores(tmp_path / "disk" / "scores").tolist() == [value] * 3
    assert (tmp_path / "scores").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["scores"]
