"""Identification, 1:N: the gallery's faces with the highest scores, exactly.

The density of a gallery face changes its rank, so that no short list by cosine is reranked: every
gallery face's score is computed.

The gallery passes over the devices of a mesh by slabs of one shape, so that nothing compiles anew
and memory does not grow with it: each device has its share of a slab's faces, goes through them by
blocks, and keeps the best of each probe; at the end the devices' best are merged. A gallery may be
an array, or a map of a `GalleryFile`, whose faces may be float16: they are scored as they are
stored, in float32.

M probes, G gallery faces, D embedding, S numbers a face, V devices.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ida_jax.common.devices import by_blocks, filled, local_mesh, padded, replicated
from ida_jax.common.errors import UserError
from ida_jax.common.outputs import writing
from ida_jax.ops.hypersphere import blockwise_top_k
from ida_jax.rescoring.gallery_file import GalleryFile
from ida_jax.rescoring.gallery_segments import Joined, on_host
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.rescoring.tiles import cosines, rule_scores, take_rows
from ida_jax.tables.score_origin import ScoreOrigin

# Probes, and gallery faces, at once. On a CPU 512 × 8192 similarities are 16 MiB; other devices
# take the whole of their share of a slab.
_PROBE_BLOCKS = (1, 16, 64, 512)
DEVICE_PROBE_BLOCKS = (1, 16, 64, 1024)
_GALLERY_BLOCK = 8192
DEVICE_GALLERY_BLOCK = 65536
# Faces of a slab on each device: 64 MiB of 512 float16.
_SLAB = 65536


@dataclass(frozen=True, eq=False)
class Gallery:
    """Enrolled faces with their densities: made once, searched many times.

    Attributes:
      embeddings: [G, D], unit rows: float32, or float32 or float16 of a file, memory-mapped.
      terms: the method's numbers of the G faces.
      enrolled: bool [G], false of faces that were deleted, whose rows no search finds; None where
        none was.
      names: of the G faces; empty where unknown.
      origin: what scores of these faces are made with; None where unknown.
    """

    embeddings: np.ndarray | jax.Array | Joined
    terms: FaceTerms
    enrolled: np.ndarray | None = None
    names: Sequence[str] = ()
    origin: ScoreOrigin | None = None
    _on_devices: dict = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """The faces that searches may find."""
        return len(self.embeddings) if self.enrolled is None else int(self.enrolled.sum())

    @property
    def width(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    def save(self, folder: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Writes the gallery as a folder that `load` maps and `ida-jax enrol` appends to.

        Args:
          folder: a new one, or an empty one.
          dtype: "float32", or "float16": half the size, cosines within 5·10⁻⁴.

        Raises:
          UserError: no names (`Rescorer.gallery` takes them), repeated ones, or a folder in use.
        """
        if self.origin is None or len(self.names) != len(self.embeddings):
            raise UserError("a gallery is saved with names: make it by Rescorer.gallery(…, names)")
        with writing({}, reading={}, folder=Path(folder)):
            new = GalleryFile.new(
                folder,
                origin=self.origin,
                rule=self.terms.rule,
                constants=self.terms.constants,
                width=self.width,
                dtype=dtype,
            )
            rows = np.arange(len(self.embeddings)) if self.enrolled is None else self.enrolled
            values = np.asarray(self.terms.values)[rows]
            names = [self.names[row] for row in np.arange(len(self.embeddings))[rows].tolist()]
            new.append(names, [(np.asarray(self.embeddings)[rows], values)])

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> "Gallery":
        """A saved gallery, memory-mapped, as it is now: what is enrolled later is not seen.

        Args:
          verify: compare all of a gallery of more than 256 MiB with its checksums, not a sample.

        Raises:
          UserError: no gallery there, or a damaged one.
        """
        file = GalleryFile.open(folder, verify=verify)
        return cls(file.embeddings, file.terms, file.enrolled, file.names, file.origin)

    def names_of(self, rows: np.ndarray) -> np.ndarray:
        """Names of rows of any shape, as an array of str; None for row −1.

        Raises:
          UserError: a gallery without names.
        """
        if not len(self.names):
            raise UserError("the gallery has no names: give them to Rescorer.gallery")
        found = [self.names[row] if row >= 0 else None for row in rows.ravel().tolist()]
        return np.array(found, object).reshape(rows.shape)


class Candidates(NamedTuple):
    """Each probe's best gallery faces, the best first, equal ones by their row.

    Attributes:
      scores: float32 [M, top].
      rows: int64 [M, top], rows of the gallery; −1, with the score −inf, where a probe is NaN.
    """

    scores: np.ndarray
    rows: np.ndarray


