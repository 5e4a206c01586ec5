"""MegaFace: rank-1 of every method in one pass over the distractors.

A distractor is a gallery face: its numbers (its density) are computed once, before any probe sees
it, and in the rule it is the first face, the enrolled one.

Distractors are taken in blocks of one fixed size, whatever the size of those that come in, and each
score, the mates' too, is an entry of a product of one fixed shape. So the figures do not depend on
the incoming blocks, to the last bit; and a distractor that is a copy of the mate ties with it,
which is a fault.

F probes, D embedding, n distractors of a block, S sizes, V numbers a face.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.devices import block_size, padded
from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import require_same_model, unit_rows
from ida_jax.metrics.bootstrap import bootstrap_means
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, Evaluation
from ida_jax.metrics.identification import (
    DISTRACTOR_SIZES,
    DistractorSearches,
    Rank1,
    distractor_searches,
    prefix_sets,
    rank1,
)
from ida_jax.metrics.interval_figures import mean_intervals
from ida_jax.protocols import face_blocks
from ida_jax.protocols.face_blocks import filled_up, fixed_blocks
from ida_jax.protocols.megaface_files import Megaface, find_lists, load_megaface
from ida_jax.protocols.table import Protocol, Request, option, register
from ida_jax.rescoring.method_table import BASELINE
from ida_jax.rescoring.methods import require_same_models
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.tiles import Side, take_rows, tile_scores
from ida_jax.tables.embeddings import names_beside, read_embeddings

# 512 × 8192 scores are 16 MiB.
_PROBES = 512


def evaluate_megaface(
    probes: np.ndarray,
    probe_labels: ArrayLike,
    distractors: Iterable[np.ndarray],
    scorers: Mapping[str, Rescorer],
    *,
    sizes: Sequence[int] = DISTRACTOR_SIZES,
    sets: Mapping[int, ArrayLike] | None = None,
    skip_bad: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Rank-1 of every method against the number of distractors (`ida_jax.metrics.identification`).

    Intervals are of the bootstrap over the probes' identities, paired for gains over the cosine.

    Args:
      probes: [F, D] floating point, rows of any norm.
      probe_labels: int [F], their identities.
      distractors: blocks [n, D] floating point, rows of any norm, n as it comes; taken once, and no
        further than the sets reach.
      scorers: a Rescorer a method, under its name in the figures.
      sizes: numbers of distractors, taken from the start of the list.
      sets: {size: int rows}, in place of sizes: the distractors of each.
      skip_bad: leaves out distractors that are zero, NaN or infinite, and counts them, instead of
        raising.

    Returns:
      Figures by method: "rank1@distractors" and "faults@distractors" by size, their intervals and
      gains, "probes", "searches".

    Raises:
      UserError: bad rows, named; widths that differ; fewer distractors than the sets reach; no
        identity with two images.
    """
    faces, _, norms = unit_rows(probes, what="probes")
    found = distractor_searches(probe_labels)
    if len(probe_labels) != len(faces):
        raise UserError(f"{len(probe_labels)} labels for {len(faces)} probes: expected one each")
    members = _members(prefix_sets(sizes) if sets is None else sets)
    reach = next(iter(members.values())).size
    block = block_size(face_blocks.SIZES, max(len(faces), reach))
    own = [
        _block(faces[i : i + block], norms[i : i + block], scorers, block)
        for i in range(0, len(faces), block)
    ]
    blocks = _probe_blocks(faces, own, block)
    mates = _mate_scores(blocks, own, found, block)

    highest = {name: np.full((len(faces), len(members)), -np.inf, np.float32) for name in scorers}
    start, bad = 0, []
    with progress_bar(
        total=reach, desc="distractors", unit="face", delay=2, leave=False
    ) as progress:
        for part in fixed_blocks(
            distractors, width=faces.shape[1], block=block, reach=reach, what="distractors"
        ):
            inside = [padded(rows[start : start + block], block) for rows in members.values()]
            bad.extend((start + part.bad[np.any(inside, axis=0)[part.bad]]).tolist())
            if bad and not skip_bad:
                raise UserError(
                    f"distractors: row {bad[0]} is zero, NaN or infinite; such a face can match "
                    "no one: leave it out, or embed it again"
                )
            masks = {place: part.good & rows for place, rows in enumerate(inside) if rows.any()}
            _raise_highest(highest, blocks, _block(part.faces, part.norms, scorers, block), masks)
            start += part.count
            progress.update(part.count)
    if start < reach:
        raise UserError(
            f"{start:,} distractors were given, the sets reach {reach:,}: ask for smaller sizes"
        )
    ranks = {name: rank1(mates[name], highest[name], found.probe) for name in scorers}
    figures = _figures(ranks, members, found, len(faces), resamples, seed)
    return Evaluation(figures, {}, _notes(ranks, members, bad))


