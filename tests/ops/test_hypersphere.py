import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.ops.hypersphere import grouped_largest_k, largest_k, nearest_anchors, normalize


def test_normalize_and_its_gradient_at_zero():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], np.float32)
    got = normalize(x)
    np.testing.assert_allclose(got[0], [0.6, 0.8], rtol=1e-6)
    assert np.all(np.asarray(got[1]) == 0)
    assert np.all(np.isfinite(jax.grad(lambda v: jnp.sum(normalize(v)))(x)))


@settings(max_examples=30)
@given(
    a=st.sampled_from([1, 2, 63, 64, 65, 640, 641, 1300]),
    k=st.integers(1, 12),
    group_size=st.sampled_from([2, 8, 64]),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 9),
)
def test_largest_k_is_a_sort(a, k, group_size, levels, seed):
    k = min(k, a)
    # Few levels make many ties.
    x = np.random.default_rng(seed).integers(levels, size=(3, a)).astype(np.float32)
    values, columns = largest_k(x, k, group_size=group_size)
    np.testing.assert_array_equal(values, -np.sort(-x, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(columns), 1), values)
    assert all(len(set(row)) == k for row in np.asarray(columns).tolist())


@pytest.mark.parametrize(("a", "k"), [(1023, 10), (3000, 16), (5000, 17)])
def test_what_a_gpu_chooses_from_suits_its_kernel(a, k):
    """XLA's TopK takes rows of 1,024 and more, and 16 of them; the CPU chooses as ever."""
    x = np.random.default_rng(0).normal(size=(2, a)).astype(np.float32)
    chosen = jax.jit(lambda values: largest_k(values, k))
    as_on_gpu = jax.jit(lambda values: grouped_largest_k(values, k, 2, shortest=1024))
    for values, columns in (chosen(x), as_on_gpu(x)):
        np.testing.assert_array_equal(values, -np.sort(-x, axis=1)[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(columns), 1), values)
    text = chosen.trace(x).lower(lowering_platforms=("cuda",)).as_text()
    rows = [int(n) for n in re.findall(r"chlo.top_k.*?: tensor<2x(\d+)xf32>", text)]
    assert rows
    if k <= 16 and a >= 1024:
        assert min(rows) >= 1024


@pytest.mark.parametrize("block_size", [10, 33, 64, 100, 101, 1000])
@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_nearest_anchors_by_any_block(n, block_size):
    queries, anchors = reference.unit((n, 16), 0, clusters=5), reference.unit((100, 16), 1)
    got = nearest_anchors(queries, anchors, k=10, block_size=block_size)
    np.testing.assert_allclose(got.similarities, reference.top_k(queries, anchors, 10), atol=1e-6)
    chosen = np.einsum("nd,nkd->nk", queries, anchors[np.asarray(got.indices)])
    np.testing.assert_allclose(chosen, got.similarities, atol=1e-6)


@pytest.mark.parametrize("block_size", [12, 64, 100])
def test_own_identity_never_enters(block_size):
    rng = np.random.default_rng(0)
    queries, anchors = reference.unit((20, 8), 0), reference.unit((100, 8), 1)
    query_labels = rng.integers(-1, 5, 20).astype(np.int32)
    anchor_labels = rng.integers(-1, 5, 100).astype(np.int32)
    got = nearest_anchors(
        queries, anchors, k=12, query_labels=query_labels, anchor_labels=anchor_labels,
        block_size=block_size,
    )  # fmt: skip
    expected = reference.top_k(queries, anchors, 12, query_labels, anchor_labels)
    np.testing.assert_allclose(got.similarities, expected, atol=1e-6)
    found = anchor_labels[np.asarray(got.indices)]
    assert not np.any((found == query_labels[:, None]) & (found >= 0))


def test_too_few_others_leave_holes():
    anchors = reference.unit((5, 8), 1)
    labels = np.array([0, 0, 0, 1, 2], np.int32)
    got = nearest_anchors(anchors[:1], anchors, k=4, query_labels=labels[:1], anchor_labels=labels)
    assert np.isfinite(got.similarities).sum() == 2


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_anchors(k):
    anchors = reference.unit((5, 8), 1)
    with pytest.raises(ValueError, match="among A = 5"):
        nearest_anchors(anchors, anchors, k=k)


def test_one_sided_labels_are_refused():
    anchors = reference.unit((5, 8), 1)
    with pytest.raises(ValueError, match="labels"):
        nearest_anchors(anchors, anchors, k=1, anchor_labels=np.zeros(5, np.int32))
