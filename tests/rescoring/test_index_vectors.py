"""ŝ against float64 transcriptions of the scores, and its bounds."""

import json

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import ida_jax
from ida_jax.common.errors import UserError
from ida_jax.rescoring.index_forms import tangent
from ida_jax.rescoring.index_vectors import (
    IndexSpace,
    index_space,
    index_vectors,
    query_vectors,
)
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.rescoring.tiles import cosines, rule_scores

D = 9
FORMS = [name for name, rule in RULES.items() if rule.index is not None]
_CONSTANTS = {"dao": [7.0], "dao_norm": [1.0, 0.06], "csn": [21.0, -4.0]}


def faces_of(rule, n, seed):
    """Unit rows, and numbers as the rule's methods give them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.1, 0.05, (n, RULES[rule].values))
    if rule in ("z_norm", "t_norm", "s_norm"):
        values[:, 1] = rng.uniform(0.03, 0.08, n)
    if rule == "dao":
        values = rng.uniform(-9, -4, (n, 1))
    constants = np.float32(_CONSTANTS.get(rule, []))
    return reference.unit((n, D), seed), FaceTerms(rule, np.float32(values), constants)


def exact_scores(rule, probes, probe_terms, faces, terms):
    """float64 [M, G], the enrolled face first, written out rule by rule."""
    c = np.float64(probes) @ np.float64(faces).T
    g, q = np.float64(terms.values)[None], np.float64(probe_terms.values)[:, None]
    w = np.float64(terms.constants)
    match rule:
        case "cosine":
            return c
        case "dao":
            return w[0] * c + np.log(np.exp(g[..., 0]) + np.exp(q[..., 0]))
        case "dao_norm":
            norms = g[..., 1] + q[..., 1]
            return w[0] * c + np.log(np.exp(g[..., 0]) + np.exp(q[..., 0])) - w[1] * norms
        case "csn":
            return w[0] * c + g[..., 0] + q[..., 0] + w[1]
    z, t = ((c - side[..., 0]) / side[..., 1] for side in (g, q))
    return {"z_norm": z, "t_norm": t, "s_norm": (z + t) / 2}[rule]


def bounds(vectors, queries):
    products = np.float64(queries.vectors) @ np.float64(vectors).T
    return queries.scale[:, None] * products + queries.offset[:, None]


@pytest.mark.parametrize("equal_lengths", [False, True])
@pytest.mark.parametrize("rule", FORMS)
def test_the_inner_product_is_the_score_or_above_it(rule, equal_lengths):
    faces, terms = faces_of(rule, 41, 0)
    probes, probe_terms = faces_of(rule, 7, 1)
    space = index_space(terms, D, equal_lengths=equal_lengths)
    space = IndexSpace(**json.loads(json.dumps(space._asdict())))
    vectors, queries = index_vectors(faces, terms, space), query_vectors(probes, probe_terms, space)
    copies, extras = {"cosine": (1, 0), "t_norm": (1, 0), "z_norm": (1, 1), "csn": (1, 1),
                      "s_norm": (2, 1), "dao": (1, 2), "dao_norm": (1, 3)}[rule]  # fmt: skip
    width = copies * D + extras + equal_lengths
    assert (vectors.dtype, vectors.shape) == (np.float32, (41, width))
    assert (queries.vectors.dtype, queries.vectors.shape) == (np.float32, (7, width))
    excess = bounds(vectors, queries) - exact_scores(rule, probes, probe_terms, faces, terms)
    allowed = queries.error[:, None]
    assert np.all(excess >= -allowed)
    if rule.startswith("dao"):
        assert excess.max() > 1e-3 if rule == "dao" else np.all(excess < 1e-3)
    else:
        assert np.all(excess <= allowed)
    assert np.all(allowed < 2e-3)
    if equal_lengths:
        lengths = np.linalg.norm(np.concatenate([vectors, queries.vectors]), axis=1)
        np.testing.assert_allclose(lengths, space.length, rtol=1e-6)
    on_device = rule_scores(cosines(probes, faces), probe_terms, terms, enrolled="columns")
    np.testing.assert_allclose(
        on_device, exact_scores(rule, probes, probe_terms, faces, terms), rtol=1e-5, atol=1e-5
    )


@given(
    k=st.integers(1, 100),
    tau=st.floats(0.1, 50),
    similarities=st.lists(st.floats(-1, 1), min_size=3, max_size=20),
)
def test_the_bound_over_all_that_occurs(k, tau, similarities):
    """log F = −log k − τ s where a face's k anchors are all at s, so −log k − τ … −log k + τ."""
    b = -np.log(k) - tau * np.array(similarities)
    mean, variance = np.mean(b), np.var(b)
    level = np.linspace(-np.log(k) - tau, -np.log(k) + tau, 101)
    grid = np.concatenate([level, b])
    x, y = grid[None] - mean, grid[None] - level[:, None]
    exact = np.logaddexp(level[:, None], grid[None])
    for spread in (variance, 0.0, 100.0):
        r0, r1, r2 = (r[:, None] for r in tangent(level, mean, spread))
        excess = r0 + r1 * x + r2 * x**2 - exact
        rounding = 1e-12 * (1 + tau) ** 2
        assert np.all(excess >= -rounding)
        # Convex in y², and 0 at ξ²: the largest is at y = 0 or at an end of what occurs.
        xi = np.sqrt((mean - level) ** 2 + spread)[:, None]
        at_zero = np.log(np.cosh(xi / 2)) - xi * np.tanh(xi / 2) / 4
        assert np.all(at_zero <= xi**4 / 192 + rounding)
        most = np.maximum(at_zero, np.max(excess[:, [0, 100]], axis=1, keepdims=True))
        assert np.all(excess <= most + rounding)
    # The untouched form: the tangent at ξ = 0.
    plain = (level[:, None] + grid[None]) / 2 + np.log(2) + y**2 / 8
    for_each = [tangent(np.array([a]), a, 0.0) for a in level]
    own = np.array([r0 + r1 * (grid - a) + r2 * (grid - a) ** 2
                    for a, (r0, r1, r2) in zip(level, for_each, strict=True)])  # fmt: skip
    np.testing.assert_allclose(own, plain, rtol=1e-9, atol=1e-9)
    assert np.all(plain - exact <= y**4 / 192 + rounding)


