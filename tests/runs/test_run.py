"""A run's lazily read parts."""

import numpy as np
import pytest
from drawn import drawn_variables

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.data.degrade import degradation, degraded, degraded_rows
from ida_jax.data.rendered import rendered_faces
from ida_jax.runs import run as run_module
from ida_jax.runs.config import run_section
from ida_jax.runs.run import Run

OPTIONS = {"embedding_dim": 8, "dropout_rate": 0.0}


def _model():
    network = build_network("iresnet_nano", OPTIONS)
    variables = drawn_variables(network, (1, 32, 32, 3))
    return FaceModel("iresnet_nano", OPTIONS, Preprocessing(32), variables)


def _run(workdir):
    config = run_section("test")
    config.train_data = {
        "name": "rendered", "identities": 3, "images_per_identity": 5, "image_size": 32
    }  # fmt: skip
    return Run(config, workdir)


def test_training_embeddings_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_PART", 4)
    model = _model()
    model.save(tmp_path / "model.safetensors")
    faces = rendered_faces(seed=0, identities=3, images_per_identity=5, image_size=32)
    expected = model.embed(faces.images, flip=True)

    embedded = []
    embed = Run.embed

    def counting(self, images, title):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(len(images))
        return embed(self, images, title)

    monkeypatch.setattr(Run, "embed", counting)
    try:
        _ = _run(tmp_path).train_embeddings
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was not interrupted")
    assert embedded == [4, 4]

    embedded.clear()
    np.testing.assert_allclose(_run(tmp_path).train_embeddings, expected, atol=1e-5)
    assert embedded == [4, 3]
    # Another stage's process reads them.
    embedded.clear()
    np.testing.assert_allclose(_run(tmp_path).train_embeddings, expected, atol=1e-5)
    assert embedded == []


def test_degraded_training_faces_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_PART", 4)
    model = _model()
    model.save(tmp_path / "model.safetensors")
    faces = rendered_faces(seed=0, identities=3, images_per_identity=5, image_size=32)
    how = degradation("blur:strong", share=0.5, copies=2)
    rows = np.flatnonzero(degraded_rows(how, np.arange(15)))
    assert 3 <= len(rows) <= 12
    images = [
        degraded(faces.images[row], how, number=int(row), copy=copy)
        for copy in range(2)
        for row in rows
    ]
    expected = model.embed(images, flip=True)
    whole, embedded = Run.embed, []

    def counting(self, images, title):
        if len(embedded) == 1:
            raise KeyboardInterrupt
        embedded.append(len(images))
        return whole(self, images, title)

    monkeypatch.setattr(Run, "embed", counting)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path).degraded_embeddings(how)
    monkeypatch.setattr(Run, "embed", whole)
    first = next((tmp_path / "embeddings").glob("degraded-*/from-*.npy"))
    written = first.stat().st_mtime_ns
    found_rows, found = _run(tmp_path).degraded_embeddings(how)
    np.testing.assert_array_equal(found_rows, np.tile(rows, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert first.stat().st_mtime_ns == written
    # Other words, other parts.
    _run(tmp_path).degraded_embeddings(how._replace(copies=1))
    assert len(list((tmp_path / "embeddings").glob("degraded-*"))) == 2
