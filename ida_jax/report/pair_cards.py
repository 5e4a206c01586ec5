"""Pairs as cards of HTML with both faces: those whose decision changed (Fig. 10's view), and people
who may be one under two names.

n pairs, N faces, D embedding, H height, W width.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import far_key
from ida_jax.report.page import document, jpeg
from ida_jax.report.style import far_name, method_name, score_name
from ida_jax.rescoring.method_table import BASELINE, HEADLINE

if TYPE_CHECKING:
    from ida_jax.anchors.one_person import Candidate
    from ida_jax.protocols.verification import AllPairs
    from ida_jax.rescoring.terms import FaceTerms

_MOST = 12  # cards of a kind

# By kind and whether the pairs are genuine.
_TITLES = {
    ("corrected", True): "Corrected: genuine pairs that cosine rejects",
    ("corrected", False): "Corrected: impostor pairs that cosine accepts",
    ("broken", True): "Broken: genuine pairs that cosine accepts",
    ("broken", False): "Broken: impostor pairs that cosine rejects",
}


class ChangedPairs(NamedTuple):
    """Pairs of one kind on which two methods decide differently.

    Attributes:
      kind: "corrected" where only the other method is right, "broken" where only the base is.
      genuine: whether the pairs are of one person.
      pairs: int [n, 2], the faces' rows; the clearest first.
      base: [n], the base's scores.
      other: [n], the other method's.
      total: how many such pairs there are, shown or not.
    """

    kind: Literal["corrected", "broken"]
    genuine: bool
    pairs: np.ndarray
    base: np.ndarray
    other: np.ndarray
    total: int


class ChangedDecisions(NamedTuple):
    """Two methods at their thresholds of one FAR, and the pairs on which they differ.

    Attributes:
      base: the base method's key, "cosine".
      other: the other's.
      far: the FAR that both thresholds are of.
      base_threshold: a pair is accepted strictly above it.
      other_threshold: likewise.
      groups: the pairs by kind.
    """

    base: str
    other: str
    far: float
    base_threshold: float
    other_threshold: float
    groups: tuple[ChangedPairs, ...]


def changed_pairs(
    all_pairs: AllPairs, faces: np.ndarray, methods: Mapping[str, FaceTerms]
) -> ChangedDecisions | None:
    """The pairs that IDA-R decides differently from the cosine, with their scores.

    Args:
      all_pairs: the result of `evaluate_all_pairs`.
      faces: float32 [N, D], its faces.
      methods: its terms.

    Returns:
      None where it has no FAR to compare at, or lacks one of the two methods.
    """
    from ida_jax.rescoring.pairs import pair_scores

    if all_pairs.changed is None:
        return None
    compared, far = (BASELINE, HEADLINE), all_pairs.changed_far
    figures = all_pairs.evaluated.figures
    groups = []
    for kind, genuine in _TITLES:
        listed = all_pairs.changed[kind, genuine]
        pairs = listed.pairs[:_MOST]
        scores = pair_scores(faces, pairs, {m: methods[m] for m in compared}).values()
        groups.append(ChangedPairs(kind, genuine, pairs, *scores, listed.total))
    thresholds = [figures[m]["threshold@far"][far_key(far)] for m in compared]
    return ChangedDecisions(*compared, far, *thresholds, tuple(groups))


def pair_section(
    changed: ChangedDecisions, images: Sequence[np.ndarray], *, people: Sequence[str] = ()
) -> str:
    """The section's HTML, images inside as JPEG.

    Args:
      changed: what to show; of a kind at most twelve pairs.
      images: N faces, uint8 [H, W, 3] RGB each.
    """
    base, other = (html.escape(method_name(name)) for name in (changed.base, changed.other))
    corrected, broken = (
        sum(group.total for group in changed.groups if group.kind == kind)
        for kind in ("corrected", "broken")
    )
    groups = "\n".join(
        _group(group, changed, images, people) for group in changed.groups if group.total
    )
    return (
        f"<h2>Pairs that {other} decides differently</h2>\n"
        f'<p class="soft">Both at FAR {far_name(changed.far)}: {base} accepts above '
        f"{_signed(changed.base_threshold)}, {other} above {_signed(changed.other_threshold)}. "
        f"{other} corrects {corrected:,} decisions and breaks {broken:,}.</p>\n{groups}"
    )


def _group(
    group: ChangedPairs,
    changed: ChangedDecisions,
    images: Sequence[np.ndarray],
    people: Sequence[str],
) -> str:
    pairs = np.asarray(group.pairs)[:_MOST]
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(images):
        raise UserError(
            f"pairs of faces {pairs.min()} to {pairs.max()} were given with {len(images)} images: "
            "expected an image for each"
        )
    corrected = group.kind == "corrected"
    methods = (
        (changed.base, group.base, changed.base_threshold, not corrected),
        (changed.other, group.other, changed.other_threshold, corrected),
    )
    cards = []
    for place, pair in enumerate(pairs):
        rows = "".join(
            _score(method, float(scores[place]), threshold, right=right, genuine=group.genuine)
            for method, scores, threshold, right in methods
        )
        names = [people[row] for row in pair if people]
        cards.append(pair_card([images[row] for row in pair], names, rows))
    title = _TITLES[group.kind, group.genuine]
    title = title.replace("cosine", method_name(changed.base).lower())
    shown = f"{len(pairs)} of {group.total:,}" if len(pairs) < group.total else f"all {len(pairs)}"
    mark = "✓" if corrected else "✗"
    return (
        f'<section class="card changed {group.kind}"><h3><span aria-hidden="true">{mark}</span> '
        f"{html.escape(title)} <small>{shown}</small></h3>\n"
        '<div class="pairs">\n' + "\n".join(cards) + "\n</div></section>"
    )


def pair_card(
    faces: Sequence[np.ndarray], people: Sequence[str], rows: str, *, below: str = ""
) -> str:
    """Two faces side by side.

    Args:
      faces: uint8 [H, W, 3] RGB each.
      people: their names; empty where unknown.
      rows: of the table, as HTML.
      below: more, as HTML.
    """
    pictures = "".join(
        f'<img alt="{html.escape(people[side] if people else f"face {side + 1}")}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg(face)).decode()}">'
        for side, face in enumerate(faces)
    )
    names = dict.fromkeys(html.escape(name.replace("_", " ")) for name in people)
    caption = f"<figcaption>{'<br>'.join(names)}</figcaption>" if names else ""
    table = f"<table>{rows}</table>{below}"
    return f'<figure class="pair"><div>{pictures}</div>{caption}{table}</figure>'


def _score(method: str, score: float, threshold: float, *, right: bool, genuine: bool) -> str:
    # Not score > threshold: a score computed anew may differ in its last bit.
    accepted = right == genuine
    name = "Cosine" if method == "cosine" else score_name(method)
    verdict = "accepted" if accepted else "rejected"
    mark = "✓" if right else "✗"
    sign = "&gt;" if accepted else "≤"
    return (
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f"<td>{_signed(score)} {sign} {_signed(threshold)}</td><td>{mark} {verdict}</td></tr>"
    )


def _signed(score: float) -> str:
    return f"{score:.3f}".replace("-", "−")


_OTHERS = 3  # more images of an identity on a card


def candidate_page(
    candidates: Sequence[Candidate],
    people: Sequence[str],
    images: Sequence[np.ndarray],
    *,
    labels: np.ndarray,
) -> str:
    """The page's HTML, images inside as JPEG.

    Args:
      candidates: the most similar first.
      people: the identities' names, by label.
      images: N faces, uint8 [H, W, 3] RGB each.
      labels: int [N].
    """
    cards = [
        _card(number, candidate, people, images, labels)
        for number, candidate in enumerate(candidates, 1)
    ]
    intro = (
        f'<p class="soft">{len(candidates):,} pairs of names with images that a model finds nearly '
        "alike, the most similar first. On top the most similar images, below others of the same "
        "two names. Write on the pair’s line of candidates.csv: <code>same</code> for one person, "
        "<code>mislabelled</code> where an image of the one is under the other’s name, "
        "<code>different</code> or <code>unsure</code>.</p>"
    )
    grid = f'<div class="pairs">{"".join(cards)}</div>'
    return document("One person under two names?", intro, grid)


def _card(
    number: int,
    candidate: Candidate,
    people: Sequence[str],
    images: Sequence[np.ndarray],
    labels: np.ndarray,
) -> str:
    names = [f"{people[label]}" for label in candidate.identities]
    rows = "".join(
        f'<tr><th scope="row">{html.escape(what)}</th><td>{html.escape(value)}</td></tr>'
        for what, value in _facts(number, candidate, labels)
    )
    others = []
    for side in range(2):
        own = np.flatnonzero(labels == candidate.identities[side])
        own = [row for row in own.tolist() if row != candidate.rows[side]][:_OTHERS]
        others.append("".join(_small(images[row], names[side]) for row in own))
    below = f'<div class="others"><span>{others[0]}</span><span>{others[1]}</span></div>'
    pair = [images[row] for row in candidate.rows]
    return pair_card(pair, names, rows, below=below if any(others) else "")


def _facts(number: int, candidate: Candidate, labels: np.ndarray) -> list[tuple[str, str]]:
    cosines = ", ".join(f"{cosine:.3f}" for cosine in candidate.cosines)
    counts = [int(np.count_nonzero(labels == label)) for label in candidate.identities]
    facts = [
        ("Number", f"{number:,}"),
        ("Cosine", cosines),
        ("All their images", f"{candidate.between:.3f} on average"),
        ("Images", " and ".join(f"{count:,}" for count in counts)),
    ]
    if candidate.odd in candidate.rows:
        side = "left" if candidate.odd == candidate.rows[0] else "right"
        facts.append(("Nearer to the other name", f"the {side} image"))
    return facts


def _small(face: np.ndarray, name: str) -> str:
    content = base64.b64encode(jpeg(face, side=56)).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{content}">'
