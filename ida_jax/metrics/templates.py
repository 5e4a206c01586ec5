"""Templates: many images of a person pooled into one embedding (IJB-B, IJB-C).

Images of one medium (the frames of a video) are averaged, the media's means are summed, and the sum
is normalised, as InsightFace does it:

    t = Σ over media m of (1/n_m) Σ over images i of m in the template of w_i e_i

which is linear in the embeddings: t = S·E with S sparse, an entry w_i / n_m for each image.

IJB-C's 469,375 embeddings are thus one product over slabs of a mapped file, and pooled densities
are the same product.

N images, T templates, D embedding.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError

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
    """
    from scipy.sparse import csc_array

    templates, media = np.asarray(templates), np.asarray(media)
    n = templates.size
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if templates.shape != (n,) or media.shape != (n,) or weights.shape != (n,) or not n:
        raise UserError(
            f"templates of shape {templates.shape}, media {media.shape} and weights "
            f"{weights.shape} were given, expected one of each per image"
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


def pool_templates(
    matrix: "csc_array",
    values: np.ndarray,
    *,
    norm: str = "keep",
    halves: bool = False,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """S·E, float64 [T, D], in slabs of E, which may be a map of a file.

    Args:
      matrix: S, float64 [T, N].
      values: E, floating point [N, D]; or [N, 2D] with `halves`.
      norm: "keep", an embedding's norm is its weight; "unit", each is normalised first.
      halves: E holds the embeddings of each image and of its mirror image side by side, which are
        added.
      rows: int [N], the rows of E that the columns of S are; all where None.
    """
    if norm not in ("keep", "unit"):
        raise UserError(f"unknown norm '{norm}': choose keep or unit")
    rows = np.arange(values.shape[0]) if rows is None else rows
    if values.ndim != 2 or rows.size != matrix.shape[1]:
        raise UserError(
            f"the embeddings are {list(values.shape)}, the lists have {matrix.shape[1]} images: "
            "expected one row per image, in the lists' order"
        )
    if halves and values.shape[1] % 2:
        raise UserError(f"the embeddings are {values.shape[1]} wide: expected two halves")
    width = values.shape[1] // (2 if halves else 1)
    pooled = np.zeros((matrix.shape[0], width))
    for start in range(0, rows.size, _SLAB):
        slab = np.asarray(values[rows[start : start + _SLAB]], np.float64)
        if halves:
            slab = slab[:, :width] + slab[:, width:]
        length = np.sqrt(np.einsum("nd,nd->n", slab, slab))
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
        if bad.size:
            raise UserError(
                f"embedding {rows[start + bad[0]]} is zero, NaN or infinite: embed that image "
                "again, or leave it out (--skip_bad)"
            )
        if norm == "unit":
            slab /= length[:, None]
        pooled += matrix[:, start : start + _SLAB] @ slab
    return pooled


class Templates(NamedTuple):
    """Images dealt into templates.

    Attributes:
      templates: int64 [N], each image's template, 0 … T−1.
      labels: [T], each template's identity.
    """

    templates: np.ndarray
    labels: np.ndarray


def dealt_templates(labels: ArrayLike, *, size: int) -> Templates:
    """Templates of at most `size` images each from images of known people, in their order.

    A person with n images gets ⌈n / size⌉ templates, and two where n is 2 or more, of sizes that
    differ by at most one. Ours: what IJB's lists do for data sets that have none.

    Args:
      labels: [N], the images' identities.
      size: at least 1.
    """
    labels = np.asarray(labels)
    if size < 1 or not labels.size:
        raise UserError(
            f"templates of {size} images were requested from {labels.size} images: expected a "
            "size of at least 1, and images"
        )
    people, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    parts = np.maximum(-(-counts // size), np.minimum(counts, 2))
    first = np.cumsum(parts) - parts
    order = np.argsort(own, kind="stable")
    place = np.empty(labels.size, np.int64)
    place[order] = np.arange(labels.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return Templates(first[own] + place % parts[own], np.repeat(people, parts))


class Fused(NamedTuple):
    """Templates as Gaussians.

    Attributes:
      means: float32 [T, D], unit rows.
      log_variances: float32 [T, D].
    """

    means: np.ndarray
    log_variances: np.ndarray


def fuse(
    means: np.ndarray,
    log_variances: np.ndarray,
    templates: ArrayLike,
    *,
    rows: np.ndarray | None = None,
) -> Fused:
    """Each template's images fused, each dimension weighted by 1/σ².

        μ_d ∝ Σᵢ (μ_id / σ_id²) / Σᵢ (1 / σ_id²), made a unit vector;    σ_d² = minᵢ σ_id²

    Source: Shi & Jain's code. The article derives σ_d² = 1 / Σᵢ (1/σ_id²), which holds for
    independent images; those of one template, often one video's frames, are not.

    Args:
      means: floating point [N, D], rows of any norm; with log_variances it may be a map of a file.
      log_variances: floating point [N, D].
      templates: int [N], each image's template, 0 … T−1, none without images.
      rows: int [N], the rows of both that the images are; all where None.
    """
    templates = np.asarray(templates)
    rows = np.arange(means.shape[0]) if rows is None else rows
    if means.shape != log_variances.shape or means.ndim != 2 or templates.shape != rows.shape:
        raise UserError(
            f"means are {list(means.shape)}, log σ² {list(log_variances.shape)} and templates "
            f"{list(templates.shape)}: expected [N, D], [N, D] and [N]"
        )
    order = np.argsort(templates, kind="stable")
    numbers, starts = np.unique(templates[order], return_index=True)
    if not np.array_equal(numbers, np.arange(numbers.size)):
        empty = np.setdiff1d(np.arange(numbers[-1] + 1), numbers)
        wrong = f"template {empty[0]} has no image" if empty.size else f"template {numbers[0]}"
        raise UserError(f"{wrong}: expected templates numbered from 0, none without images")
    ends = np.append(starts[1:], templates.size)
    fused, least = (np.empty((numbers.size, means.shape[1]), np.float32) for _ in range(2))
    first = 0
    while first < numbers.size:
        # As many templates as fit a slab, one at least.
        last = max(first + 1, np.searchsorted(ends, starts[first] + _SLAB, side="right"))
        slab, own = rows[order[starts[first] : ends[last - 1]]], starts[first:last] - starts[first]
        mean = np.asarray(means[slab], np.float64)
        norm = np.linalg.norm(mean, axis=1)
        log_variance = np.asarray(log_variances[slab], np.float64)
        good = np.isfinite(norm) & (norm > 0) & np.isfinite(log_variance).all(axis=1)
        if not good.all():
            raise UserError(
                f"embedding {slab[~good][0]} is zero, NaN or infinite, or its log σ² is not "
                "finite: embed that image again"
            )
        mean /= norm[:, None]
        lowest = np.minimum.reduceat(log_variance, own)
        # The surest image has weight 1, so that no sum is 0 or overflows.
        sizes = ends[first:last] - starts[first:last]
        weight = np.exp(np.repeat(lowest, sizes, axis=0) - log_variance)
        pooled = np.add.reduceat(weight * mean, own) / np.add.reduceat(weight, own)
        fused[first:last] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        least[first:last] = lowest
        first = last
    return Fused(fused, least)
