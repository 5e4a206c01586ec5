"""Several methods at once: a Rescorer for each, and one search that serves them all.

The largest k serves every method, on the same faces.

N faces, A anchors, K support.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import SupportSearch
from ida_jax.anchors.supported_weight import FEWEST_PROBES, supported_weight
from ida_jax.common.fingerprints import same_sketch
from ida_jax.common.validation import require_same_model
from ida_jax.ops.hypersphere import Neighbours
from ida_jax.rescoring.cohort_scores import USUAL_COHORT
from ida_jax.rescoring.method_table import METHODS, methods_set_by
from ida_jax.rescoring.rescorer import KINDS, Rescorer


class SharedSearch:
    """A search that remembers its last faces, so that several methods in turn search once.

    Faces are compared by identity: they must not be changed in place between two calls.
    """

    def __init__(self, search: SupportSearch) -> None:
        self._search = search
        self._last: tuple | None = None

    def __call__(self, queries: np.ndarray, labels: np.ndarray | None = None) -> Neighbours:
        """As `SupportSearch`."""
        if self._last is None or self._last[0] is not queries or self._last[1] is not labels:
            self._last = None  # freed before the next search
            self._last = queries, labels, self._search(queries, labels)
        return self._last[2]


def make_scorers(
    methods: Sequence[str],
    anchors: AnchorSet | None,
    *,
    k: int | None = None,
    tau: float | None = None,
    weight: float | None = None,
    probes: np.ndarray | None = None,
    people: Sequence[str] | np.ndarray | None = None,
    searcher: str = "auto",
    expected_faces: int | None = None,
    **options: Any,
) -> dict[str, Rescorer]:
    """{method: its Rescorer}; those that search the anchors share one search, by the largest k.

    Args:
      methods: of `ida_jax.rescoring.method_table.METHODS`.
      anchors: None where no method needs them.
      k, tau, weight, searcher, expected_faces: as in `Rescorer`.
      probes: [N, D], of any norm: where the weight is None, the one that these support.
      people: [N], the probes' identities, names or integers in the anchors' numbering, where known:
        each is left out of its own support set. Names say nothing to anchors without any.
      **options: as there: top_n and ddof, and what was trained, for the methods that need it.

    Raises:
      UserError: as `Rescorer`.
    """
    weighted = not set(methods).isdisjoint(methods_set_by("weight"))
    if weighted and weight is None and anchors is not None and probes is not None:
        given = {"k": k, "tau": tau, "searcher": searcher}
        own = None if people is None else _own_labels(people, anchors)
        weight = supported_weight(probes, anchors, labels=own, **given).weight

    def scorer(method: str, search: SharedSearch | None = None) -> Rescorer:
        # An SSR module knows the k and τ that it replaces, a fit its own.
        own = method in METHODS and METHODS[method].own_constants
        needs = METHODS[method].needs if method in METHODS else ()
        return Rescorer(
            anchors,
            k=None if own else k,
            tau=None if own else tau,
            weight=weight,
            method=method,
            searcher=searcher,
            expected_faces=expected_faces,
            search=search,
            **{name: of for name, of in options.items() if name in needs or name not in KINDS},
        )

    alone = {method: scorer(method) for method in methods}
    neighbours = [scorer.neighbours for scorer in alone.values() if scorer.neighbours]
    if len(neighbours) < 2:
        return alone
    search = SharedSearch(
        SupportSearch(
            anchors, k=max(neighbours), searcher=searcher, expected_queries=expected_faces, tau=tau
        )
    )
    return {method: scorer(method, search) for method in methods}


def labels_among_anchors(
    people: Sequence[str], scorers: Mapping[str, Rescorer]
) -> np.ndarray | None:
    """`AnchorSet.labels_of` of the scorers' anchors; None without anchors with names and labels.

    With it `Rescorer.terms` leaves a face's own identity out of its support set.

    Args:
      people: the N faces' names.
      scorers: {method: its Rescorer}, all with the same anchors.
    """
    sets = (scorer.anchors for scorer in scorers.values())
    anchors = next((anchors for anchors in sets if anchors is not None), None)
    return None if anchors is None else _own_labels(people, anchors)


def _own_labels(people: Sequence[str] | np.ndarray, anchors: AnchorSet) -> np.ndarray | None:
    people = np.asarray(people)
    if anchors.labels is None or (people.dtype.kind == "U" and not anchors.names):
        return None
    return anchors.labels_of(people)


def cohort_notes(scorers: Iterable[Rescorer], top_n: int | None) -> tuple[str, ...]:
    """What a reader must know: the weight of log F, where a small set lowered top_n, anchors other
    than a module's or fit's, and how held-out people judged an SSR module, if they did.

    Args:
      scorers: of any methods.
      top_n: what was asked for; None for nothing.
    """
    notes = []
    for scorer in scorers:
        name, needs = scorer.method, METHODS[scorer.method].needs
        if name in methods_set_by("weight"):
            notes.append(f"{name}: log F has the weight {scorer.weight:g} (--weight)")
            if not scorer.weight:
                notes[-1] += (
                    ": it is the cosine; the faces' impostor pairs support no log F by these "
                    f"anchors, or the faces are fewer than {FEWEST_PROBES}"
                )
        cohort = name in methods_set_by("top_n") and top_n is None
        if cohort and scorer.top_n < USUAL_COHORT:
            notes.append(
                f"{name}: top_n is {scorer.top_n}, for want of the usual {USUAL_COHORT}: the set "
                f"has only {len(scorer.anchors)} anchors"
            )
        if "ssr" in needs:
            own = scorer.ssr.anchors_sketch
            if own and scorer.anchors is not None and not same_sketch(own, scorer.anchors.sketch):
                notes.append(f"{name}: the SSR module was trained with other anchors than these")
            if scorer.ssr.held_out is not None:
                notes.append(scorer.ssr.held_out.note())
        for need in (need for need in needs if need != "ssr"):
            if getattr(getattr(scorer, need), "anchors_sketch", None) == "":
                notes.append(
                    f"{name}: --{need} does not say which anchors it was fitted with (an "
                    "older version's): their number alone was compared; fit it again"
                )
    return tuple(dict.fromkeys(notes))


def require_same_models(
    path: str | os.PathLike[str], fingerprint: str, scorers: Iterable[Rescorer]
) -> None:
    """Refuses embeddings of another model than that of a scorer's anchors, SSR module or CSN.

    Widths are compared where faces are scored: those of IJB may be two halves beside each other.

    Args:
      fingerprint: of the model that made them; "" where unknown.
    """
    for scorer in scorers:
        made = {
            "anchors": scorer.anchors,
            "SSR module": scorer.ssr,
            "CSN classifier": scorer.csn,
            "DAO fit": scorer.dao_fit,
            "quality fit": scorer.quality_fit,
        }
        for what, artefact in made.items():
            if artefact is not None:
                require_same_model(
                    what, artefact.fingerprint, artefact.width,
                    fingerprint=fingerprint, width=artefact.width, whose=str(path),
                )  # fmt: skip


def load_scorers(
    methods: Sequence[str],
    *,
    anchors: str | os.PathLike[str] | None,
    embeddings: str | os.PathLike[str] | None = None,
    verify: bool = False,
    **options: Any,
) -> dict[str, Rescorer]:
    """`make_scorers` from files.

    Args:
      embeddings: the file of the faces that are to be scored, which the anchors must not be.
      verify: as in `AnchorSet.load`.
      **options: as in `make_scorers`, with files in place of what was trained.

    Raises:
      UserError: files that are absent or of another kind, and as `make_scorers`.
    """
    from ida_jax.anchors.sources import read_anchors

    if anchors is not None:
        anchors = read_anchors(anchors, embeddings=embeddings, verify=verify)
    for name in KINDS.keys() & options.keys():
        if options[name] is not None:
            options[name] = KINDS[name].load(options[name])
    return make_scorers(methods, anchors, **options)
