from typing import NamedTuple

import jax
import numpy as np
import pytest

from ida_jax.common.devices import by_blocks


class _Out(NamedTuple):
    sums: jax.Array
    doubled: jax.Array


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 16, 17])
def test_blocks_give_what_the_whole_gives(n):
    second = np.arange(n, dtype=np.float32)
    first = np.stack([second, second**2, -second], axis=1)
    shapes = set()

    def function(rows, numbers):
        shapes.add(rows.shape)
        return _Out(jax.numpy.sum(rows, axis=1) + numbers, 2 * rows)

    got = by_blocks(function, first, second, sizes=(2, 4))
    np.testing.assert_array_equal(got.sums, first.sum(axis=1) + second)
    np.testing.assert_array_equal(got.doubled, 2 * first)
    assert shapes == {({0: 0, 1: 2}.get(n, 4), 3)}
    got.sums[:] = 0  # the caller's own
