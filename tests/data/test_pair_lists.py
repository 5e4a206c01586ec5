import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.labelled_pairs import (
    consecutive_pairs,
    kfold_pairs,
    read_calfw_pairs,
    read_lfw_pairs,
)
from ida_jax.metrics.kfold import kfold_accuracy


def available(labels, rows):
    """(genuine, impostor) pairs among the given rows."""
    same = labels[rows][:, None] == labels[rows]
    upper = np.triu(np.ones_like(same), 1)
    return int((same & upper).sum()), int((~same & upper).sum())


@given(
    st.lists(st.integers(1, 9), min_size=8, max_size=30),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_lists_keep_their_promises(faces, folds, count, seed):
    faces = [*faces, 2, 2, 2, 2]
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(rng.permutation(len(faces)) * 3 - 7, faces))
    pairs, same, fold = kfold_pairs(labels, pairs_per_fold_and_kind=count, folds=folds, seed=seed)
    assert (pairs.dtype, same.dtype, fold.dtype) == (np.int32, bool, np.int32)

    first, second = labels[pairs].T
    np.testing.assert_array_equal(first == second, same)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(np.unique(np.sort(pairs, axis=1), axis=0)) == len(pairs)

    length = len(pairs) // folds
    assert 2 <= length <= 2 * count
    np.testing.assert_array_equal(fold, np.repeat(np.arange(folds), length))
    np.testing.assert_array_equal(same, np.tile(np.repeat([True, False], length // 2), folds))
    seen = [set(labels[pairs[fold == f]].ravel()) for f in range(folds)]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_poorest_fold_decides_and_is_used_up():
    labels = np.repeat(np.arange(6), [5, 4, 3, 2, 1, 1])
    pairs, same, _ = kfold_pairs(labels, folds=2)
    # The folds hold 5, 3, 1 and 4, 2, 1 faces: 13 and 7 genuine pairs, 23 and 14 impostor pairs.
    assert len(pairs) == 2 * 2 * 7
    poor = pairs[np.isin(labels[pairs[:, 0]], [1, 3, 5])]
    assert len(poor) == 14
    genuine_there = available(labels, np.flatnonzero(np.isin(labels, [1, 3, 5])))[0]
    assert same[np.isin(labels[pairs[:, 0]], [1, 3, 5])].sum() == genuine_there == 7


def test_impostor_pairs_can_be_the_scarce_kind():
    labels = np.repeat([0, 1], [9, 1])
    pairs, same, _ = kfold_pairs(labels, folds=1)
    assert (len(pairs), same.sum()) == (18, 9)
    # Every face of the one meets the other's only face.
    assert set(pairs[~same].ravel()) == set(range(10))


def test_genuine_pairs_are_spread_over_identities():
    labels = np.repeat(np.arange(20), [200] + [3] * 19)
    pairs, same, _ = kfold_pairs(labels, pairs_per_fold_and_kind=40, folds=1)
    per_identity = np.bincount(labels[pairs[same][:, 0]], minlength=20)
    np.testing.assert_array_equal(np.unique(per_identity), [2])


def test_seed_decides():
    labels = np.repeat(np.arange(40), 5)
    one, again, other = (kfold_pairs(labels, seed=seed).pairs for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_identities_and_faces_take_part():
    labels = np.repeat(np.arange(40), 4)
    pairs, _, _ = kfold_pairs(labels, pairs_per_fold_and_kind=300, folds=4)
    assert set(pairs.ravel()) == set(range(160))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([[1, 1], [2, 2]], {}, "one integer per face"),
        ([0.5, 0.5], {}, "one integer per face"),
        (np.repeat(np.arange(19), 3), {}, "19 identities"),
        (np.arange(100), {}, "0 of them with two faces"),
        (np.repeat(np.arange(40), 3), {"folds": 0}, "at least 1"),
        (np.repeat(np.arange(40), 3), {"pairs_per_fold_and_kind": 0}, "at least 1"),
    ],
)
def test_labels_that_cannot_serve_are_the_users_mistake(labels, options, message):
    with pytest.raises(UserError, match=message):
        kfold_pairs(labels, **options)


NAMES = [f"{who}/{who}_{i:04d}" for who in ("Ann", "Bo", "Cy") for i in (1, 2, 12)]
LINES = ["2\t1", "Ann\t1\t12", "Ann\t2\tBo\t1", "Cy\t12\t1", "Bo\t2\tCy\t2"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_reads_a_small_list(tmp_path, ending, start):
    path = tmp_path / "pairs.txt"
    path.write_bytes((start + ending.join(LINES) + ending).encode())
    pairs, same, fold = read_lfw_pairs(path, NAMES)
    np.testing.assert_array_equal(pairs, [[0, 2], [1, 3], [8, 6], [4, 7]])
    np.testing.assert_array_equal(same, [True, False, True, False])
    np.testing.assert_array_equal(fold, [0, 0, 1, 1])
    assert (pairs.dtype, same.dtype, fold.dtype) == (np.int32, bool, np.int32)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "10", ":1: expected the number of folds"),
        (1, "two\t1", ":1: expected the number of folds"),
        (1, "0\t1", ":1: expected the number of folds"),
        (1, "2\t2", "found 4 pairs, but the first line promises 8"),
        (2, "Ann\t1\tBo\t2", ":2: found 4 fields, a genuine pair is 'NAME i j'"),
        (3, "Ann\t1\t2", ":3: found 3 fields, an impostor pair is"),
        (4, "Cy\t12\tone", ":4: found 'one'"),
        (5, "Bo\t2\tDi\t2", ":5: Di/Di_0002 is not among the 9 names"),
        (5, "Bo\t3\tCy\t2", ":5: Bo/Bo_0003 is not among the 9 names"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, text, message):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join([*LINES[: line - 1], text, *LINES[line:]]))
    with pytest.raises(UserError, match=message) as caught:
        read_lfw_pairs(path, NAMES)
    assert str(path) in str(caught.value)


def test_unreadable_files_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt"):
        read_lfw_pairs(tmp_path / "absent.txt", NAMES)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"10\t300\n\xff\xfe")
    with pytest.raises(UserError, match=r"binary\.txt"):
        read_lfw_pairs(binary, NAMES)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty\.txt:1"):
        read_lfw_pairs(empty, NAMES)


