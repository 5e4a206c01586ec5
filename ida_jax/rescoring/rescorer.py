"""The front door: embeddings of any model in, scores of pairs and of galleries out.

A score depends on its two faces, the anchors and what was trained, never on the other faces under
test: transductive normalisation is not offered, and anchors that are the tested embeddings are
refused.

P pairs, N faces, A anchors, M probes, G gallery faces, D embedding.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.exact_search import Search
from ida_jax.anchors.search import SupportSearch, usual_neighbours
from ida_jax.anchors.sources import read_anchors
from ida_jax.anchors.supported_weight import FEWEST_PROBES
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.devices import filled
from ida_jax.common.errors import UserError
from ida_jax.common.fingerprints import content_fingerprint
from ida_jax.common.validation import require_tau, unit_embeddings, unit_rows
from ida_jax.ops.products import PRECISIONS
from ida_jax.rescoring.cohort_scores import USUAL_COHORT, CohortMoments, cohort_moments
from ida_jax.rescoring.csn_fit import Csn
from ida_jax.rescoring.dao_fit import DaoFit
from ida_jax.rescoring.gallery import Candidates, Gallery, identify
from ida_jax.rescoring.gallery_segments import on_host
from ida_jax.rescoring.index_vectors import (
    IndexSpace,
    IndexVectors,
    Queries,
    check_space,
    index_form,
    index_space,
    index_vectors,
    query_vectors,
)
from ida_jax.rescoring.log_norms import log_norms
from ida_jax.rescoring.method_table import (
    ARTEFACTS,
    HEADLINE,
    METHODS,
    REGRESSED,
    is_dao,
    require_method,
    scoring_methods,
)
from ida_jax.rescoring.pairs import checked_pairs, compile_pairs, pair_scores, score_chunk
from ida_jax.rescoring.quality_fit import QualityFit
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.score_origin import ScoreOrigin, differences

# What was trained beforehand, by the argument of `Rescorer`, each from one file.
KINDS = {"ssr": SSRModule, "csn": Csn, "dao_fit": DaoFit, "quality_fit": QualityFit}

# Rows of a call, of which `score` makes twice as many faces, the most that are `filled`.
_MOST_WARM = 1 << 14


class Rescorer:
    """Scores by one method against one anchor set.

    The methods, with what each needs, are the entries of `ida_jax.rescoring.method_table.METHODS`.
    """

    def __init__(
        self,
        anchors: AnchorSet | ArrayLike | str | os.PathLike[str] | None,
        *,
        k: int | None = None,
        tau: float | None = None,
        weight: float | None = None,
        method: str = HEADLINE,
        searcher: str = "auto",
        tolerance: float = 0.02,
        top_n: int | None = None,
        ddof: int = 0,
        ssr: SSRModule | str | os.PathLike[str] | None = None,
        csn: Csn | str | os.PathLike[str] | None = None,
        dao_fit: DaoFit | str | os.PathLike[str] | None = None,
        quality_fit: QualityFit | str | os.PathLike[str] | None = None,
        expected_faces: int | None = None,
        search: Search | None = None,
    ) -> None:
        """Args:
          anchors: an anchor set, plain embeddings [A, D] of any norm, or the file of either. None
            for `cosine` and `ida_l`, which need none.
          k: the support set's size; the anchor set's own default (10) if None.
          tau: τ; the anchor set's own default (1) if None.
          weight: of log F in ida_r_fallback, 0 … 1, which `ida_jax.supported_weight` finds.
          method: of `ida_jax.rescoring.method_table.METHODS`.
          searcher: see `ida_jax.anchors.search.support_sets`; a precision is `identify`'s too.
          tolerance: the error in log F, relative to its spread, up to which an approximate search
            is accepted.
          top_n: the cohort's size of as_norm; 300, or as many as a small set has, if None.
          ddof: of as_norm's and the other norms' standard deviation.
          ssr: the SSR module of ida_l, or its file.
          csn: the trained classifier of csn, or its file.
          dao_fit: the constants of ida_r_fitted, which has no k and τ beside them, or their file.
          quality_fit: the constants of ida_q, which has no k and τ beside them, or their file.
          expected_faces: how many will be searched in all, for searcher="auto"; few if None.
          search: a search of the same anchors by as many neighbours or more, which several methods
            share (`ida_jax.rescoring.methods`); one of its own if None.

        Raises:
          UserError: an unknown method, one without what it needs, k outside 1 … A, τ not positive,
            a weight outside 0 … 1.
        """
        entry = require_method(method)
        if isinstance(anchors, str | os.PathLike):
            anchors = read_anchors(anchors)
        elif anchors is not None and not isinstance(anchors, AnchorSet):
            anchors = AnchorSet.from_embeddings(anchors)
        artefacts = zip(KINDS, (ssr, csn, dao_fit, quality_fit), strict=True)
        given = {name: _loaded(name, artefact) for name, artefact in artefacts}
        ssr, csn, dao_fit, quality_fit = given.values()
        for need in entry.needs:
            if {"anchors": anchors, **given}[need] is None:
                artefact = ARTEFACTS[need]
                raise UserError(f"{method} needs {artefact.name}: {artefact.advice}")
        if entry.own_constants and "ssr" not in entry.needs and not k is tau is None:
            fitted = len(entry.needs) > 1
            source = "takes its k and tau from its fit" if fitted else "has its own k and tau"
            raise UserError(f"{method} {source}: leave them out")
        if "dao_fit" in entry.needs:
            dao_fit.check_anchors(anchors)
            k, tau = dao_fit.neighbours, dao_fit.tau
        if "quality_fit" in entry.needs:
            quality_fit.check_anchors(anchors)
            k = quality_fit.k
        trained = ssr if "ssr" in entry.needs else anchors
        self.anchors = anchors
        self.method = method
        self.k = k if k is not None else getattr(trained, "k", 10)
        self.tau = require_tau(tau if tau is not None else getattr(trained, "tau", 1.0))
        if weight is None and "weight" in entry.settings:
            raise UserError(
                f"{method} needs a weight of log F: find it with ida_jax.supported_weight, of "
                f"{FEWEST_PROBES} unlabelled faces or more, and give weight=W"
            )
        if weight is not None and not 0 <= weight <= 1:
            raise UserError(f"weight is {weight:g}: expected 0 (the cosine) … 1 (ida_r)")
        self.weight = 1.0 if weight is None else float(weight)
        if top_n is None and anchors is not None:
            top_n = usual_neighbours(anchors, USUAL_COHORT)
        self.searcher, self.top_n, self.ddof = searcher, top_n, ddof
        self.ssr, self.csn, self.dao_fit, self.quality_fit = ssr, csn, dao_fit, quality_fit
        if ssr is not None and (self.k, self.tau) != (ssr.k, ssr.tau):
            raise UserError(
                f"k = {self.k} and tau = {self.tau:g} were asked for, but the SSR module was "
                f"trained for k = {ssr.k} and tau = {ssr.tau:g}: leave them out"
            )
        if "csn" in entry.needs:
            csn.check_anchors(anchors)
        self._search, self.neighbours = None, 0
        if entry.neighbours is not None:
            name, count = entry.neighbours(self)
            if not 1 <= count <= len(anchors):
                raise UserError(
                    f"{name} = {count} neighbours were asked for among {len(anchors)} anchors: "
                    f"expected 1 … {len(anchors)}; lower {name} or take more anchors"
                )
            self.neighbours = count
            self._search = search or SupportSearch(
                anchors,
                k=count,
                searcher=searcher,
                expected_queries=expected_faces,
                tau=self.tau,
                tolerance=tolerance,
            )

    @classmethod
    def from_ssr(cls, path: str | os.PathLike[str]) -> "Rescorer":
        """IDA-L from a saved SSR module, one small file; no anchors are needed (section 3.2).

        Raises:
          UserError: no such file, or not an SSR module's.
        """
        return cls(None, method=REGRESSED, ssr=SSRModule.load(path))

    def score(self, first: ArrayLike, second: ArrayLike) -> np.ndarray:
        """Scores of the pairs of rows (first[i], second[i]), float32 [P].

        With the number of pairs scored at once the last bits change: by up to 4·10⁻⁷ of IDA's
        scores, 4·10⁻⁶ of AS-norm's.

        Args:
          first: [P, D] embeddings of any norm, the enrolled faces where the method cares.
          second: [P, D], the probes.

        Raises:
          UserError: shapes that differ; zero, NaN or infinite rows; a width other than the
            anchors'.
        """
        first, _, norms = unit_rows(first, what="first faces")
        second, _, others = unit_rows(second, what="second faces")
        if first.shape != second.shape:
            raise UserError(
                f"the first faces are {list(first.shape)}, the second {list(second.shape)}: "
                "expected the same shape, one pair in each row"
            )
        faces = np.concatenate([first, second])
        rows = np.arange(len(first), dtype=np.int32)
        pairs = np.stack([rows, rows + len(first)], axis=1)
        terms = self.terms(faces, norms=np.concatenate([norms, others]))
        return score_chunk(jax.device_put(filled(faces)), pairs, terms)

    def score_pairs(self, embeddings: ArrayLike, pairs: ArrayLike) -> np.ndarray:
        """Scores of pairs of rows of one array, float32 [P]; each face's density is computed once.

        Args:
          embeddings: [N, D], rows of any norm.
          pairs: int [P, 2], rows of `embeddings`.

        Raises:
          UserError: bad rows, named; pairs outside the N faces; a width other than the anchors'.
        """
        faces, _, norms = unit_rows(embeddings)
        pairs = checked_pairs(pairs, len(faces))
        return pair_scores(faces, pairs, {"": self.terms(faces, norms=norms)})[""]

    def log_densities(self, faces: ArrayLike) -> np.ndarray:
        """log F of each face, float32 [N], of embeddings [N, D] of any norm.

        Raises:
          UserError: a method without densities, or as `score`.
        """
        if not is_dao(self.method):
            with_densities = ", ".join(filter(is_dao, scoring_methods()))
            raise UserError(f"{self.method} has no densities: use one of {with_densities}")
        return self.terms(unit_embeddings(faces)).values[:, 0]

    def densities(self, faces: ArrayLike) -> np.ndarray:
        """F of each face (Eq. 4), float32 [N]: the smaller, the more crowded its neighbourhood."""
        return np.exp(self.log_densities(faces))

    def gallery(
        self, embeddings: ArrayLike, *, names: Sequence[str] = (), model: str = ""
    ) -> Gallery:
        """Enrols faces for `identify`: their densities are computed here, once.

        Args:
          embeddings: [G, D], rows of any norm.
          names: G distinct ones, with which the gallery can be saved.
          model: the fingerprint of the model that made the embeddings; as in `origin`.

        Raises:
          UserError: bad rows, named; a different number of names.
        """
        faces, _, norms = unit_rows(embeddings, what="gallery")
        if len(names) not in (0, len(faces)):
            raise UserError(f"{len(names)} names for {len(faces)} gallery faces: expected one each")
        terms = self.terms(faces, norms=norms)
        return Gallery(faces, terms, names=tuple(names), origin=self.origin(model=model))

    def identify(
        self, probes: ArrayLike, gallery: ArrayLike | Gallery, *, top: int = 10
    ) -> Candidates:
        """Each probe's best gallery faces by this method's score, exactly.

        Args:
          probes: [M, D] embeddings of any norm.
          gallery: what `gallery` returned or `Gallery.load` read, or embeddings [G, D].
          top: how many, 1 ≤ top ≤ G.

        Returns:
          `Candidates`: scores and rows, [M, top] each, the best first.

        Raises:
          UserError: bad rows, named; a gallery that was made with another method, model, k, τ or
            anchors.
        """
        if not isinstance(gallery, Gallery):
            gallery = self.gallery(gallery)
        if gallery.origin is not None and (found := differences(gallery.origin, self.origin())):
            raise UserError(
                f"the gallery was made with {'; '.join(found)}: identify with what made it"
            )
        faces, _, norms = unit_rows(probes, what="probes")
        terms = self.terms(faces, norms=norms)
        return identify(faces, terms, gallery, top=top, precision=self.precision)

    def index_vectors(
        self,
        gallery: ArrayLike | Gallery,
        *,
        space: IndexSpace | None = None,
        equal_lengths: bool = False,
    ) -> IndexVectors:
        """The gallery as vectors of an index that ranks by inner product, and their space.

        With `query_vectors` the index' order is that of ŝ ≥ s; `certified_top_k` makes exact
        results of its candidates (`ida_jax.rescoring.index_vectors`).

        Args:
          gallery: what `gallery` returned, or embeddings [G, D] of any norm.
          space: of an index to which these faces are added; one that suits them if None.
          equal_lengths: for a store that ranks by the Euclidean distance or the cosine alone.

        Raises:
          UserError: bad rows, named; a method whose score is not an inner product (ida_q); a space
            that another method, k, τ or model made, or in which these faces lie far outside; a
            gallery that still holds deleted faces.
        """
        index_form(self.rule, self.method)
        if not isinstance(gallery, Gallery):
            gallery = self.gallery(gallery)
        if gallery.enrolled is not None and not gallery.enrolled.all():
            raise UserError(
                f"the gallery still holds {np.count_nonzero(~gallery.enrolled):,} of its deleted "
                "faces, which must not enter an index: run ida-jax enrol --compact first"
            )
        faces, terms = on_host(gallery.embeddings), gallery.terms
        if space is None:
            origin = self.origin().to_json()
            space = index_space(terms, gallery.width, equal_lengths=equal_lengths, origin=origin)
        else:
            check_space(space, self.origin())
        return IndexVectors(index_vectors(faces, terms, space), space)

    def query_vectors(self, probes: ArrayLike, space: IndexSpace) -> Queries:
        """What an index of `index_vectors` is asked with, for probes [M, D] of any norm.

        Raises:
          UserError: bad rows, named; a space that another method, k, τ or model made.
        """
        check_space(space, self.origin())
        faces, _, norms = unit_rows(probes, what="probes")
        return query_vectors(faces, self.terms(faces, norms=norms), space)

    def warm_up(
        self,
        *,
        width: int | None = None,
        most: int = 4096,
        gallery: Gallery | None = None,
        top: int = 10,
    ) -> None:
        """Compiles what calls with 1 … `most` rows need, so that a server answers at once.

        Afterwards `score`, `log_densities`, `densities` and, with a gallery, `identify` compile
        nothing, whatever the number of rows up to `most`, and may be called by several threads at
        once. A search's index is made here too.

        Args:
          width: D; the anchors', the SSR module's or the gallery's if None.
          most: rows of a call, 1 … 16,384.
          gallery: what `identify` will be given.
          top: as it will be given.

        Raises:
          UserError: no width, and nothing to take it from; `most` out of its range.
        """
        if not 1 <= most <= _MOST_WARM:
            raise UserError(f"most is {most}: expected 1 … {_MOST_WARM:,} rows of a call")
        widths = [x.width for x in (self.anchors, self.ssr, gallery) if x is not None]
        if width is None and not widths:
            raise UserError(
                f"{self.method} has no anchors, whose width would be taken: give width=D"
            )
        width = widths[0] if width is None else width
        counts = [1 << bits for bits in range(most.bit_length())]
        for count in dict.fromkeys((*counts, most)):
            faces = _any_faces(self.anchors, count, width)
            # Of any length but one, which some methods refuse as normalised.
            terms = self.terms(faces, norms=np.linspace(2, 3, count))
            if gallery is not None:
                identify(faces, terms, gallery, top=top, precision=self.precision)
        compile_pairs(width, terms, most=most)
        # A call has two faces per pair.
        faces = _any_faces(self.anchors, 2 * most, width)
        self.terms(faces, norms=np.linspace(2, 3, len(faces)))

    @property
    def precision(self) -> str:
        """Of the cosines of `identify` on a GPU, of `ida_jax.ops.products.PRECISIONS`."""
        return self.searcher if self.searcher in PRECISIONS else "float32"

    @property
    def rule(self) -> str:
        """The rule of `ida_jax.rescoring.terms` by which this method scores."""
        return METHODS[self.method].rule

    @property
    def constants(self) -> np.ndarray:
        """The rule's constants, float32 [C]."""
        return np.float32(METHODS[self.method].constants(self))

    def terms(
        self,
        faces: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        norms: np.ndarray | None = None,
    ) -> FaceTerms:
        """The method's numbers of unit rows [N, D]: all that `score_pairs` needs beside them.

        Args:
          faces: float32 [N, D], unit rows as `unit_embeddings` gives them: not checked again.
          labels: int [N], identities in the numbering of the anchors' labels, where the same people
            may be among the anchors: a face's own identity is left out of its support set or
            cohort. Not for z_norm, t_norm and s_norm, whose cohort is the whole anchor set.
          norms: [N], those of the embeddings as the model gave them (`unit_rows`); NaN of a bad
            row. Only the methods with a `log_norm` need them.

        Raises:
          UserError: such a method without norms, or with those of normalised embeddings; a norm
            that is zero, negative or infinite, named by row.
        """
        return self.searched_terms(faces, labels=labels, norms=norms)[0]

    def searched_terms(
        self,
        faces: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        norms: np.ndarray | None = None,
    ) -> tuple[FaceTerms, np.ndarray | None]:
        """`terms`, and each face's cosine to its nearest anchor, [N]; None without a search."""
        entry = METHODS[self.method]
        nearest = None
        if self._search is not None:
            nearest = self._search(faces, labels).similarities[:, : self.neighbours]
        values = entry.values(self, faces, nearest)
        if entry.log_norm is not None:
            own = entry.log_norm(
                self, log_norms(norms, len(faces), method=self.method, absent=True)
            )
            values = np.concatenate([values, own[:, None]], axis=1)
        terms = FaceTerms(self.rule, values, self.constants)
        return terms, None if nearest is None else nearest[:, 0]

    def origin(self, *, model: str = "") -> ScoreOrigin:
        """What this scorer's scores are made with: a calibration of them is valid for no others.

        `Calibration.check_scores` compares it.

        Args:
          model: the fingerprint of the model that made the faces' embeddings; that of the anchors
            or artefacts if "".
        """
        entry = METHODS[self.method]
        needed = {need: getattr(self, need) for need in entry.needs}
        for artefact in needed.values():
            model = model or artefact.fingerprint
        anchors = needed.pop("anchors", None)
        return ScoreOrigin(
            self.method,
            settings={name: np.asarray(getattr(self, name)).item() for name in entry.settings},
            model=model,
            anchors="" if anchors is None else anchors.sketch,
            anchor_count=0 if anchors is None else len(anchors),
            artefacts={need: content_fingerprint(value) for need, value in needed.items()},
        )

    @cached_property
    def cohort_moments(self) -> CohortMoments:
        """Mean and covariance of the anchors, computed when first asked for."""
        return cohort_moments(self.anchors)


def _any_faces(anchors: AnchorSet | None, count: int, width: int) -> np.ndarray:
    """Unit rows [count, D]: anchors, over and over, where there are any."""
    if anchors is not None and anchors.width == width:
        return np.asarray(anchors.embeddings[np.arange(count) % len(anchors)])
    return np.eye(1, width, dtype=np.float32).repeat(count, axis=0)


def _loaded(name: str, given: Any) -> Any:
    """The artefact itself, or that of a file."""
    kind = KINDS[name]
    if isinstance(given, str | os.PathLike):
        return kind.load(given)
    if given is not None and not isinstance(given, kind):
        raise UserError(
            f"{name} is a {type(given).__name__}: expected a {kind.__name__}, or its file's path"
        )
    return given