def _members(sets: Mapping[int, ArrayLike]) -> dict[int, np.ndarray]:
    """{size: bool [T], whether it has each distractor}, by ascending size."""
    rows = {int(size): np.asarray(rows, np.int64) for size, rows in sorted(sets.items())}
    reach = max((int(of_size.max()) + 1 for of_size in rows.values() if of_size.size), default=0)
    if not reach or min(int(of_size.min(initial=0)) for of_size in rows.values()) < 0:
        raise UserError("the sets have no distractors, or negative rows: expected rows from 0")
    members = {size: np.zeros(reach, bool) for size in rows}
    for size, of_size in rows.items():
        members[size][of_size] = True
    return members


def _block(
    faces: np.ndarray, norms: np.ndarray, scorers: Mapping[str, Rescorer], block: int
) -> Side:
    """Faces filled up to a block, with each method's numbers, on the device."""
    filled = filled_up(faces, block)
    norms = np.append(norms, np.full(block - len(norms), np.nan))
    terms = {name: scorer.terms(filled, norms=norms) for name, scorer in scorers.items()}
    return jax.device_put(Side(filled, terms))


def _probe_blocks(faces: np.ndarray, own: Sequence[Side], block: int) -> list[Side]:
    """The probes by blocks of _PROBES rows, the last one filled up."""
    return [
        Side(
            crowd.faces[first : first + _PROBES],
            {name: take_rows(terms, first, _PROBES) for name, terms in crowd.terms.items()},
        )
        for number, crowd in enumerate(own)
        for first in range(0, block, _PROBES)
        if number * block + first < len(faces)
    ]


