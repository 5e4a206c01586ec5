import jax
import numpy as np
import pytest
import reference

from ida_jax.common.errors import UserError
from ida_jax.rescoring import gallery as module
from ida_jax.rescoring.gallery import Gallery, identify
from ida_jax.rescoring.terms import FaceTerms


def _terms(rule, n, seed):
    width = {"cosine": 0, "dao": 1}.get(rule, 2)
    values = np.random.default_rng(seed).uniform(0.2, 2, (n, width)).astype(np.float32)
    return FaceTerms(rule, values, np.float32([1.5] if rule == "dao" else []))


def _oracle(rule, cosine, gallery, probe):
    match rule:
        case "cosine":
            return cosine
        case "dao":
            return 1.5 * cosine + np.log(np.exp(gallery[0]) + np.exp(probe[0]))
        case "z_norm":  # the gallery's face is the enrolled one
            return (cosine - gallery[0]) / gallery[1]
        case "t_norm":
            return (cosine - probe[0]) / probe[1]


@pytest.mark.parametrize("rule", ["cosine", "dao", "z_norm", "t_norm"])
@pytest.mark.parametrize(("m", "g", "top"), [(1, 1, 1), (3, 40, 5), (5, 41, 41), (4, 39, 40 - 1)])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_best_of_every_gallery_face(rule, m, g, top, on_cpu, monkeypatch):
    monkeypatch.setattr(module, "_on_cpu", lambda _: on_cpu)
    device = "" if on_cpu else "DEVICE"
    monkeypatch.setattr(module, f"{device}_PROBE_BLOCKS", (1, 2))
    monkeypatch.setattr(module, f"{device}_GALLERY_BLOCK", 16)
    probes, faces = reference.unit((m, 8), 0), reference.unit((g, 8), 1)
    probe_terms, terms = _terms(rule, m, 2), _terms(rule, g, 3)
    got = identify(probes, probe_terms, Gallery(jax.device_put(faces), terms), top=top)
    if not on_cpu:
        # A CPU computes in float32 whatever is asked for.
        gallery = Gallery(jax.device_put(faces), terms)
        again = identify(probes, probe_terms, gallery, top=top, precision="bfloat16_x6")
        jax.tree.map(np.testing.assert_array_equal, again, got)
    scores = np.array(
        [
            [
                _oracle(rule, float(p @ f), v, q)
                for f, v in zip(faces.astype(np.float64), terms.values, strict=True)
            ]
            for p, q in zip(probes.astype(np.float64), probe_terms.values, strict=True)
        ]
    )
    np.testing.assert_allclose(got.scores, -np.sort(-scores, axis=1)[:, :top], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, got.rows, axis=1), got.scores, atol=1e-4)
    assert all(len(set(rows)) == top for rows in got.rows.tolist())


def test_a_crowded_gallery_face_falls_behind_a_lonely_one():
    probe = np.float32([[1, 0]])
    faces = np.float32([[0.8, 0.6], [0.75, np.sqrt(1 - 0.75**2)]])
    densities = FaceTerms("dao", np.float32([[-4], [-1]]), np.float32([1]))
    own = FaceTerms("dao", np.float32([[-2]]), np.float32([1]))
    got = identify(probe, own, Gallery(jax.device_put(faces), densities), top=2)
    assert got.rows.tolist() == [[1, 0]]


def test_mistakes():
    faces, terms = reference.unit((5, 8), 1), _terms("dao", 5, 0)
    gallery = Gallery(jax.device_put(faces), terms)
    for top in (0, 6):
        with pytest.raises(UserError, match=f"the best {top} of 5 gallery faces"):
            identify(faces, terms, gallery, top=top)
    with pytest.raises(UserError, match="4 wide, the gallery's 8"):
        identify(faces[:, :4], terms, gallery, top=1)
    with pytest.raises(UserError, match="made for dao, the probes for z_norm"):
        identify(faces, _terms("z_norm", 5, 0), gallery, top=1)
