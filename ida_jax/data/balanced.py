"""Balanced batches: some images of each of some identities, as pair losses take them.

B batch, N faces, I identities a batch, M images of each: B = I · M.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError


class BalancedRows(NamedTuple):
    """Which rows a training's images are, by their numbers; build it by `balanced_rows`.

    Attributes:
      rows: int [N'], the faces of the identities that have two images or more, those of one
        identity side by side.
      starts: int [C'+1], where each of those identities begins in `rows`.
      identities: I.
      images: M.
      seed: of the draws.
      left_out: faces whose identity has no second image.
    """

    rows: np.ndarray
    starts: np.ndarray
    identities: int
    images: int
    seed: int
    left_out: int

    def __call__(self, first: int, count: int) -> np.ndarray:
        """The rows that are images number `first` … `first` + `count` − 1, int64 [count]."""
        batch = self.identities * self.images
        steps = range(first // batch, -(-(first + count) // batch))
        rows = np.concatenate([self._batch(step) for step in steps])
        return rows[first - steps[0] * batch :][:count]

    def _batch(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, step])
        drawn = rng.choice(len(self.starts) - 1, self.identities, replace=False)
        out = np.empty((self.identities, self.images), np.int64)
        for place, identity in enumerate(drawn):
            own = self.rows[self.starts[identity] : self.starts[identity + 1]]
            # Repeated, in the same order, where there are fewer than M.
            out[place] = np.resize(rng.permutation(own), self.images)
        return out.reshape(-1)


def balanced_rows(labels: np.ndarray, *, identities: int, images: int, seed: int) -> BalancedRows:
    """Batches of M images of each of I identities, those of one identity side by side.

    A batch's identities are drawn without replacement, and of each its images too; one with fewer
    than M is filled up by repeating them. An identity with a single image gives no pair and is left
    out. Source: Probabilistic Face Embeddings' batches, 64 identities × 4.

    Args:
      labels: int [N], the identity of each face.
      identities: I.
      images: M, at least 2.
      seed: a batch is a function of it and of the batch's number alone.
    """
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    several = counts >= 2
    if several.sum() < identities:
        raise UserError(
            f"{several.sum()} of {counts.size} identities have two images or more, and a batch "
            f"takes {identities} of them: lower pfe.identities, or take other training data"
        )
    rows = order[np.repeat(several, counts)]
    ends = np.concatenate([[0], np.cumsum(counts[several])])
    return BalancedRows(rows, ends, identities, images, seed, int(counts[~several].sum()))
