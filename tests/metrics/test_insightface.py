import numpy as np
import pytest
import reference_insightface

from ida_jax.common.errors import UserError
from ida_jax.data.labelled_pairs import consecutive_pairs
from ida_jax.metrics.insightface import (
    ACCURACY_THRESHOLDS,
    insightface_accuracy,
    squared_distances,
    validation_rate,
)
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.protocols.insightface_rule import check_rule, insightface_figures
from ida_jax.runs.stages import held_out_figures


def _faces(pairs, seed, *, noise=0.8):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    one = rng.normal(size=(pairs, 7))
    other = np.where(same[:, None], one + noise * rng.normal(size=(pairs, 7)), 0)
    other = np.where(same[:, None], other, rng.normal(size=(pairs, 7)))
    faces = np.stack([one, other], axis=1).reshape(-1, 7)
    return faces, same


@pytest.mark.parametrize(("pairs", "folds"), [(121, 10), (63, 3)])
def test_matches_the_peers_formulas_to_the_digit(pairs, folds):
    faces, same = _faces(pairs, pairs)
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    accuracies, vals, fars = reference_insightface.verification(
        unit[0::2], unit[1::2], same, folds=folds
    )
    figures = insightface_figures(faces, consecutive_pairs(same, folds=folds), xnorm=1.5)
    assert figures["accuracy"] == np.mean(accuracies)
    assert figures["accuracy_deviation"] == np.std(accuracies)
    assert figures["val@far"]["0.001"] == np.mean(vals)
    assert figures["val_deviation@far"]["0.001"] == np.std(vals)
    assert figures["val_realised_far"]["0.001"] == np.mean(fars)
    assert (figures["xnorm"], figures["pairs"], figures["genuine"]) == (1.5, pairs, same.sum())
    assert 0 < figures["val@far"]["0.001"] < 1


def test_the_grid_takes_other_thresholds_than_the_exact_rule():
    # Exact thresholds part what lies between two of the grid's.
    distances = np.tile([0.501, 0.509], 6)
    same = np.tile([True, False], 6)
    assert kfold_accuracy(-distances, same, folds=3).mean == 1
    found = insightface_accuracy(distances, same, folds=3)
    assert found.mean == 0.5
    # Of equally accurate thresholds the lowest: 0.
    np.testing.assert_array_equal(found.thresholds, ACCURACY_THRESHOLDS[0])


def test_a_far_that_is_never_reached_accepts_nothing():
    found = validation_rate(np.r_[np.full(6, 0.1), np.full(6, 5.0)], np.repeat([1, 0], 6),
                            folds=np.tile([0, 1], 6))  # fmt: skip
    assert (found.mean, found.far) == (0, 0)
    np.testing.assert_array_equal(found.thresholds, 0)


def test_faces_without_an_embedding_never_match():
    faces, same = _faces(40, 1, noise=0.01)
    listed = consecutive_pairs(same, folds=2)
    bad = np.zeros(80, bool)
    bad[2 * np.flatnonzero(same)[:5]] = True
    lost = insightface_figures(faces, listed, bad=bad, xnorm=1)
    np.testing.assert_allclose(
        np.mean(lost["accuracy"]), insightface_figures(faces, listed, xnorm=1)["accuracy"] - 5 / 40
    )


def test_distances_are_of_unit_rows():
    faces, _ = _faces(5000, 2)
    distances = squared_distances(np.float32(faces), np.arange(10_000).reshape(-1, 2))
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    expected = [np.sum((unit[2 * i] - unit[2 * i + 1]) ** 2) for i in range(5000)]
    np.testing.assert_allclose(distances, expected, atol=1e-6)


def test_a_fold_of_one_kind_is_the_users_mistake():
    with pytest.raises(UserError, match="fold 1 of 2 has no impostor pair"):
        validation_rate(np.ones(8), np.repeat([1, 0], 4), folds=2)


class _Model:
    """Embeddings that are the images' first pixels."""

    def raw_embeddings(self, images):
        return np.float32([image[0].ravel() for image in images])


def test_a_trainings_figures_have_the_peers_xnorm():
    rng = np.random.default_rng(5)
    images = rng.integers(1, 255, (60, 1, 2, 3), np.uint8)
    same = np.tile([True, False], 15)
    listed = consecutive_pairs(same, folds=3)
    found = held_out_figures(_Model(), list(images), listed, flip=True, rule="insightface")
    plain, mirrored = (np.float64(x.reshape(60, 6)) for x in (images, images[:, :, ::-1]))
    norms = [np.linalg.norm(row) for side in (plain, mirrored) for row in side]
    assert found["xnorm"] == pytest.approx(np.mean(norms))
    added = (plain + mirrored) / np.linalg.norm(plain + mirrored, axis=1, keepdims=True)
    accuracies, vals, _ = reference_insightface.verification(added[0::2], added[1::2], same, 3)
    assert (found["accuracy"], found["val"]) == (np.mean(accuracies), np.mean(vals))
    one_kind = listed._replace(fold=1 - same.astype(int))
    check_rule("exact", one_kind)
    with pytest.raises(UserError, match="fold 1 of 2 has no impostor pair"):
        check_rule("insightface", one_kind)
