"""Balanced batches: identities drawn, images of each side by side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.balanced import balanced_rows
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.pipeline import training_batches


def _labels(seed=0):
    """Identities of 1 … 6 images, in a random order."""
    counts = [1, 2, 3, 4, 5, 6, 1, 2, 4]
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(9) * 7, counts))


def test_a_batch_has_whole_groups_of_one_identity_each():
    labels = _labels()
    rows = balanced_rows(labels, identities=5, images=4, seed=3)
    for step in range(20):
        groups = labels[rows(step * 20, 20)].reshape(5, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 5
        for group in rows(step * 20, 20).reshape(5, 4):
            # All of its images before one is seen again.
            assert len(set(group)) == min(4, np.sum(labels == labels[group[0]]))


def test_single_images_are_left_out_and_counted_and_all_others_are_seen():
    labels = _labels()
    rows = balanced_rows(labels, identities=3, images=2, seed=0)
    counts = {label: int(np.sum(labels == label)) for label in labels}
    single = {row for row, label in enumerate(labels) if counts[label] == 1}
    assert rows.left_out == len(single) == 2
    assert set(rows(0, 6 * 200).tolist()) == set(range(len(labels))) - single


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 500), count=st.integers(1, 70), seed=st.integers(0, 5))
def test_any_range_of_numbers_is_a_cut_of_the_same_sequence(first, count, seed):
    rows = balanced_rows(_labels(), identities=4, images=3, seed=seed)
    whole = rows(0, 600)
    np.testing.assert_array_equal(rows(first, count), whole[first : first + count])
    other = balanced_rows(_labels(), identities=4, images=3, seed=seed + 1)
    assert not np.array_equal(other(0, 600), whole)


def test_the_pipeline_takes_them_and_hosts_share_a_batch():
    labels = _labels()
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    dataset = FaceDataset(images, labels.astype(np.int32), tuple(map(str, range(60))))
    rows = balanced_rows(labels, identities=4, images=2, seed=1)
    options = {"batch_size": 8, "seed": 1, "first_step": 5, "augment": "none", "rows": rows}
    halves = [training_batches(dataset, shard=s, shards=2, **options) for s in range(2)]
    for step in range(5, 8):
        found = [next(half) for half in halves]
        seen = np.concatenate([batch.images[:, 0, 0, 0] for batch in found])
        np.testing.assert_array_equal(seen, rows(step * 8, 8))
        np.testing.assert_array_equal(
            np.concatenate([batch.labels for batch in found]), labels[rows(step * 8, 8)]
        )
    for half in halves:
        half.close()


def test_too_few_identities_are_told():
    with pytest.raises(UserError, match="7 of 9 identities have two images or more, and a batch"):
        balanced_rows(_labels(), identities=8, images=2, seed=0)
