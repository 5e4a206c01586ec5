"""The known right answers on real faces; skipped where they are absent."""

import json

import numpy as np
import pytest

from ida_jax import rescore
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.artefacts.face_model import FaceModel, Preprocessing
from ida_jax.common.files import load_npz
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.interop.torch_networks import mobilefacenet_from_state
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import dao_terms


@pytest.fixture(scope="module")
def lfw(shared_data):
    """Unit embeddings by name, the anchors, and the evaluation's faces."""
    root = shared_data / "lfw"
    embeddings = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    row = {name: i for i, name in enumerate((root / "names.txt").read_text().split())}
    anchor_half = load_lfw(root, role="anchor")
    rows = real_db_rows(anchor_half.labels, size=50_000)
    anchors = AnchorSet.from_embeddings(
        embeddings[[row[anchor_half.names[i]] for i in rows]], labels=anchor_half.labels[rows]
    )
    evaluated = load_lfw(root, role="eval", images_per_identity=10)
    faces = embeddings[[row[name] for name in evaluated.names]]
    return anchors, faces, evaluated.labels, json.loads((root / "expected.json").read_text())


def test_sizes(lfw):
    anchors, faces, labels, expected = lfw
    assert (len(faces), len(anchors)) == (expected["images"], expected["anchors"])
    scores = score_all_pairs(faces, labels)
    assert len(scores.genuine) == expected["genuine"]
    assert len(scores.impostor) == expected["impostor"]


@pytest.mark.parametrize(
    ("method", "k", "tau"),
    [
        ("cosine", 0, 0.0),
        ("ida_r k=10 tau=1", 10, 1.0),
        ("ida_r k=5 tau=1", 5, 1.0),
        ("ida_r k=50 tau=1", 50, 1.0),
        ("ida_r k=10 tau=4", 10, 4.0),
        ("ida_r k=10 tau=16", 10, 16.0),
    ],
)
def test_tar_at_far_is_the_expected_one(lfw, method, k, tau):
    anchors, faces, labels, expected = lfw
    if method == "cosine":
        scores = score_all_pairs(faces, labels)
    else:
        log_f = searched_log_density(faces, anchors, k=k, tau=tau)
        scores = score_all_pairs(faces, labels, dao_terms(log_f, tau=tau))
    for far in (1e-3, 1e-4, 1e-5):
        (point,) = tar_at_far(*scores, [far])
        assert point.tar == pytest.approx(expected["tar@far"][method][f"{far:g}"], abs=5e-4)
        assert point.false_accepts <= far * expected["impostor"]


@pytest.mark.parametrize(
    ("flags", "method"),
    [(["--method=ida_r"], "ida_r k=10 tau=1"), (["--method=as_norm"], "as_norm k=300")],
)
def test_the_command_on_all_pairs(lfw, tmp_path, flags, method):
    anchors, faces, labels, expected = lfw
    pairs = np.stack(np.triu_indices(len(faces), 1), axis=1).astype(np.int32)
    np.save(tmp_path / "faces.npy", 9 * faces)
    np.save(tmp_path / "pairs.npy", pairs)
    anchors.save(tmp_path / "anchors.safetensors")
    files = {"embeddings": "faces.npy", "pairs": "pairs.npy", "anchors": "anchors.safetensors",
             "output": "scores.npy"}  # fmt: skip
    rescore.main([*(f"--{flag}={tmp_path / name}" for flag, name in files.items()), *flags])
    scores = np.load(tmp_path / "scores.npy")
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    for point in tar_at_far(scores[same], scores[~same], (1e-3, 1e-4, 1e-5)):
        known = expected["tar@far"][method][f"{point.far:g}"]
        assert point.tar == pytest.approx(known, abs=5e-4)


def test_our_own_road_from_pixels_to_the_same_embeddings(shared_data):
    model = FaceModel(
        "mobilefacenet",
        {"embedding_dim": 128},
        Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        mobilefacenet_from_state(load_npz(shared_data / "weights" / "mobilefacenet.npz")).variables,
    )
    data = load_lfw(shared_data / "lfw")
    names = (shared_data / "lfw" / "names.txt").read_text().split()
    given = unit_embeddings(np.load(shared_data / "lfw" / "mobilefacenet_embeddings.npy"))
    row = {name: i for i, name in enumerate(names)}
    chosen = range(0, len(data.names), 60)
    ours = model.embed([data.images[i] for i in chosen], batch_size=64)
    theirs = given[[row[data.names[i]] for i in chosen]]
    cosines = np.einsum("nd,nd->n", ours.astype(np.float64), theirs)
    assert len(cosines) >= 200
    assert cosines.min() >= 0.99999
