"""Templates of a mapped file, pooled by blocks."""

import tracemalloc

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.metrics.templates import pool_templates, pooling_matrix
from ida_jax.rescoring import face_files
from ida_jax.rescoring.face_files import read_faces


def _files(folder, sizes, width, *, seed=0):
    """An .npy of templates of these sizes, their images mixed, and the list of their numbers."""
    rng = np.random.default_rng(seed)
    template = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    np.save(folder / "E.npy", rng.normal(size=(len(template), width)).astype(np.float32))
    np.save(folder / "T.npy", template)
    return template


def test_means_are_those_of_all_at_once_whatever_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(face_files, "_IMAGES", 8)
    sizes = np.array([1, 30, 2, 8, 7, 1, 9, 16, 3])  # of which some are larger than a block
    template = _files(tmp_path, sizes, 5)
    faces = read_faces(tmp_path / "E.npy", templates=tmp_path / "T.npy")
    began = np.unique(template, return_index=True)[1]
    order = np.argsort(began)  # faces are in the order in which templates begin
    matrix = pooling_matrix(template, np.arange(len(template)))
    expected = pool_templates(matrix, np.load(tmp_path / "E.npy")) / sizes[:, None]
    expected = (expected / np.linalg.norm(expected, axis=1, keepdims=True))[order]
    whole = faces.unit(np.arange(9))
    np.testing.assert_allclose(whole.embeddings, expected, atol=1e-6)
    assert faces.names == [str(number) for number in order]
    for rows in (np.arange(4, 9), np.array([7, 0, 3]), np.array([1])):
        np.testing.assert_array_equal(faces.unit(rows).embeddings, whole.embeddings[rows])
    assert not faces.bad().faces.any()


def test_a_file_of_templates_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(face_files, "_IMAGES", 256)
    monkeypatch.setattr(face_files, "_FACES", 64)
    width, sizes = 256, np.full(2000, 10)
    _files(tmp_path, sizes, width)
    tracemalloc.start()
    try:
        faces = read_faces(tmp_path / "E.npy", templates=tmp_path / "T.npy", skip_bad=True)
        faces.bad()
        for start in range(0, len(faces), 64):
            faces.unit(np.arange(start, start + 64) % len(faces))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few integers an image, and blocks; its embeddings are 20 MB, in float64 40, pooled 4.
    assert peak < 20_000 * 8 * 8 + 64 * 10 * width * 8 * 4
    assert (tmp_path / "E.npy").stat().st_size > 4 * peak


def test_a_template_without_direction(tmp_path):
    np.save(tmp_path / "E.npy", np.float32([[1, 0], [0, 1], [-1, 0]]))
    np.save(tmp_path / "T.npy", np.array(["ann", "bea", "ann"]))
    faces = read_faces(tmp_path / "E.npy", templates=tmp_path / "T.npy")
    with pytest.raises(UserError, match="templates: the images of 'ann' cancel out"):
        faces.unit(np.arange(2))
    faces = read_faces(tmp_path / "E.npy", templates=tmp_path / "T.npy", skip_bad=True)
    assert faces.unit(np.arange(2)).bad.tolist() == [True, False]
