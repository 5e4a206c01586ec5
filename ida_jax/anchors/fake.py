"""The fake-db (section 3.2, Table 4): anchors of no real person, selected from a generator's faces.

The paper takes 50,000 StyleGAN faces as they come. A generator also makes images that are not
faces, near-duplicates, and faces of its training set; the selection here drops all three. Ours, not
the paper's.

N candidates in their order, A anchors, T training faces, P people, D embedding.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.candidates import CandidateFaces, degraded_copies, embedded_chunks
from ida_jax.anchors.check import HIGHEST_THRESHOLD, same_person_threshold
from ida_jax.anchors.coverage import coverage
from ida_jax.anchors.degraded import copy_labels, degraded_provenance
from ida_jax.anchors.fake_rules import (
    DUPLICATE,
    IMPLAUSIBLE,
    KEPT,
    NEAR_TRAINING,
    REASONS,
    UNREADABLE,
    Rules,
    TrainingFaces,
    choose,
    privacy_record,
    training_rules,
)
from ida_jax.anchors.moments import Moments, fewest_faces, matched, moments
from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.common.provenance import provenance as this_process
from ida_jax.data.degrade import Degradation

if TYPE_CHECKING:
    from ida_jax.artefacts.face_model import FaceModel

_KEYS = {UNREADABLE: "unreadable", IMPLAUSIBLE: "implausible", NEAR_TRAINING: "near_training",
         DUPLICATE: "duplicate"}  # fmt: skip
_PILOT = 4096  # candidates from which their moments are estimated
_MOST_DRAWN = 4  # times the count, where the candidates are unlimited


@dataclass(frozen=True, eq=False)
class FakeReport:
    """What became of every candidate.

    Attributes:
      verdicts: int8 [N], KEPT or one of REASONS.
      nearest: float32 [N], the cosine to the nearest training face; NaN where there is none.
      strangers: float32 [S], the same of training people among the other people: what is usual
        between strangers; empty without training faces.
      warnings: what a user should know, one line each.
      provenance: the anchor set's.
    """

    verdicts: np.ndarray
    nearest: np.ndarray
    strangers: np.ndarray
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    def numbers(self, verdict: int) -> np.ndarray:
        """The numbers of the candidates with this verdict, in order; KEPT: those of the anchors."""
        return np.flatnonzero(self.verdicts == verdict)


def fake_anchors(
    candidates: CandidateFaces,
    model: "FaceModel",
    *,
    count: int,
    training: TrainingFaces | None = None,
    flip: bool = False,
    k: int = 10,
    tau: float = 1.0,
    duplicate_cosine: float | None = None,
    privacy_cosine: float | None = None,
    most_drawn: int | None = None,
    parts: Path | None = None,
    align: bool = False,
    degrade: Degradation | None = None,
) -> tuple[AnchorSet, FakeReport]:
    """The first `count` plausible candidates, none of a training person, no duplicates.

    Candidates are taken in their order. One is dropped, for the first reason that holds, if

    1. it cannot be decoded, or its embedding is zero, NaN or infinite;
    2. it is implausible: its mean cosine to its k nearest training people, one face of each, is
       below the 1 % quantile of what those have among each other (`coverage`'s rule);
    3. its nearest training face has a cosine of at least `privacy_cosine` (the privacy check). The
       default is `same_person_threshold` of the training set for `count` faces: what one stranger
       of that many reaches by chance;
    4. an anchor that was kept has a cosine of at least `duplicate_cosine`. The default is what one
       of `count` strangers reaches by chance among one face of each of P training people; with
       more anchors than people, among `count`: by the Gumbel distribution that is
       `same_person_threshold` for count · count/P faces, since the nearest of `count` strangers
       is the nearest of P to count/P times as many.

    With `align` every candidate's embedding is first brought from the candidates' mean and
    covariance, estimated from the first 4,096, to those of the training people
    (`moments.matched`), and then judged. It is for a generator whose faces lie apart from real
    ones, which a warning reports: the training people are then uncovered by the anchors
    (`coverage`).

    The result is a function of the arguments: chunks are embedded alike whatever was kept of an
    earlier call, and dropping is greedy in the candidates' order. Without training faces 2 and 3
    are not checked, and 4 takes the threshold of the first `count` candidates' own similarities.

    Args:
      count: A.
      training: what the generator was trained on.
      flip: adds the mirrored face's embedding, as with the faces that will be compared.
      k: the set's default support set size, and that of the second rule.
      duplicate_cosine: the threshold of the fourth rule.
      privacy_cosine: the threshold of the third.
      most_drawn: at most this many candidates are examined; 4 · count where there is no end of
        them.
      parts: a folder for embeddings by chunks, with which a killed call continues (see
        `embedded_chunks`).
      align: whether moments are matched; it takes training faces.
      degrade: degraded copies of some of the anchors' faces are further anchors, behind the A, by
        the candidates' numbers. No rule drops a copy: implausible is what it is meant to be.

    Returns:
      The anchors, with provenance, and what became of every candidate.

    Raises:
      UserError: fewer than `count` are left, with what was dropped; candidates of another size
        than the model's; training faces that are too few or of a different width, or none to align
        to;
        k, τ, a cosine or a number out of range.
    """
    drawn = _most_drawn(candidates, count, most_drawn)
    _check(count=count, k=k, duplicate=duplicate_cosine, privacy=privacy_cosine, drawn=drawn)
    rules, warnings = Rules(), []
    if training is not None:
        options = {"width": model.width, "count": count, "k": k, "tau": tau}
        rules = training_rules(training, privacy=privacy_cosine, **options)
        if rules.privacy >= HIGHEST_THRESHOLD and privacy_cosine is None:
            warnings.append(
                "privacy: the model hardly separates the training people, so that only copies "
                "of a training face are dropped; give a privacy_cosine"
            )
        if training.labels is None:
            warnings.append(
                "privacy: the training faces have no labels, and each was taken for another "
                "person's; where people appear several times, too few faces are dropped as theirs"
            )
        if not training.learned_from:
            warnings.append(
                f"privacy: not checked: the generator learned from other faces than {training.name}"
            )
    elif align:
        raise UserError("align takes the training faces' mean and covariance: name those faces")
    else:
        warnings.append(
            "privacy: not checked, nor whether the faces are plausible: there are no training faces"
        )
    if duplicate_cosine is not None:
        rules = rules._replace(duplicate=duplicate_cosine)
    with progress_bar(total=count, desc="fake-db", unit="face") as bar:
        chunks = _counted(
            embedded_chunks(candidates, model, stop=drawn, flip=flip, parts=parts), bar
        )
        match = None
        if align:
            chunks, match = _aligned(chunks, moments(rules.people.anchors.embeddings))
        if rules.duplicate is None:
            chunks, threshold = _own_threshold(chunks, count)
            rules = rules._replace(duplicate=threshold)
        chosen = choose(chunks, rules, count=count, most=drawn, width=model.width, bar=bar)
    if len(chosen.embeddings) < count:
        raise UserError(_too_few(chosen.verdicts, count, rules, candidates))
    domain = None
    if training is not None and count > k:
        domain = coverage(rules.people.anchors.embeddings, AnchorSet(chosen.embeddings), k=k)
        if domain.wrong_domain:
            alignable = not align and len(rules.people.anchors) >= fewest_faces(model.width)
            warnings.append(
                f"domain: {domain.share_uncovered:.0%} of the training people are not covered by "
                "these anchors (about 1 % is usual), so that IDA can be worse than the cosine: "
                + ("take --align, train" if alignable else "train")
                + " the generator for longer, or rescore with --method=ida_r_fallback"
            )
    embeddings, of = chosen.embeddings, np.arange(count)
    if degrade is not None:
        numbers = np.flatnonzero(chosen.verdicts == KEPT)
        copies, of_copies = degraded_copies(
            candidates, numbers, model, degrade, flip=flip, parts=parts
        )
        copies = copies if match is None else match(copies)
        embeddings, of = np.concatenate([embeddings, copies]), np.concatenate([of, of_copies])
    described = {
        "candidates": candidates.provenance,
        "model": model.fingerprint,
        "flip": flip,
        "aligned": align,
        **_counts(chosen.verdicts),
        "thresholds": {
            "plausible_similarity": rules.plausible,
            "privacy_cosine": rules.privacy,
            "duplicate_cosine": rules.duplicate,
        },
        **privacy_record(chosen, rules, training),
        "coverage_of_training_people": None if domain is None else domain._asdict(),
        **degraded_provenance(degrade, of),
        "run": this_process(),
    }
    anchors = AnchorSet.from_embeddings(
        embeddings, labels=copy_labels(of), source="fake_db", fingerprint=model.fingerprint, k=k,
        tau=tau, provenance=described,
    )  # fmt: skip
    strangers = np.empty(0, np.float32) if rules.strangers is None else rules.strangers
    report = FakeReport(chosen.verdicts, chosen.nearest, strangers, tuple(warnings), described)
    return anchors, report


def provenance_line(provenance: dict[str, Any]) -> str:
    """The essentials of `AnchorSet.provenance` of a fake-db in a line."""
    made = provenance["candidates"]
    if "generator" in made:
        source = f"generator {made['generator']}, ψ = {made['truncation']:g}, seed {made['seed']}"
    else:
        source = f"{made['files']:,} images of {made['images']}"
    if provenance.get("aligned"):
        source += ", aligned to the training people"
    line = (
        f"{source}; {provenance['drawn']:,} drawn, dropped: {_in_words(provenance['dropped'])}; "
        "privacy: "
    )
    if provenance["privacy"] != "checked":
        return line + "not checked"
    training, kept = provenance["training"], provenance["nearest_training_cosine"]["kept"]
    return (
        f"{line}nearest of {training['faces']:,} training faces {kept['50 %']:.3f} (median), "
        f"{kept['100 %']:.3f} at most, of an anchor"
    )


def _most_drawn(candidates: CandidateFaces, count: int, wanted: int | None) -> int:
    most = _MOST_DRAWN * count if wanted is None else wanted
    if candidates.available is None:
        return most
    return candidates.available if wanted is None else min(wanted, candidates.available)


def _check(
    *, count: int, k: int, duplicate: float | None, privacy: float | None, drawn: int
) -> None:
    if not 1 <= k <= count:
        raise UserError(
            f"k = {k} of {count} anchors: expected k from 1 to the count; lower k or take more"
        )
    for name, cosine in (("duplicate_cosine", duplicate), ("privacy_cosine", privacy)):
        if cosine is not None and not -1 < cosine <= 1:
            raise UserError(f"{name} is {cosine:g}: expected a cosine, above -1 and at most 1")
    if drawn < count:
        raise UserError(
            f"{count:,} anchors were asked for from {drawn:,} faces: lower the count to at most "
            f"{drawn:,}, or give more faces"
        )


def _counted(chunks: Iterator[np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    for chunk in chunks:
        bar.update(len(chunk))
        yield chunk


def _aligned(
    chunks: Iterator[np.ndarray], target: Moments
) -> tuple[Iterator[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """All chunks with the target's moments, and what gives these; their own are of 4,096 faces."""
    faces, chunks = _first(chunks, _PILOT)
    match = partial(matched, own=moments(faces), target=target)
    return map(match, chunks), match


def _own_threshold(chunks: Iterator[np.ndarray], count: int) -> tuple[Iterator[np.ndarray], float]:
    """All chunks again, and the threshold by which the first `count` faces are one person."""
    faces, chunks = _first(chunks, count)
    if len(faces) < 2:
        return chunks, HIGHEST_THRESHOLD
    return chunks, same_person_threshold(AnchorSet(faces), faces=len(faces))


def _first(chunks: Iterator[np.ndarray], count: int) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Of the first `count` faces those that have an embedding; and all chunks again."""
    head, faces_read = [], 0
    for chunk in chunks:
        head.append(chunk)
        faces_read += len(chunk)
        if faces_read >= count:
            break
    faces = np.concatenate(head)[:count]
    return faces[np.isfinite(faces[:, 0])], itertools.chain(head, chunks)


def _counts(verdicts: np.ndarray) -> dict[str, Any]:
    dropped = {key: int(np.count_nonzero(verdicts == reason)) for reason, key in _KEYS.items()}
    kept = int(np.count_nonzero(verdicts == KEPT))
    return {"drawn": len(verdicts), "kept": kept, "dropped": dropped}


def _in_words(dropped: dict[str, int]) -> str:
    parts = [f"{dropped[key]:,} {REASONS[reason]}" for reason, key in _KEYS.items() if dropped[key]]
    return ", ".join(parts) or "none"


def _too_few(verdicts: np.ndarray, count: int, rules: Rules, candidates: CandidateFaces) -> str:
    """The message: how many were kept, what was dropped, and what to do."""
    counts = _counts(verdicts)
    drawn, kept, dropped = counts["drawn"], counts["kept"], counts["dropped"]
    advice = []
    if dropped["implausible"] > drawn / 2:
        advice.append("most do not look like faces to the model: are they aligned face crops?")
    if kept:
        # Thresholds depend on the count: with these the same faces are kept.
        same = f"--duplicate_cosine={rules.duplicate:.6f}"
        if rules.privacy is not None:
            same += f" --privacy_cosine={rules.privacy:.6f}"
        advice.append(f"take --count={kept} {same}, the thresholds of this try")
    if dropped["duplicate"] and candidates.provenance.get("truncation", 1) < 1:
        advice.append("raise --truncation, by which faces differ more")
    if candidates.available is None:
        advice.append("raise --most_drawn, or take another generator")
    else:
        advice.append("give more images")
    return (
        f"found only {kept:,} of {count:,} anchors in {drawn:,} faces; dropped: "
        f"{_in_words(dropped)}; {'; '.join(advice)}"
    )
