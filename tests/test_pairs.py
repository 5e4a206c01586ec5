import numpy as np
import pytest
import reference

from ida_jax.errors import UserError
from ida_jax.rescoring import pairs as module
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs


def _faces(n=50):
    faces = reference.unit((n, 16), 0, clusters=4)
    log_f = np.random.default_rng(1).uniform(-3, -2, n).astype(np.float32)
    return faces, log_f, np.arange(n) % 7


def _oracle(faces, log_f, i, j, tau):
    cosine = float(faces[i].astype(np.float64) @ faces[j].astype(np.float64))
    if log_f is None:
        return cosine
    return tau * cosine + np.log(np.exp(np.float64(log_f[i])) + np.exp(np.float64(log_f[j])))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize("with_density", [False, True])
def test_score_pairs(count, with_density, monkeypatch):
    monkeypatch.setattr(module, "_PAIR_BLOCK", 8)
    faces, log_f, _ = _faces()
    pairs = np.random.default_rng(2).integers(50, size=(count, 2))
    log_f = log_f if with_density else None
    got = score_pairs(faces, pairs, log_density=log_f, tau=3.0 if with_density else None)
    assert got.dtype == np.float32
    expected = [_oracle(faces, log_f, i, j, 3.0) for i, j in pairs]
    np.testing.assert_allclose(got, np.array(expected).reshape(count), atol=1e-5)
    swapped = score_pairs(faces, pairs[:, ::-1], log_density=log_f, tau=3.0)
    np.testing.assert_array_equal(got, swapped)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 50])
def test_all_pairs_come_once(n, monkeypatch):
    monkeypatch.setattr(module, "_ROW_BLOCK", 16)
    faces, log_f, labels = _faces(max(n, 1))
    faces, log_f, labels = faces[:n], log_f[:n], labels[:n]
    got = score_all_pairs(faces, labels, log_density=log_f, tau=2.0)
    expected = {True: [], False: []}
    for i in range(n):
        for j in range(i + 1, n):
            expected[bool(labels[i] == labels[j])].append(_oracle(faces, log_f, i, j, 2.0))
    np.testing.assert_allclose(np.sort(got.genuine), sorted(expected[True]), atol=1e-5)
    np.testing.assert_allclose(np.sort(got.impostor), sorted(expected[False]), atol=1e-5)


def test_mistakes(monkeypatch):
    faces, log_f, labels = _faces()
    good = np.array([[0, 1], [2, 3]])
    for wrong, message in (
        ({"pairs": np.array([[0, 1], [2, 50]])}, r"pair 1 is \(2, 50\), outside the 50 faces"),
        ({"pairs": np.array([[-1, 1]])}, r"pair 0 is \(-1, 1\)"),
        ({"pairs": good.astype(float)}, r"pairs are float64 \[2, 2\]: expected integers"),
        ({"pairs": np.zeros((2, 3), int)}, r"pairs are int64 \[2, 3\]"),
        ({"faces": 5 * faces}, "row 0 has norm 5, expected 1"),
        ({"faces": np.where(np.arange(50)[:, None] == 3, np.nan, faces)}, "row 3 has norm nan"),
        ({"log_density": log_f, "tau": None}, "without tau"),
        ({"log_density": log_f[:49], "tau": 1.0}, "49 densities for 50 faces"),
        ({"log_density": np.where(log_f == log_f[4], np.inf, log_f), "tau": 1.0}, "face 4 is inf"),
    ):
        arguments = {"faces": faces, "pairs": good} | wrong
        with pytest.raises(UserError, match=message):
            score_pairs(arguments.pop("faces"), arguments.pop("pairs"), **arguments)
    with pytest.raises(UserError, match="7 labels for 50 faces"):
        score_all_pairs(faces, labels[:7])
    monkeypatch.setattr(module, "_MOST_PAIRS", 1000)
    with pytest.raises(UserError, match=r"50 faces make 1,225 pairs, more than the 1,000"):
        score_all_pairs(faces, labels)
