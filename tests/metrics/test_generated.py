import numpy as np
import pytest
from scipy.linalg import sqrtm

from ida_jax.common.errors import UserError
from ida_jax.metrics import frechet as module
from ida_jax.metrics.frechet import frechet_distance, precision_recall


def cloud(seed, n, d, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + mean


def with_moments(seed, n, mean, covariance):
    """Rows [n, D] whose mean and covariance (n − 1) are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    rows -= rows.mean(axis=0)
    own = np.linalg.cholesky(np.cov(rows, rowvar=False))
    return rows @ np.linalg.inv(own).T @ np.linalg.cholesky(covariance).T + mean


def brute_share_within(faces, others, k):
    inside = 0
    radii = [np.sort(np.delete(np.linalg.norm(others - row, axis=1), i))[k - 1]
             for i, row in enumerate(others)]  # fmt: skip
    for face in faces:
        inside += bool(np.any(np.linalg.norm(others - face, axis=1) <= radii))
    return inside / len(faces)


def test_distance_of_gaussians_with_known_moments():
    a, b = np.diag([4.0, 1.0, 0.25]), np.diag([1.0, 9.0, 0.25])
    real = with_moments(0, 31, np.array([1.0, 2.0, 3.0]), a)
    made = with_moments(1, 17, np.array([0.0, 2.0, 5.0]), b)
    # Covariances that commute: Σ (σ₁ − σ₂)² = (2 − 1)² + (1 − 3)².
    assert frechet_distance(real, made) == pytest.approx(1 + 4 + 1 + 4, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(301, 57, 13), (40, 33, 7), (9, 300, 20)])
def test_distance_is_that_of_the_matrix_root(n, m, d):
    real, made = cloud(2, n, d), cloud(3, m, d, mean=0.3)
    of_real, of_made = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    if min(n, m) <= d:  # sqrtm wants a matrix of full rank
        of_real, of_made = (each + 1e-13 * np.eye(d) for each in (of_real, of_made))
    root = sqrtm(of_real @ of_made).real
    shift = np.sum((real.mean(axis=0) - made.mean(axis=0)) ** 2)
    expected = shift + np.trace(of_real + of_made - 2 * root)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(made, real) == pytest.approx(frechet_distance(real, made), rel=1e-12)


def test_distance_of_lines_and_of_single_numbers():
    # Of rank 1: along x and along y the product of the covariances is 0.
    along = np.linspace(-1, 1, 5)[:, None]
    x, y = along * np.array([[1.0, 0.0]]), along * np.array([[0.0, 1.0]])
    assert frechet_distance(x, y) == pytest.approx(2 * np.var(along, ddof=1), rel=1e-12)
    assert frechet_distance(along, 3 * along + 1) == pytest.approx(
        1 + 4 * np.var(along, ddof=1), rel=1e-12
    )


def test_identical_clouds():
    rows = cloud(4, 203, 11).astype(np.float32)
    variance = np.trace(np.cov(rows, rowvar=False))
    assert 0 <= frechet_distance(rows, rows[::-1]) < 1e-12 * variance
    assert precision_recall(rows, rows) == (1, 1)
    assert type(precision_recall(rows, rows).recall) is float


@pytest.mark.parametrize(("n", "m", "k"), [(61, 45, 3), (7, 30, 6), (40, 9, 1)])
@pytest.mark.parametrize("tile", [(1024, 2048), (7, 5), (1, 64)])
def test_precision_and_recall_by_brute_force(n, m, k, tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    real, made = cloud(5, n, 4), 0.7 * cloud(6, m, 4, mean=0.5)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    found = precision_recall(real, made, k=k)
    assert found.precision == brute_share_within(made, real, k)
    assert found.recall == brute_share_within(real, made, k)
    assert 0 < found.precision < 1 or 0 < found.recall < 1


def test_disjoint_clouds():
    real = cloud(7, 33, 5)
    assert precision_recall(real, real + 1e4) == (0, 0)


def test_one_mode_is_precise_and_has_no_recall():
    real = np.concatenate([cloud(8, 50, 3), cloud(9, 51, 3, mean=1e3)])
    copies = np.repeat(real[:10], 4, axis=0)
    found = precision_recall(real, copies)
    assert found.precision == 1
    # Four copies each: the third nearest other row of each is a copy, and its ball a point.
    assert found.recall == 10 / 101


def test_figures_depend_on_the_space_s_scale_as_they_should():
    real, made = cloud(10, 50, 6), cloud(11, 41, 6)
    assert frechet_distance(3 * real, 3 * made) == pytest.approx(9 * frechet_distance(real, made))
    assert precision_recall(3 * real, 3 * made) == precision_recall(real, made)


@pytest.mark.parametrize(
    ("real", "made", "text"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), r"real embeddings of shape \[1, 3\].*N ≥ 2"),
        (np.ones((5, 3)), np.ones((0, 3)), r"generated embeddings of shape \[0, 3\]"),
        (np.ones((5, 3)), np.ones(3), r"generated embeddings of shape \[3\]"),
        (np.ones((5, 3)), np.ones((5, 4)), "3 wide, generated ones 4"),
        (np.ones((5, 3)), np.array([[0.0], [np.nan]]), "row 1 of the generated"),
    ],
)
def test_unfit_clouds_are_refused(real, made, text):
    with pytest.raises(UserError, match=text) as caught:
        frechet_distance(real, made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [5, 6])
def test_k_needs_as_many_other_rows(k):
    rows = cloud(12, 5, 3)
    precision_recall(rows, rows, k=4)
    with pytest.raises(UserError, match=f"N ≥ {k + 1} for k = {k}"):
        precision_recall(rows, rows, k=k)
    with pytest.raises(UserError, match="k is 0"):
        precision_recall(rows, rows, k=0)
