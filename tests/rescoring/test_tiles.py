import jax
import numpy as np
import pytest
import reference

from ida_jax.rescoring.pairs import all_pair_scores, pair_scores, score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import Side, pair_counts, tile_scores


def _side(n, seed):
    rng = np.random.default_rng(seed)
    statistics = rng.uniform(0.2, 2, (n, 2)).astype(np.float32)
    terms = {
        "z_norm": FaceTerms("z_norm", statistics),
        "cosine": FaceTerms("cosine", statistics[:, :0]),
        "dao": FaceTerms("dao", statistics[:, :1], np.float32([1.5])),
    }
    return Side(reference.unit((n, 9), seed), terms)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 7), (7, 3)])
@pytest.mark.parametrize("enrolled", ["rows", "columns"])
def test_one_tile_serves_all_methods(m, n, enrolled):
    rows, columns = _side(m, 0), _side(n, 1)
    got = dict(tile_scores(*jax.device_put((rows, columns)), enrolled=enrolled))
    c = rows.faces.astype(np.float64) @ columns.faces.T.astype(np.float64)
    of_rows, of_columns = (
        side.terms["z_norm"].values.astype(np.float64) for side in (rows, columns)
    )
    first = of_rows[:, None] if enrolled == "rows" else of_columns[None]
    densities = np.exp(of_rows[:, None, 0]) + np.exp(of_columns[None, :, 0])
    expected = {
        "z_norm": (c - first[..., 0]) / first[..., 1],
        "cosine": c,
        "dao": 1.5 * c + np.log(densities),
    }
    assert set(got) == set(expected)
    for name, scores in expected.items():
        np.testing.assert_allclose(got[name], scores, rtol=1e-5, atol=1e-5)


def test_methods_together_score_as_each_alone():
    faces, methods = _side(31, 2)
    labels = np.arange(31) % 5
    pairs = np.random.default_rng(3).integers(31, size=(70, 2))
    listed, every = pair_scores(faces, pairs, methods), all_pair_scores(faces, labels, methods)
    for name, terms in methods.items():
        np.testing.assert_array_equal(listed[name], score_pairs(faces, pairs, terms))
        for got, alone in zip(every[name], score_all_pairs(faces, labels, terms), strict=True):
            np.testing.assert_array_equal(got, alone)
    assert pair_counts(labels) == tuple(scores.size for scores in every["cosine"])
