"""Every search gives the oracle's answer, however cut into slabs, blocks, calls and devices."""

import sys
import tracemalloc

import jax
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.anchors import exact_search, search
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.exact_search import device_search, host_search, largest_k_rows, slabs_of
from ida_jax.anchors.search import SupportSearch, approximation_error, support_sets
from ida_jax.common.errors import UserError
from ida_jax.ops.hypersphere import Neighbours
from ida_jax.ops.products import PRECISIONS

SCANN = ["scann", "scann_partitioned"] if search.has_scann() else []
needs_scann = pytest.mark.skipif(not SCANN, reason="scann has no wheel here")


def _set(count=300, width=16, identities=40):
    labels = np.random.default_rng(5).integers(-1, identities, size=count)
    return AnchorSet.from_embeddings(reference.unit((count, width), 1, clusters=9), labels=labels)


def _faces(n, width=16):
    return reference.unit((n, width), 2, clusters=9)


def _labels(n, identities=40):
    return np.random.default_rng(6).integers(-1, identities, size=n).astype(np.int32)


def _agrees(found, queries, anchors, k, labels=None):
    expected = reference.top_k(queries, anchors.embeddings, k, labels, anchors.labels)
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)
    chosen = np.einsum("nd,nkd->nk", queries, anchors.embeddings[found.indices])
    np.testing.assert_allclose(chosen, found.similarities, atol=1e-6)


@settings(max_examples=40)
@given(
    a=st.sampled_from([1, 2, 3, 9, 100, 641, 1300]),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    levels=st.integers(1, 1000),
    masked=st.sampled_from([0.0, 0.3, 0.99]),
    seed=st.integers(0, 9),
)
def test_largest_k_rows_is_a_sort(a, share, levels, masked, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(levels, size=(3, a)).astype(np.float32)  # few levels make many ties
    x[rng.random(x.shape) < masked] = -np.inf
    k = max(1, round(share * a))
    values, columns = largest_k_rows(x, k)
    np.testing.assert_array_equal(-np.sort(-values, axis=1), -np.sort(-x, axis=1)[:, :k])
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.take_along_axis(x, columns, 1)[finite], values[finite])
    for row, real in zip(columns, finite, strict=True):
        assert len(set(row[real])) == real.sum()


@pytest.mark.parametrize(("count", "size"), [(1, 5), (5, 5), (6, 5), (101, 10), (7, 1)])
def test_slabs_cover_everything_once(count, size):
    rows = [np.arange(count)[slab] for slab in slabs_of(count, size)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(count))
    assert max(map(len, rows)) <= size
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("slab", [3, 77, 299, 300, 1000])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_host_by_any_slab(slab, k, with_labels):
    anchors, queries = _set(), _faces(33)
    labels = _labels(33) if with_labels else None
    found = host_search(anchors.embeddings, anchors.labels, k=k, slab=slab)(queries, labels)
    _agrees(found, queries, anchors, k, labels)


@pytest.mark.bits
def test_host_gives_the_same_bits_however_faces_are_divided():
    anchors, queries = _set(700, 128), _faces(40, 128)
    run = host_search(anchors.embeddings, None, k=9)
    whole = run(queries, None)
    for size in (1, 2, 3, 7, 39):
        parts = [run(queries[i : i + size], None) for i in range(0, 40, size)]
        np.testing.assert_array_equal(
            np.concatenate([p.similarities for p in parts]), whole.similarities
        )
        np.testing.assert_array_equal(np.concatenate([p.indices for p in parts]), whole.indices)


def test_more_faces_than_a_block():
    anchors, queries = _set(50), _faces(1025)
    found = support_sets(queries, anchors, k=3, searcher="exact")
    expected = -np.sort(-(queries.astype(np.float64) @ anchors.embeddings.T), axis=1)[:, :3]
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)