class _Slab(NamedTuple):
    """Some of the gallery's faces on the devices, each of which has its share.

    Attributes:
      first: the gallery's row of the first.
      embeddings: [R, D].
      values: [R, S].
      enrolled: bool [R], false of deleted faces, and beyond the gallery's end.
    """

    first: int
    embeddings: jax.Array
    values: jax.Array
    enrolled: jax.Array


class BestFaces(NamedTuple):
    """Each device's best faces of each probe: scores [V, M, top], their slabs, places in these."""

    scores: jax.Array
    slab: jax.Array
    place: jax.Array


def identify(
    probes: np.ndarray,
    probe_terms: FaceTerms,
    gallery: Gallery,
    *,
    top: int = 10,
    mesh: Mesh | None = None,
    precision: str = "float32",
) -> Candidates:
    """The `top` gallery faces of each probe by the method's score.

    In the rule the gallery's face is the first, enrolled one, the probe the second.

    Args:
      probes: float32 [M, D], unit rows.
      top: how many, 1 ≤ top ≤ G.
      mesh: whose devices share the gallery, along all of its axes; this process's if None. In one
        of several processes all of them call this alike, and each reads its own share.
      precision: of the cosines, of `ops.products.PRECISIONS`.

    Raises:
      UserError: widths that differ, `top` outside 1 … G, terms of another method.
    """
    probe_terms.check(len(probes))
    _check(probes, probe_terms, gallery, top)
    mesh = local_mesh() if mesh is None else mesh

    def best(faces: np.ndarray, values: np.ndarray) -> Candidates:
        own = jax.device_put((faces, probe_terms._replace(values=values)), replicated(mesh))
        return _search(*own, gallery, top, mesh, precision)

    sizes = _PROBE_BLOCKS if _on_cpu(mesh) else DEVICE_PROBE_BLOCKS
    return by_blocks(best, probes, np.asarray(probe_terms.values), sizes=sizes)


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _check(probes: np.ndarray, probe_terms: FaceTerms, gallery: Gallery, top: int) -> None:
    made, given = gallery.terms, probe_terms
    if given.rule != made.rule:
        raise UserError(
            f"the gallery was made for {made.rule}, the probes for {given.rule}: "
            "make both with one Rescorer"
        )
    if not np.array_equal(given.constants, made.constants):
        raise UserError(
            f"the gallery's constants of {made.rule} are {list(map(float, made.constants))}, the "
            f"probes' {list(map(float, given.constants))}: make both with one Rescorer"
        )
    if probes.shape[1] != gallery.width:
        raise UserError(
            f"the probes' embeddings are {probes.shape[1]} wide, the gallery's "
            f"{gallery.width}: both must come from the same model"
        )
    if not 1 <= top <= len(gallery):
        raise UserError(
            f"the best {top} of {len(gallery)} gallery faces were asked for: "
            f"expected 1 … {len(gallery)}"
        )


def _search(
    probes: jax.Array,
    probe_terms: FaceTerms,
    gallery: Gallery,
    top: int,
    mesh: Mesh,
    precision: str,
) -> Candidates:
    block = max(top, _GALLERY_BLOCK if _on_cpu(mesh) else DEVICE_GALLERY_BLOCK)
    best = _nothing(mesh, len(probes), top)
    firsts = []
    for number, slab in enumerate(_slabs(gallery, mesh)):
        before = best
        best = best_with_slab(
            mesh, block, precision, best, np.int32(number), slab[1:], probes, probe_terms
        )
        # One slab is worked on while the next one is read, and no more are held.
        jax.block_until_ready(before)
        firsts.append(slab.first)
    scores, slabs, places = map(np.asarray, _merged(mesh, best))
    rows = np.where(scores > -np.inf, np.int64(firsts)[slabs] + places, -1)
    order = np.lexsort((rows, -scores))
    return Candidates(*(np.take_along_axis(x, order, axis=1) for x in (scores, rows)))