def test_the_tangent_at_the_mean_square_is_the_tightest_on_average():
    b, level = np.random.default_rng(0).normal(-20, 5, 500), np.array([-30.0, -20.0, -12.0])

    def mean_excess(variance):
        r0, r1, r2 = (r[:, None] for r in tangent(level, np.mean(b), variance))
        x = b[None] - np.mean(b)
        return np.mean(r0 + r1 * x + r2 * x**2 - np.logaddexp(level[:, None], b[None]), axis=1)

    best = mean_excess(np.var(b))
    for factor in (0.5, 0.8, 1.2, 2):
        assert np.all(best < mean_excess(factor * np.var(b)))
    # ξ = 0, whatever the level.
    y = b[None] - level[:, None]
    plain = np.mean((level[:, None] + b[None]) / 2 + np.log(2) + y**2 / 8
                    - np.logaddexp(level[:, None], b[None]), axis=1)  # fmt: skip
    assert np.all(best < plain / 3)


def test_faces_enrolled_later_have_the_same_coordinates():
    faces, terms = faces_of("dao", 40, 0)
    space = index_space(terms, D)
    whole = index_vectors(faces, terms, space)
    some = terms._replace(values=terms.values[30:])
    np.testing.assert_array_equal(index_vectors(faces[30:], some, space), whole[30:])
    np.testing.assert_array_equal(whole[:, :D], faces)
    assert np.abs(whole[:, D:]).max() == pytest.approx(3 / np.sqrt(D))
    assert index_vectors(faces[:0], terms._replace(values=terms.values[:0]), space).shape == (
        0,
        D + 2,
    )


def test_faces_of_one_density():
    faces, terms = faces_of("dao", 5, 0)
    terms = terms._replace(values=np.full_like(terms.values, -4))
    space = index_space(terms, D)
    vectors, queries = index_vectors(faces, terms, space), query_vectors(faces, terms, space)
    expected = exact_scores("dao", faces, terms, faces, terms)
    np.testing.assert_allclose(bounds(vectors, queries), expected, atol=1e-5)


