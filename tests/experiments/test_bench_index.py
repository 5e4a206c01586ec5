"""The benchmark of the vector index: what it makes of its figures."""

import pytest

pytest.importorskip("faiss")


def _tried(effort, recalls, seconds):
    both = ("cosine", "certified")
    took = dict(zip(both, seconds, strict=True))
    recall = dict(zip(both, recalls, strict=True))
    return {"effort": effort, "recall": recall, "seconds": took, "cpu_seconds": took}


def test_time_at_the_same_recall():
    import bench_index

    curves = [
        _tried(1, (0.4, 0.5), (1.0, 1.0)),  # the certified search has no share as small
        _tried(2, (0.6, 0.7), (2.0, 2.0)),  # half-way from 1 to 2 in logarithms
        _tried(4, (0.8, 1.0), (4.0, 4.0)),  # a third from 2 to 4
        _tried(8, (1.0, 1.0), (5.0, 8.0)),  # reached at 4 already
        _tried(16, (1.0, 1.0), (9.0, 16.0)),  # the cosine needs no more than 8
    ]
    found = bench_index._at_the_same_recall(curves)
    assert [each["effort_of_the_cosine"] for each in found] == [2, 4, 8]
    expected = [2**0.5 / 2, 2 ** (4 / 3) / 4, 4 / 5]
    for name in ("ratio", "cpu_ratio"):
        assert [each[name] for each in found] == pytest.approx(expected)
