"""The pairs whose decision changed, as cards of HTML with both faces: Fig. 10's view.

n pairs, N faces, D embedding, H height, W width.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.score_figures import far_key
from ida_jax.report.names import far_name, method_name, score_name

if TYPE_CHECKING:
    from ida_jax.protocols.verification import AllPairs
    from ida_jax.rescoring.terms import FaceTerms

_SIDE = 112  # pixels: larger faces are made smaller, for the page's sake
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
    found: AllPairs, faces: np.ndarray, methods: Mapping[str, FaceTerms]
) -> ChangedDecisions | None:
    """The pairs that IDA-R decides differently from the cosine, with their scores.

    Args:
      found: what `evaluate_all_pairs` gave.
      faces: float32 [N, D], its faces.
      methods: its terms.

    Returns:
      None where it found no such FAR, or lacks one of the two methods.
    """
    from ida_jax.rescoring.pairs import pair_scores

    if found.changed is None:
        return None
    key = far_key(found.changed_far)
    thresholds = [found.evaluated.figures[m]["threshold@far"][key] for m in ("cosine", "ida_r")]
    groups = []
    for kind, genuine in _TITLES:
        name = f"{kind}_{'genuine' if genuine else 'impostor'}"
        pairs = getattr(found.changed, name)[:_MOST]
        compared = {name: methods[name] for name in ("cosine", "ida_r")}
        scores = pair_scores(faces, pairs, compared).values()
        total = getattr(found.changed.counts, name)
        groups.append(ChangedPairs(kind, genuine, pairs, *scores, total))
    return ChangedDecisions("cosine", "ida_r", found.changed_far, *thresholds, tuple(groups))


def pair_section(
    changed: ChangedDecisions, images: Sequence[np.ndarray], *, people: Sequence[str] = ()
) -> str:
    """The section's HTML, images inside as JPEG.

    Args:
      changed: what to show; of a kind at most twelve pairs.
      images: N faces, uint8 [H, W, 3] RGB each.
      people: who is on each face, where known.

    Raises:
      UserError: a row without a face, or a malformed image.
    """
    names = method_name(changed.base), method_name(changed.other)
    counts = {(g.kind, g.genuine): g.total for g in changed.groups}
    corrected, broken = (
        sum(total for (kind, _), total in counts.items() if kind == which)
        for which in ("corrected", "broken")
    )
    groups = "\n".join(
        _group(group, changed, images, people) for group in changed.groups if group.total
    )
    return (
        f"<h2>Pairs that {html.escape(names[1])} decides differently</h2>\n"
        f'<p class="soft">Both at FAR {far_name(changed.far)}: {html.escape(names[0])} accepts '
        f"above {_signed(changed.base_threshold)}, {html.escape(names[1])} above "
        f"{_signed(changed.other_threshold)}. {html.escape(names[1])} corrects {corrected:,} "
        f"decisions and breaks {broken:,}.</p>\n{groups}"
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
    cards = "\n".join(
        _card(
            group,
            changed,
            place,
            [images[row] for row in pair],
            [people[r] for r in pair if people],
        )
        for place, pair in enumerate(pairs)
    )
    title = _TITLES[group.kind, group.genuine]
    title = title.replace("cosine", method_name(changed.base).lower())
    shown = f"{len(pairs)} of {group.total:,}" if len(pairs) < group.total else f"all {len(pairs)}"
    mark = "✓" if group.kind == "corrected" else "✗"
    return (
        f'<section class="card changed {group.kind}"><h3><span aria-hidden="true">{mark}</span> '
        f"{html.escape(title)} <small>{shown}</small></h3>\n"
        f'<div class="pairs">\n{cards}\n</div></section>'
    )


def _card(
    group: ChangedPairs,
    changed: ChangedDecisions,
    place: int,
    faces: Sequence[np.ndarray],
    people: Sequence[str],
) -> str:
    pictures = "".join(
        f'<img alt="{html.escape(people[side] if people else f"face {side + 1}")}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg(face)).decode()}">'
        for side, face in enumerate(faces)
    )
    rows = "".join(
        _score(method, float(score[place]), threshold, right=right, genuine=group.genuine)
        for method, score, threshold, right in (
            (changed.base, group.base, changed.base_threshold, group.kind == "broken"),
            (changed.other, group.other, changed.other_threshold, group.kind == "corrected"),
        )
    )
    who = dict.fromkeys(name.replace("_", " ") for name in people)
    caption = "<br>".join(html.escape(name) for name in who)
    names = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="pair"><div>{pictures}</div>{names}<table>{rows}</table></figure>'


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


def jpeg(image: np.ndarray, *, side: int = _SIDE) -> bytes:
    """uint8 [H, W, 3] RGB as JPEG, made smaller where a side is above `side` pixels.

    Raises:
      UserError: a malformed image.
    """
    import cv2

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"an image of the page is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]"
        )
    longest = max(image.shape[:2])
    if longest > side:
        height, width = (max(1, round(side * n / longest)) for n in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