def _split(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def _slabs(gallery: Gallery, mesh: Mesh) -> Iterator[_Slab]:
    """The gallery by slabs, on the devices from one search to the next where they have the room."""
    if mesh not in gallery._on_devices:
        if not _fits(gallery, mesh):
            yield from _uploaded(gallery, mesh)
            return
        gallery._on_devices[mesh] = list(_uploaded(gallery, mesh))
    yield from gallery._on_devices[mesh]


def _fits(gallery: Gallery, mesh: Mesh) -> bool:
    """Half of the devices' memory; a processor's own is no faster than the file's map."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return not isinstance(gallery.embeddings, Joined)
    limit = (device.memory_stats() or {}).get("bytes_limit", 4 << 30)
    return gallery.embeddings.nbytes <= limit * len(mesh.local_devices) // 2


def slab_share(rows: int, devices: int) -> int:
    """Faces of a slab on each device, for a gallery of `rows`.

    A power of two for few faces: a few shapes stand for every gallery's size.
    """
    return min(_SLAB, len(filled(np.empty((-(-rows // devices), 0)))))


def _uploaded(gallery: Gallery, mesh: Mesh) -> Iterator[_Slab]:
    rows, split = len(gallery.embeddings), _split(mesh)
    enrolled = np.ones(rows, bool) if gallery.enrolled is None else gallery.enrolled
    arrays = [on_host(array) for array in (gallery.embeddings, gallery.terms.values, enrolled)]
    share = slab_share(rows, mesh.size)
    size = share * mesh.size

    def put(array: np.ndarray | Joined, first: int) -> jax.Array:
        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            start = first + (index[0].start or 0)
            piece = array[start : min(start + share, rows)]
            return piece if len(piece) == share else padded(piece, share)

        return jax.make_array_from_callback((size, *array.shape[1:]), split, of_device)

    for first in range(0, rows, size):
        if enrolled[first : first + size].any():
            yield _Slab(first, *(put(array, first) for array in arrays))


def _nothing(mesh: Mesh, probes: int, top: int) -> BestFaces:
    shape = (mesh.size, probes, top)

    def filled_with(value: np.generic) -> jax.Array:
        whole = np.full(shape, value)
        return jax.make_array_from_callback(shape, _split(mesh), lambda index: whole[index])

    return BestFaces(
        filled_with(np.float32(-np.inf)), *(filled_with(np.int32(0)) for _ in range(2))
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def best_with_slab(
    mesh: Mesh,
    block: int,
    precision: str,
    best: BestFaces,
    number: jax.Array,
    slab: tuple[jax.Array, jax.Array, jax.Array],
    probes: jax.Array,
    probe_terms: FaceTerms,
) -> BestFaces:
    """The best of each device after another slab."""
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def on_device(
        best: BestFaces,
        number: jax.Array,
        slab: tuple[jax.Array, jax.Array, jax.Array],
        probes: jax.Array,
        probe_terms: FaceTerms,
    ) -> BestFaces:
        embeddings, values, enrolled = slab
        rows, top = len(embeddings), best.scores.shape[2]
        size = min(block, rows)
        terms = probe_terms._replace(values=values)

        def scores(first: jax.Array) -> jax.Array:
            faces = lax.dynamic_slice_in_dim(embeddings, first, size).astype(jnp.float32)
            found = rule_scores(
                cosines(probes, faces, precision=precision),
                probe_terms,
                take_rows(terms, first, size),
                enrolled="columns",
            )
            there = lax.dynamic_slice_in_dim(enrolled, first, size)[None, :]
            return jnp.where(there & ~jnp.isnan(found), found, -jnp.inf)

        found = blockwise_top_k(scores, (len(probes), rows), k=min(top, rows), block_size=size)
        share = lax.axis_index(mesh.axis_names).astype(jnp.int32) * rows
        both = BestFaces(
            jnp.concatenate([best.scores[0], found.similarities], axis=1),
            jnp.concatenate([best.slab[0], jnp.full_like(found.indices, number)], axis=1),
            jnp.concatenate([best.place[0], share + found.indices], axis=1),
        )
        return jax.tree.map(lambda x: x[None], _largest(both, top))

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, whole, split, whole, whole), out_specs=split,
        check_vma=False,
    )(best, number, slab, probes, probe_terms)  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _merged(mesh: Mesh, best: BestFaces) -> BestFaces:
    """The best of all devices, [M, top], on each of them."""
    beside = jax.tree.map(lambda x: jnp.concatenate(list(x), axis=1), best)
    merged = _largest(BestFaces(*beside), best.scores.shape[2])
    return lax.with_sharding_constraint(merged, replicated(mesh))


def _largest(found: BestFaces, top: int) -> BestFaces:
    scores, place = lax.top_k(found.scores, top)
    slab, places = (jnp.take_along_axis(x, place, axis=1) for x in (found.slab, found.place))
    return BestFaces(scores, slab, places)
