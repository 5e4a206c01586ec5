"""Templates: many images of a person pooled into one embedding (IJB-B, IJB-C).

Images of one medium (the frames of a video) are averaged, the media's means are summed, and the sum
is normalised, as InsightFace does it:

    t = Σ over media m of (1/n_m) Σ over images i of m in the template of w_i e_i

which is linear in the embeddings: t = S·E with S sparse, an entry w_i / n_m for each image.

N images, T templates, D embedding.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csc_array

# Images at once. Not an option: the last bits of a sum depend on where it is cut.
_SLAB = 8192


def pooling_matrix(
    templates: ArrayLike, media: ArrayLike, *, weights: ArrayLike | None = None
) -> "csc_array":
    """S, float64 [T, N]: what each image adds to its template.

    Args:
      templates: int [N], each image's template, 0 … T−1, none without images.
      media: int [N], each image's medium, any whole number; the same number in two templates is two
        media.
      weights: [N], w_i, finite and at least 0; 1 where None. The detector's score, for one.

    Raises:
      UserError: lengths that differ, a template without images, a weight that is negative or not
        finite, or a template whose weights are all 0.
    """
    from scipy.sparse import csc_array

    templates, media = np.asarray(templates), np.asarray(media)
    n = templates.size
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if templates.shape != (n,) or media.shape != (n,) or weights.shape != (n,) or not n:
        raise UserError(
            f"templates of shape {templates.shape}, media {media.shape} and weights "
            f"{weights.shape} were given, expected one of each an image"
        )
    if templates.min() < 0:
        raise UserError(f"template {templates.min()} was given, expected them numbered from 0")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise UserError(
            f"the weight of image {bad[0]} is {weights[bad[0]]}: expected a finite one, 0 or more"
        )
    count = int(templates.max()) + 1
    total = np.bincount(templates, weights, minlength=count)
    if not (total > 0).all():
        empty = int(np.flatnonzero(~(total > 0))[0])
        raise UserError(f"template {empty} (from 0) has no image of a weight above 0")
    _, medium = np.unique(media, return_inverse=True)
    key = templates.astype(np.int64) * (medium.max() + 1) + medium
    _, place, size = np.unique(key, return_inverse=True, return_counts=True)
    entries = weights / size[place]
    return csc_array((entries, (templates, np.arange(n))), shape=(count, n))


def pool(
    matrix: "csc_array",
    values: np.ndarray,
    *,
    images: str = "keep",
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """S·E, float64 [T, D], in slabs of E, which may be a map of a file.

    Args:
      matrix: S, float64 [T, N].
      values: E, floating point [N, D]; or [N, 2D], the embeddings of each image and of its mirror
        image side by side, with `images` ending in "_halves", which are added.
      images: "keep", an embedding's norm is its weight; "unit", each is normalised first.
      rows: int [N], the rows of E that the columns of S are; all where None.

    Raises:
      UserError: another number of rows, an odd width of halves, or a row that is zero, NaN or
        infinite, named by number.
    """
    kind, _, halves = images.partition("_")
    if kind not in ("keep", "unit") or halves not in ("", "halves"):
        raise UserError(f"images '{images}' is unknown: choose keep or unit, with _halves or not")
    rows = np.arange(values.shape[0]) if rows is None else rows
    if values.ndim != 2 or rows.size != matrix.shape[1]:
        raise UserError(
            f"the embeddings are {list(values.shape)}, the lists have {matrix.shape[1]} images: "
            "expected one row an image, in the lists' order"
        )
    if halves and values.shape[1] % 2:
        raise UserError(f"the embeddings are {values.shape[1]} wide: expected two halves")
    width = values.shape[1] // (2 if halves else 1)
    pooled = np.zeros((matrix.shape[0], width))
    for start in range(0, rows.size, _SLAB):
        slab = np.asarray(values[rows[start : start + _SLAB]], np.float64)
        if halves:
            slab = slab[:, :width] + slab[:, width:]
        norm = np.sqrt(np.einsum("nd,nd->n", slab, slab))
        bad = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
        if bad.size:
            raise UserError(
                f"embedding {rows[start + bad[0]]} is zero, NaN or infinite: embed that image "
                "again, or leave it out (--skip-bad)"
            )
        if kind == "unit":
            slab /= norm[:, None]
        pooled += matrix[:, start : start + _SLAB] @ slab
    return pooled
