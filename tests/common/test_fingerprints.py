from dataclasses import dataclass, field

import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.fingerprints import content_fingerprint, same_sketch, sketch_of
from ida_jax.common.validation import unit_embeddings

ROWS = reference.unit((3000, 16), 3, clusters=5)


def test_the_sketch_is_its_formula():
    rows, expected = ROWS[:3].astype(np.float64), []
    along = np.zeros((3, 4))
    for n in range(3):
        for j in range(4):
            for d in range(16):
                phase = (d + 1) * (j + 1) * (np.sqrt(5) - 1) / 2
                along[n, j] += rows[n, d] * np.cos(2 * np.pi * phase)
    for column in along.T:
        expected.append(sum(column) / 3)
    for column in along.T:
        expected.append(np.sqrt(sum(column**2) / 3))
    numbers = [float(word) for word in sketch_of(ROWS[:3]).split()]
    np.testing.assert_allclose(numbers, expected, atol=2e-7)


def test_rounding_and_order_do_not_matter_and_one_face_does(tmp_path):
    sketch = sketch_of(ROWS)
    AnchorSet.from_embeddings(ROWS).save(tmp_path / "a.safetensors")
    shaken = np.nextafter(ROWS, np.random.default_rng(0).choice(np.float32([-2, 2]), ROWS.shape))
    for same in (
        AnchorSet.load(tmp_path / "a.safetensors").embeddings,
        unit_embeddings(3 * ROWS),
        ROWS[::-1],
        np.asfortranarray(ROWS),
        shaken,
    ):
        assert same_sketch(sketch_of(same), sketch)
    exchanged = ROWS.copy()
    exchanged[1501] = reference.unit((1, 16), 8)[0]
    for other in (
        exchanged, ROWS[:-1], reference.unit((3000, 16), 4, clusters=5), ROWS[:, ::-1],
        ROWS.reshape(6000, 8), -ROWS,
    ):  # fmt: skip
        assert not same_sketch(sketch_of(other), sketch)


def test_of_many_rows_some_are_read(monkeypatch):
    whole = sketch_of(ROWS)
    monkeypatch.setattr("ida_jax.common.fingerprints._LARGE", ROWS.nbytes)
    assert sketch_of(ROWS) == whole
    monkeypatch.setattr("ida_jax.common.fingerprints._LARGE", ROWS.nbytes - 1)
    some = sketch_of(ROWS)
    assert not same_sketch(some, whole)
    read = np.unique(np.linspace(0, 2999, 1024).astype(int))
    rest = np.setdiff1d(np.arange(3000), read)
    changed = ROWS.copy()
    changed[rest] = 0
    assert sketch_of(changed) == some
    for other in (ROWS[:-1], reference.unit((3000, 16), 4, clusters=5)):
        assert not same_sketch(sketch_of(other), some)


@pytest.mark.parametrize("text", ["", "0.5", "nan", "a b", "0.5 0.1"])
def test_what_is_no_sketch_of_the_other_is_not_the_same(text):
    assert same_sketch(text, text)
    assert not same_sketch(text, "0.5 0.1 0.2")
    assert not same_sketch("0.5 0.1 0.2", text)


@dataclass(eq=False)
class _Artefact:
    array: np.ndarray
    number: float
    nested: dict = field(default_factory=dict)
    later: str = ""


def test_content_fingerprint():
    given = {"array": np.arange(3.0), "number": 1.5, "nested": {"a": {"b": np.ones(2)}}}
    fingerprint = content_fingerprint(_Artefact(**given))
    assert fingerprint == content_fingerprint(_Artefact(**given, later=""))
    for change in (
        {"array": np.arange(3.0, dtype=np.float32)}, {"array": np.arange(3.0) + 1}, {"number": 1.6},
        {"nested": {"a": {"b": np.zeros(2)}}}, {"later": "x"}, {"nested": {}},
    ):  # fmt: skip
        assert content_fingerprint(_Artefact(**given | change)) != fingerprint
