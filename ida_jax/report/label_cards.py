"""Candidates for one person under two names, as a page of cards with both identities' pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ida_jax.report.page import document, jpeg
from ida_jax.report.pair_cards import pair_card

if TYPE_CHECKING:
    from ida_jax.anchors.one_person import Candidate

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