def test_a_memory_mapped_set_is_never_copied_whole(tmp_path):
    _set(20_000, 64).save(tmp_path / "anchors.safetensors")
    anchors = AnchorSet.load(tmp_path / "anchors.safetensors")
    run = host_search(anchors.embeddings, None, k=5, slab=1000)
    queries = _faces(8, 64)
    run(queries, None)
    tracemalloc.start()
    found = run(queries, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < anchors.embeddings.nbytes / 8
    exact = -np.sort(-(queries.astype(np.float64) @ anchors.embeddings.T), axis=1)[:, :5]
    np.testing.assert_allclose(found.similarities, exact, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("slab", [None, 299, 64])
@pytest.mark.parametrize("with_labels", [False, True])
def test_any_number_of_devices(devices, slab, with_labels):
    anchors, queries = _set(), _faces(150)
    labels = _labels(150) if with_labels else None
    run = device_search(
        anchors.embeddings, anchors.labels, k=7, devices=jax.devices()[:devices], slab=slab
    )
    for n in (1, devices, 150):
        of_n = None if labels is None else labels[:n]
        _agrees(run(queries[:n], of_n), queries[:n], anchors, 7, of_n)


def test_k_larger_than_a_devices_slab():
    anchors, queries = _set(50), _faces(3)
    run = device_search(anchors.embeddings, None, k=40, devices=jax.devices()[:2], slab=20)
    _agrees(run(queries, None), queries, anchors, 40)


def test_devices_compile_and_upload_once(monkeypatch):
    anchors, queries = _set(), _faces(1100)
    traced, uploads = [], []
    nearest, put = exact_search.nearest_anchors, jax.device_put

    def counted(queries, *args, **kwargs):
        traced.append(queries.shape)
        return nearest(queries, *args, **kwargs)

    def counted_put(x, *args, **kwargs):
        uploads.append(x.shape)
        return put(x, *args, **kwargs)

    monkeypatch.setattr(exact_search, "nearest_anchors", counted)
    monkeypatch.setattr(jax, "device_put", counted_put)
    run = device_search(anchors.embeddings, None, k=7, devices=jax.devices()[:2])
    for n in (1, 2, 31, 32, 33, 500, 1024, 1100):
        run(queries[:n], None)
    assert sorted(traced) == [(16, 16), (512, 16), (4096, 16)]
    assert uploads.count((300, 16)) == 1


@pytest.mark.parametrize("searcher", ["exact", *SCANN])
def test_one_search_many_calls(searcher):
    anchors, queries, labels = _set(), _faces(80), _labels(80)
    # So small a tolerance lets the partitioned search leave nothing out.
    run = SupportSearch(anchors, k=7, searcher=searcher, tolerance=1e-5)
    _agrees(run(queries), queries, anchors, 7)
    _agrees(run(queries[:1]), queries[:1], anchors, 7)
    _agrees(run(queries, labels), queries, anchors, 7, labels)
    assert run(queries[:0]).similarities.shape == (0, 7)


@needs_scann
@pytest.mark.parametrize("slab", [5, 77, 299])
@pytest.mark.parametrize("with_labels", [False, True])
def test_scanns_brute_force_by_slabs(slab, with_labels):
    anchors, queries = _set(), _faces(20)
    labels = _labels(20) if with_labels else None
    run = search._scann_brute_force(anchors.embeddings, anchors.labels, k=7, slab=slab)
    _agrees(run(queries, labels), queries, anchors, 7, labels)


@needs_scann
@pytest.mark.parametrize("n", [3, 200])
def test_partitioned_says_how_good_it_is(capsys, n):
    run = SupportSearch(_set(), k=7, searcher="scann_partitioned", tolerance=1e-5)
    run(_faces(n))
    run(_faces(n))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "recall@7 1.0000; error in log F 0.00% of its spread" in lines[0]
    # Three faces have no spread: anchors stand in for them.
    assert f"on {200 if n == 200 else 256} faces" in lines[0]


@needs_scann
def test_partitioned_past_the_tolerance(monkeypatch, capsys):
    anchors, queries = _set(2000, 32), reference.unit((100, 32), 3)
    monkeypatch.setattr(search, "_LEAVES", (0.02,))
    with pytest.raises(UserError, match=r"past the tolerance of 2.00%: choose the exact"):
        SupportSearch(anchors, k=7, searcher="scann_partitioned")(queries)
    loose = SupportSearch(anchors, k=7, searcher="scann_partitioned", tolerance=1e6)(queries)
    assert np.all(np.diff(loose.similarities, axis=1) <= 0)
    capsys.readouterr()
    monkeypatch.setattr(search, "_partitioned_wins", lambda *_: True)
    run = SupportSearch(anchors, k=7)
    _agrees(run(queries), queries, anchors, 7)
    assert "; searching exactly instead" in capsys.readouterr().err


def _with_error(error):
    """A device's search whose products have an error, unless they are float32's."""

    def made(embeddings, anchor_labels, *, k, precision="float32"):
        exact = host_search(embeddings, anchor_labels, k=k)

        def run(queries, labels):
            found = exact(queries, labels)
            noise = np.random.default_rng(0).normal(size=found.similarities.shape)
            noise = error * noise.astype(np.float32) * (precision != "float32")
            return Neighbours(found.similarities + noise, found.indices)

        return run

    return made


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_precision_is_checked_on_a_gpu_and_exact_on_a_cpu(precision, monkeypatch, capsys):
    anchors, queries, labels = _set(), _faces(80), _labels(80)
    here = SupportSearch(anchors, k=7, searcher=precision)(queries, labels)
    exact = SupportSearch(anchors, k=7, searcher="exact")(queries, labels)
    jax.tree.map(np.testing.assert_array_equal, here, exact)
    assert not capsys.readouterr().err
    monkeypatch.setattr(search.jax, "default_backend", lambda: "gpu")
    run = SupportSearch(anchors, k=7, searcher=precision)
    _agrees(run(queries, labels), queries, anchors, 7, labels)
    run(queries)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{precision}: recall@7 1.0000; error in log F 0.00%")
    monkeypatch.setattr(search, "device_search", _with_error(0.1))
    with pytest.raises(UserError, match=f"{precision}: .* past the tolerance of 2.00%: choose"):
        SupportSearch(anchors, k=7, searcher=precision)(queries)


@needs_scann
def test_partitioned_where_the_leaves_hold_too_few(monkeypatch):
    anchors, queries = _set(400), _faces(70)
    run = search._scann_partitioned(anchors.embeddings, anchors.labels, k=300)
    found = run(queries, None, share=0.1)
    _agrees(found, queries, anchors, 300)


def test_what_scann_leaves_out():
    best = exact_search.BestSoFar(2, 3)
    indices = np.array([[4, 1, 0], [2, 3, 0]], np.uint32)
    similarities = np.array([[0.9, 0.5, np.nan], [0.8, 0.7, 0.6]], np.float32)
    labels, anchor_labels = np.array([7, -1]), np.array([7, 7, -1, 3, 5])
    search._merge(best, (indices, similarities), labels, anchor_labels, first=0)
    search._merge(best, (indices[:, :1] * 0, similarities[:, :1] / 2), None, None, first=9)
    found = best.sorted()
    np.testing.assert_array_equal(found.similarities[0], np.float32([0.9, 0.45, -np.inf]))
    np.testing.assert_array_equal(found.indices[0, :2], [4, 9])
    np.testing.assert_array_equal(found.indices[1], [2, 3, 0])


def test_the_error_in_log_f():
    exact = Neighbours(np.array([[0.5, 0.4], [0.9, 0.1], [0.2, -np.inf]]), np.array([[1, 2]] * 3))
    found = Neighbours(np.array([[0.5, 0.3], [0.9, 0.1], [0.2, -np.inf]]), np.array([[1, 3]] * 3))
    error = approximation_error(found, exact, tau=2.0)
    true = [np.log(reference.density(row, 2.0)) for row in ([0.5, 0.4], [0.9, 0.1])]
    other = np.log(reference.density([0.5, 0.3], 2.0))
    assert (error.recall, error.faces) == (0.5, 2)
    np.testing.assert_allclose(error.largest, (other - true[0]) / np.std(true), rtol=1e-6)
    np.testing.assert_allclose(error.rms, error.largest / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("queries", "anchors", "wins"),
    [(10**6, 49_999, False), (10**5, 50_000, False), (2 * 10**5, 50_000, True),
     (4 * 10**4, 10**6, False), (10**5, 10**6, True), (10**8, 10**7, False), (None, 10**6, False)],
)  # fmt: skip
def test_when_auto_is_approximate(monkeypatch, queries, anchors, wins):
    monkeypatch.setattr(search, "has_scann", lambda: True)
    monkeypatch.setattr(search, "_import_scann", lambda: None)
    rows = np.broadcast_to(np.float32(0.0625), (anchors, 256))  # no memory behind it
    chosen = SupportSearch(AnchorSet(rows), k=10, expected_queries=queries).searcher
    assert chosen == ("scann_partitioned" if wins else "exact")


@pytest.mark.parametrize("searcher", ["scann", "scann_partitioned"])
def test_scann_that_cannot_be_imported(monkeypatch, searcher):
    monkeypatch.setattr(search, "has_scann", lambda: True)
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(UserError, match="installed but cannot be imported"):
        SupportSearch(_set(), k=1, searcher=searcher)
    monkeypatch.setattr(search, "_partitioned_wins", lambda *_: True)
    assert SupportSearch(_set(), k=1).searcher == "exact"
    monkeypatch.setattr(search, "has_scann", lambda: False)
    with pytest.raises(UserError, match="not installed"):
        SupportSearch(_set(), k=1, searcher=searcher)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_is_positive(tolerance):
    with pytest.raises(UserError, match="tolerance"):
        SupportSearch(_set(), k=1, tolerance=tolerance)
