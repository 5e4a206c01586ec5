"""A run's lazily read parts."""

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.data.rendered import rendered_faces
from ida_jax.runs import run as run_module
from ida_jax.runs.config import run_section
from ida_jax.runs.run import Run

OPTIONS = {"embedding_dim": 8, "dropout_rate": 0.0}


def _model():
    network = build_network("iresnet_nano", OPTIONS)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.tree.map(np.asarray, network.init(jax.random.key(0), images, train=False))
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