def test_a_name_given_twice_is_the_users_mistake(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(LINES))
    with pytest.raises(UserError, match="only 9 of them different"):
        read_lfw_pairs(path, [*NAMES, NAMES[0]])


def test_lfw_itself(shared_data):
    folder = shared_data / "lfw"
    names = (folder / "names.txt").read_text().split()
    pairs, same, fold = read_lfw_pairs(folder / "pairs.txt", names)
    assert pairs.shape == (6000, 2)
    np.testing.assert_array_equal(np.bincount(fold), 600)
    people = np.array([name.split("/")[0] for name in names])
    np.testing.assert_array_equal(people[pairs[:, 0]] == people[pairs[:, 1]], same)
    assert names[pairs[0, 1]] == "Abel_Pacheco/Abel_Pacheco_0004"

    faces = np.load(folder / "mobilefacenet_embeddings.npy")
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    result = kfold_accuracy(np.sum(faces[pairs[:, 0]] * faces[pairs[:, 1]], axis=1), same)
    assert 0.98 < result.mean < 1


def _calfw_lines():
    genuine = [(f"A_{i:04d}.jpg", f"A_{i + 1:04d}.jpg", 1 + i // 3) for i in range(6)]
    impostor = [(f"A_{i:04d}.jpg", f"B_{i:04d}.jpg", 0) for i in range(5)]
    return [f"{name} {fold}" for *pair, fold in genuine + impostor for name in pair]


CALFW_NAMES = [f"A/A_{i:04d}.png" for i in range(7)] + [f"B_{i:04d}" for i in range(5)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_calfw_pairs(tmp_path, end):
    path = tmp_path / "pairs_CALFW.txt"
    path.write_bytes(("\ufeff" + end.join(_calfw_lines()) + end + end).encode())
    found = read_calfw_pairs(path, CALFW_NAMES)
    assert found.same.tolist() == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 2
    assert found.fold.tolist() == [0] * 6 + [1] * 5
    assert found.pairs[:4].tolist() == [[0, 1], [1, 2], [2, 3], [0, 7]]
    assert found.pairs[6:].tolist() == [[3, 4], [4, 5], [5, 6], [3, 10], [4, 11]]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "A_0001.jpg 2", "2: fold 2 after 1"),
        (0, "A_0000.jpg", "1: expected 'IMAGE FOLD'"),
        (2, "C_0001.jpg 1", "3: C_0001.jpg is not among the 12 names"),
        (21, "", "found 21 lines"),
    ],
)
def test_calfw_mistakes_name_the_line(tmp_path, line, text, message):
    lines = _calfw_lines()
    lines[line] = text
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        read_calfw_pairs(path, CALFW_NAMES)


def test_calfw_needs_both_kinds_in_every_fold(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(_calfw_lines()[:12]))
    with pytest.raises(UserError, match="0 impostor pairs"):
        read_calfw_pairs(path, CALFW_NAMES)


@pytest.mark.parametrize("pairs", [9, 10, 11, 21])
def test_consecutive_pairs(pairs):
    same = np.arange(pairs) % 3 == 0
    found = consecutive_pairs(same, folds=9)
    assert found.pairs.tolist() == [[2 * i, 2 * i + 1] for i in range(pairs)]
    np.testing.assert_array_equal(found.same, same)
    assert np.all(np.diff(found.fold) >= 0)
    sizes = np.bincount(found.fold)
    assert sizes.size == 9
    assert sizes.max() - sizes.min() <= 1
    with pytest.raises(UserError, match=f"of {pairs} pairs"):
        consecutive_pairs(same, folds=pairs + 1)
