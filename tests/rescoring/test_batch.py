"""The callables of batches against Rescorer, for every method; pickled, in any batches."""

import pickle

import jax
import numpy as np
import pyarrow as pa
import pytest
import reference

from ida_jax import AnchorSet, BatchFaceTerms, BatchPairScores, Rescorer
from ida_jax.common.errors import UserError
from ida_jax.rescoring import batch as batch_room
from ida_jax.rescoring import pairs as pair_room
from ida_jax.rescoring.method_table import methods_with

N, D = 300, 8
NORMS = np.linspace(1, 4, N, dtype=np.float32)[:, None]
FACES = reference.unit((N, D), 1, clusters=20) * NORMS
ANCHORS = reference.unit((200, D), 0, clusters=20)
PAIRS = np.random.default_rng(3).integers(N, size=(700, 2))
NAMES = np.array([f"face {row}" for row in range(N)], object)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(batch_room, "_SLAB", 128)


def _in_batches(call, columns, size):
    count = len(next(iter(columns.values())))
    made = [
        call({name: values[i : i + size] for name, values in columns.items()})
        for i in range(0, count, size)
    ]
    return {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}


@pytest.mark.bits
@pytest.mark.parametrize("method", methods_with(("anchors",)))
def test_every_method_in_any_batches(method):
    settings = {"as_norm": {"top_n": 30}, "ida_r_fallback": {"weight": 0.4}}.get(method, {})
    expected = Rescorer(ANCHORS, method=method, **settings).score_pairs(FACES, PAIRS)
    terms = pickle.loads(pickle.dumps(BatchFaceTerms(ANCHORS, method=method, **settings)))
    faces = _in_batches(terms, {"embedding": FACES, "name": NAMES}, 101)
    for other in (1 + N // 2, N):
        again = _in_batches(terms, {"embedding": FACES}, other)
        np.testing.assert_array_equal(again["terms"], faces["terms"])
    scores = pickle.loads(pickle.dumps(BatchPairScores(terms, faces)))
    for sides in (PAIRS, NAMES[PAIRS]):
        found = _in_batches(scores, {"first": sides[:, 0], "second": sides[:, 1]}, 99)["score"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_no_batch_compiles_anew(on_cpu, caplog, monkeypatch):
    expected = Rescorer(ANCHORS).score_pairs(FACES, PAIRS)
    monkeypatch.setattr(pair_room, "on_cpu", lambda _: on_cpu)
    jax.clear_caches()
    terms = BatchFaceTerms(ANCHORS)
    scores = BatchPairScores(terms, {"embedding": FACES})
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for size in (7, 1, 65, 128, 129, N, 0):
            made = terms({"embedding": FACES[:size]})
            pairs = scores({"first": PAIRS[:size, 0], "second": PAIRS[:size, 1]})
            assert len(made["terms"]) == size
            np.testing.assert_allclose(pairs["score"], expected[:size], rtol=1e-5)
            assert any("Compiling" in line for line in caplog.messages) == (size == 7), size
            caplog.clear()


def test_copies_in_a_process_share_what_they_made(tmp_path):
    AnchorSet.from_embeddings(ANCHORS).save(tmp_path / "anchors.safetensors")
    terms = BatchFaceTerms(tmp_path / "anchors.safetensors")
    sent = pickle.dumps(terms)
    assert len(sent) < 1000  # a path, no anchors
    assert pickle.loads(sent).scorer is pickle.loads(sent).scorer


def test_labels_leave_the_own_identity_out():
    labels = np.arange(200) // 2
    anchors = AnchorSet.from_embeddings(ANCHORS, labels=labels)
    own = np.arange(N) % 110 - 5
    own[own >= 100] = -1
    terms = BatchFaceTerms(anchors, label="who")({"embedding": FACES, "who": own})["terms"]
    unit = FACES / np.linalg.norm(FACES, axis=1, keepdims=True)
    cosines = np.where(own[:, None] == labels, -2, unit @ ANCHORS.T)
    nearest = -np.sort(-cosines, axis=1)[:, :10]
    expected = [np.log(reference.density(row, 1)) for row in nearest]
    np.testing.assert_allclose(terms[:, 0], expected, atol=1e-5)


def test_arrow_batches_and_bad_rows():
    rows = [None if row == 2 else list(FACES[row]) for row in range(5)]
    listed = pa.array(rows, pa.list_(pa.float32()))
    given = pa.record_batch({"name": list(NAMES[:5]), "embedding": listed})
    with pytest.raises(UserError, match="embedding: row 2 is zero, NaN or infinite"):
        list(BatchFaceTerms(ANCHORS).arrow([given]))
    terms = BatchFaceTerms(ANCHORS, skip_bad=True)
    (made,) = terms.arrow([given])
    assert made.schema.names == ["name", "embedding", "terms", "nearest"]
    assert np.isnan(made["terms"][2].as_py()).all()
    columns = {name: made[name].to_pylist() for name in ("name", "terms")}
    known = {"embedding": np.array([list(FACES[r]) if r != 2 else [0] * D for r in range(5)])}
    scores = BatchPairScores(terms, {**known, "name": columns["name"], "terms": columns["terms"]})
    pairs = pa.record_batch({"first": ["face 0", "face 1"], "second": ["face 1", "face 2"]})
    (scored,) = scores.arrow([pairs])
    one, bad = scored["score"].to_pylist()
    np.testing.assert_allclose(one, Rescorer(ANCHORS).score_pairs(FACES, [[0, 1]])[0], rtol=1e-6)
    assert np.isnan(bad)


def test_mistakes():
    with pytest.raises(UserError, match="method 'ida' is unknown"):
        BatchFaceTerms(ANCHORS, method="ida")
    terms = BatchFaceTerms(ANCHORS)
    with pytest.raises(UserError, match="has the columns face: expected one named embedding"):
        terms({"face": FACES})
    with pytest.raises(UserError, match="rows of 7 and of 8 numbers"):
        terms({"embedding": np.array([FACES[0], FACES[1][:7]], object)})
    scores = BatchPairScores(terms, {"embedding": FACES, "name": list(NAMES)})
    with pytest.raises(UserError, match="pair 1: no face is named 'who'"):
        scores({"first": NAMES[:2], "second": np.array(["face 1", "who"])})
    with pytest.raises(UserError, match="outside the 300 faces"):
        scores({"first": np.array([0]), "second": np.array([N])})
    nameless = BatchPairScores(terms, {"embedding": FACES})
    with pytest.raises(UserError, match="give them a column name"):
        nameless({"first": NAMES[:2], "second": NAMES[:2]})
