"""What the README shows is run, and what it names is there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
import reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Every block of Python in the README is run by a test here.
FIVE_LINES, SCORER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_five_lines():
    faces = reference.unit((30, 16), 1, clusters=5)
    anchors = reference.unit((200, 16), 0, clusters=5)
    names = {
        "anchors": 3 * anchors,
        "embeddings": 2 * faces,
        "pairs": np.random.default_rng(0).integers(30, size=(40, 2)),
        "probes": faces[:4],
        "gallery": faces[4:],
    }
    exec(FIVE_LINES, names)
    nearest = np.argsort(-faces @ anchors.T, axis=1)[:, :10]

    def log_dao(i, j):
        return np.log(
            reference.dao(faces[i], faces[j], anchors[nearest[i]], anchors[nearest[j]], 1)
        )

    expected = [log_dao(i, j) for i, j in names["pairs"]]
    np.testing.assert_allclose(names["scores"], expected, atol=1e-5)
    np.testing.assert_allclose(names["one"], [log_dao(0, 1)], atol=1e-5)
    density = [reference.density(anchors[n] @ f, 1) for n, f in zip(nearest, faces, strict=True)]
    np.testing.assert_allclose(names["crowded"], density, rtol=1e-5)
    ranking = np.argsort([[-log_dao(i, j) for j in range(4, 30)] for i in range(4)], axis=1)
    np.testing.assert_array_equal(names["best"].rows, ranking[:, :10])


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_the_scorer_of_an_exported_file(tau, tmp_path, monkeypatch):
    from ida_jax import Rescorer
    from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
    from ida_jax.artefacts.ssr_module import SSRModule
    from ida_jax.interop.onnx_export import onnx_bytes

    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert len(SCORER.splitlines()) <= 20
    options, rng = {"embedding_dim": 9}, np.random.default_rng(0)
    network = build_network("iresnet_nano", dict(options))
    zeros = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(lambda key: network.init(key, zeros, train=False))(jax.random.key(0))
    model = FaceModel("iresnet_nano", options, Preprocessing(32), dict(variables))
    params = {
        name: {"kernel": np.float32(rng.normal(size=s)), "bias": np.float32(rng.normal(size=s[1]))}
        for name, s in (("hidden_fc", (9, 7)), ("output_fc", (7, 1)))
    }
    ssr = SSRModule(params, "log", -2.5, 0.3, 1e-3, 10, tau, model.fingerprint)
    (tmp_path / "face_ida_l.onnx").write_bytes(onnx_bytes(model, ssr=ssr))
    monkeypatch.chdir(tmp_path)
    readme = {}
    exec(SCORER, readme)
    assert readme["tau"] == tau
    scorer = Rescorer(None, method="ida_l", ssr=ssr)
    for batch in (1, 7, 64):
        first, second = rng.integers(0, 256, (2, batch, 32, 32, 3), np.uint8)
        faces = [*readme["embed"](first), *readme["embed"](second)]
        theirs = model.embed(first), model.embed(second)
        found = readme["score"](*faces, tau=tau)
        assert (found.shape, found.dtype) == ((batch,), np.float32)
        np.testing.assert_allclose(found, scorer.score(*theirs), atol=1e-5)
        # 1:N, seven probes at most: every row against Rescorer's pairs of all rows.
        probes = [output[:7] for output in faces[:2]]
        everyone = readme["score_all"](*probes, *faces[2:], tau=tau)
        rows = len(probes[0])
        pairs = np.indices((rows, batch)).reshape(2, -1).T + np.array([0, batch])
        expected = scorer.score_pairs(np.concatenate(theirs), pairs).reshape(rows, batch)
        np.testing.assert_allclose(everyone, expected, atol=1e-5)
        best = scorer.identify(theirs[0][:7], theirs[1], top=1)
        np.testing.assert_allclose(everyone.max(axis=1), best.scores[:, 0], atol=1e-5)


def test_every_file_that_the_documents_link_exists():
    for document in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert links, document
        missing = [link for link in links if not (ROOT / link).exists()]
        assert not missing, f"{document} links {missing}"