def _mate_scores(
    blocks: Sequence[Side], own: Sequence[Side], found: DistractorSearches, block: int
) -> dict[str, np.ndarray]:
    """s(g, p) of each search, by method."""
    out = {name: np.empty(len(found.probe), np.float32) for name in blocks[0].terms}
    for row, probes in enumerate(blocks):
        for column, gallery in enumerate(own):
            here = (found.probe // _PROBES == row) & (found.mate // block == column)
            at = found.probe[here] % _PROBES, found.mate[here] % block
            for name, scores in tile_scores(probes, gallery, enrolled="columns"):
                out[name][here] = np.asarray(scores)[at]
    return out


def _raise_highest(
    highest: Mapping[str, np.ndarray],
    blocks: Sequence[Side],
    gallery: Side,
    masks: Mapping[int, np.ndarray],
) -> None:
    """Raises each probe's highest scores to those of a block, in the places of its sizes."""
    for number, probes in enumerate(blocks):
        for name, scores in tile_scores(probes, gallery, enrolled="columns"):
            so_far = highest[name][number * _PROBES : (number + 1) * _PROBES]
            for place, mask in masks.items():
                here = np.asarray(_highest(scores, mask))[: len(so_far)]
                np.maximum(so_far[:, place], here, out=so_far[:, place])


@jax.jit
def _highest(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """[_PROBES]: the highest score of the columns in the mask; NaN is none."""
    return jnp.max(jnp.where(mask[None, :] & ~jnp.isnan(scores), scores, -jnp.inf), axis=1)


def _figures(
    ranks: Mapping[str, Rank1],
    members: Mapping[int, np.ndarray],
    found: DistractorSearches,
    probes: int,
    resamples: int,
    seed: int,
) -> dict[str, dict]:
    keys = [str(size) for size in members]
    figures: dict[str, dict] = {
        name: {
            "rank1@distractors": dict(zip(keys, rank.rate.tolist(), strict=True)),
            "faults@distractors": dict(zip(keys, rank.faults.tolist(), strict=True)),
            "probes": probes,
            "searches": len(found.probe),
        }
        for name, rank in ranks.items()
    }
    for place, key in enumerate(keys):
        sure = bootstrap_means(
            {name: rank.right[:, place] for name, rank in ranks.items()},
            found.identity[:, None],
            count=found.identities,
            over="identities",
            baseline=BASELINE,
            resamples=resamples,
            seed=seed,
        )
        for name in sure.differences:
            gain = float(ranks[name].rate[place] - ranks[BASELINE].rate[place])
            figures[name].setdefault("rank1_gain@distractors", {})[key] = gain
        for name, entries in mean_intervals(sure).items():
            for kind, entry in entries.items():
                figures[name].setdefault(f"rank1_{kind}@distractors", {})[key] = entry
    return figures


def _notes(
    ranks: Mapping[str, Rank1], members: Mapping[int, np.ndarray], bad: Sequence[int]
) -> tuple[str, ...]:
    notes = []
    if bad:
        notes.append(
            f"{len(bad):,} distractors that are zero, NaN or infinite were left out, "
            f"the first is row {bad[0]}"
        )
    for size, rows in members.items():
        if (left := int(np.count_nonzero(rows))) != size:
            notes.append(f"the {size:,} distractors are {left:,} without those deleted")
    for name, rank in ranks.items():
        few = [size for size, faults in zip(members, rank.faults, strict=True)
               if faults < FEWEST_FALSE_ACCEPTS]  # fmt: skip
        if few:
            listed = ", ".join(f"{size:,}" for size in few)
            notes.append(
                f"{name}: fewer than {FEWEST_FALSE_ACCEPTS} faults decide rank-1 against {listed} "
                "distractors"
            )
    return tuple(notes)


@dataclass(frozen=True)
class MegafaceOptions:
    """The distractors."""

    distractors: Path | None = option(
        None, "embeddings as E, or a folder of feature files", metavar="D"
    )
    distractor_names: Path | None = option(None, "D's names, one per line", metavar="FILE")


def _read(request: Request, options: MegafaceOptions) -> tuple[Megaface, str]:
    """The data, and the fingerprint of the distractors' model."""
    crowd = path = options.distractors
    if not path.exists():
        raise UserError(
            f"no distractors at {path}: expected embeddings with names, or a folder of feature "
            "files"
        )
    fingerprint = ""
    if not path.is_dir():
        crowd = read_embeddings(path, names=names_beside(path, options.distractor_names))
        fingerprint = crowd.fingerprint
        require_same_model(
            "probes", request.embeddings.fingerprint, request.embeddings.width,
            fingerprint=fingerprint, width=crowd.width, whose=str(path),
        )  # fmt: skip
    lists = find_lists(request.files)
    return load_megaface(lists, facescrub=request.embeddings, megaface=crowd), fingerprint


def _evaluate(
    request: Request,
    options: MegafaceOptions,
    data: tuple[Megaface, str],
    scorers: Mapping[str, Rescorer],
) -> dict[str, Evaluation]:
    loaded, fingerprint = data
    require_same_models(options.distractors, fingerprint, scorers.values())
    evaluated = evaluate_megaface(
        loaded.probes,
        loaded.labels,
        loaded.distractors,
        scorers,
        sets=loaded.sets,
        skip_bad=request.skip_bad,
        **request.bootstrap,
    )
    return {"megaface": evaluated._replace(notes=(*loaded.notes, *evaluated.notes))}


register(
    Protocol(
        "megaface",
        files="a folder with the devkit's and the noise lists",
        rows="FaceScrub's; --distractors=D",
        needs=("files", "distractors"),
        no_identities="a probe meets its mates and distractors, and no other of the list's people; "
        "name images in the noise lists",
        flags=MegafaceOptions,
        read=_read,
        evaluate=_evaluate,
    )
)