def test_mistakes():
    faces, terms = faces_of("dao", 20, 0)
    space = index_space(terms, D)

    def with_value(value):
        values = terms.values.copy()
        values[3] = value
        return terms._replace(values=values)

    with pytest.raises(UserError, match="gallery: the dao numbers of row 3 are not finite"):
        index_vectors(faces, with_value(np.nan), space)
    with pytest.raises(UserError, match="probes: the dao numbers of row 3 are not finite"):
        query_vectors(faces, with_value(np.inf), space)
    with pytest.raises(UserError, match="row 3 are far outside"):
        index_vectors(faces, with_value(20), space)
    for bad in (0, np.nan):
        broken = faces.copy()
        broken[4] = bad
        with pytest.raises(UserError, match="gallery: row 4 has norm"):
            index_vectors(broken, terms, space)
        with pytest.raises(UserError, match="probes: row 4 has norm"):
            query_vectors(broken, terms, space)
    with pytest.raises(UserError, match=r"made for dao with the constants \[7.0\]"):
        query_vectors(faces, terms._replace(constants=np.float32([1])), space)
    with pytest.raises(UserError, match=r"probes are \[4\] wide, the index' 9"):
        query_vectors(reference.unit((20, 4), 0), terms, space)
    with pytest.raises(UserError, match="no faces"):
        index_space(terms._replace(values=terms.values[:0]), D)
    even = index_space(terms._replace(values=terms.values[:2]), D, equal_lengths=True)
    with pytest.raises(UserError, match="make the index anew with all faces"):
        index_vectors(faces, with_value(even.means[0] + 1.99 * even.spreads[0]), even)


def test_the_rescorer():
    anchors, faces = reference.unit((60, D), 0), reference.unit((30, D), 1)
    scorer = Rescorer(anchors, k=4, tau=2)
    vectors, space = scorer.index_vectors(5 * faces[:20])
    gallery = scorer.gallery(faces[:20])
    np.testing.assert_allclose(scorer.index_vectors(gallery).vectors, vectors, atol=1e-5)
    queries = scorer.query_vectors(3 * faces[20:], space)
    pairs = np.stack(np.meshgrid(np.arange(20), np.arange(20, 30)), axis=-1).reshape(-1, 2)
    scores = scorer.score_pairs(faces, pairs).reshape(10, 20)
    excess = bounds(vectors, queries) - scores
    assert excess.min() > -1e-5
    assert excess.max() < 0.01
    later = scorer.index_vectors(faces[18:20], space=space)
    np.testing.assert_allclose(later.vectors, vectors[18:20], atol=1e-5)
    for other, said in (
        (Rescorer(anchors, k=5, tau=2), "k = 4, not 5"),
        (Rescorer(anchors, k=4, tau=3), "tau = 2, not 3"),
        (Rescorer(anchors[:50], k=4, tau=2), "60 anchors, not 50"),
        (Rescorer(anchors, method="cosine"), "method ida_r, not cosine"),
    ):
        with pytest.raises(UserError, match=f"the index was made otherwise: .*{said}"):
            other.query_vectors(faces, space)
    for zero_row in (scorer.index_vectors, lambda x: scorer.query_vectors(x, space)):
        broken = faces.copy()
        broken[2] = 0
        with pytest.raises(UserError, match="row 2 is zero"):
            zero_row(broken)


def test_a_method_whose_score_is_no_inner_product():
    fit = ida_jax.QualityFit(
        30.0, 12.0, 0.2, -1.0, 0.3, 0.1, 1.8, 2.9, (2.0, 2.5), 4, D, 60,
        ida_jax.AnchorSet.from_embeddings(reference.unit((60, D), 0)).sketch,
    )  # fmt: skip
    scorer = Rescorer(reference.unit((60, D), 0), method="ida_q", quality_fit=fit)
    with pytest.raises(UserError, match=r"ida_q scores are not .* search with Rescorer\.identify"):
        scorer.index_vectors(reference.unit((5, D), 1))
