"""Whether anchors are as dense around one group of probes as around another.

A group with more anchors than others has denser neighbourhoods, and so lower scores: the others'
false accept rate rises beside its own. But neighbourhoods differ by nature too: some groups' faces
are nearer to each other. So the probes themselves are the measure: with u the mean cosine of a
probe's k nearest faces of other people,

    shift of a group = mean over its people of u(anchors) − u(as many probes of each group)

which is the same for all groups where the anchors are as the balanced probes are, whatever their
number. The largest difference of two shifts is compared with the deviation σ of u(anchors) among
the probes and with its standard error, over people, and over which anchors and probes were drawn
(by random halves: of few anchors a density is chance).

On LFW (73 % men; pairs of either half; MobileFaceNet, its first 32 principal components, and with
noise) the difference is 0.46 to 0.95 σ by the first images of all identities, 3.7 to 9 standard
errors; at most 0.08 σ, 0.9 standard errors, by as many women as men; 0.10 to 0.40 σ, 0.9 to 4.3
standard errors, by three of one to two of the other. The limits, 0.25 σ and 3 standard errors, were
set on these (experiments/results/group_fairness.md has what the difference does to the FAR).

P people, A anchors, D embedding, G groups.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.balance import names_of_rows
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.tables.groups import groups_of_names, read_group_list, without_group
from ida_jax.tables.identities import people_of_images

_UNEVEN, _ERRORS = 0.25, 3.0  # σ, standard errors
_MOST_PEOPLE = 1000  # of a group that are examined
_FEW_PEOPLE = 30
_DEPTH, _SPLITS = 4, 20  # neighbours searched for the halves, in k; random halves


class GroupDensity(NamedTuple):
    """One group of probes.

    Attributes:
      name: the group's.
      people: P, of whom one face each is examined, at most 1,000.
      share: of the people of all groups.
      anchors: how many anchors are of the group; None where it is not known.
      similarity: the mean cosine to the k nearest anchors.
      expected: the same to the k nearest of as many other probes of each group.
    """

    name: str
    people: int
    share: float
    anchors: int | None
    similarity: float
    expected: float


class GroupCheck(NamedTuple):
    """What anchors do to groups of probes.

    Attributes:
      groups: one per group.
      densest: the group with the highest shift; its scores are lowered most.
      thinnest: that with the lowest.
      difference: of the two shifts, in cosines.
      error: its standard error, over people and over which anchors and probes were drawn.
      deviation: σ, of the mean cosine to the nearest anchors among probes.
      uneven: whether the difference is above 0.25 σ and above 3 standard errors.
    """

    groups: tuple[GroupDensity, ...]
    densest: str
    thinnest: str
    difference: float
    error: float
    deviation: float
    uneven: bool

    def json(self) -> dict[str, Any]:
        """For a JSON file."""
        return {**self._asdict(), "groups": [group._asdict() for group in self.groups]}


def check_groups(
    probes: np.ndarray,
    people: Sequence[str] | np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    anchors: AnchorSet,
    *,
    anchor_codes: np.ndarray | None = None,
    seed: int = 0,
) -> GroupCheck:
    """The density of anchors around each group's people, beside the probes' own.

    The first probe of a person stands for the person.

    Args:
      probes: float32 [N, D], unit rows.
      people: who is on each, N names or integers.
      codes: int [N], the probes' groups; −1 without one.
      names: G names.
      anchors: the set; probes who are among its names are left out of their own neighbours.
      anchor_codes: int [A], the anchors' groups; −1 without one; None where they are unknown.
      seed: of the draws of people.

    Raises:
      UserError: fewer than two groups among the probes, or one with too few people for k
        neighbours.
    """
    people = np.asarray(people)
    _, first = np.unique(people, return_index=True)
    first = first[codes[first] >= 0]
    counts = np.bincount(codes[first], minlength=len(names))
    listed = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts.tolist(), strict=True))
    if np.count_nonzero(counts) < 2:
        raise UserError(f"the probes are of one group ({listed}): expected people of two or more")
    smallest = int(np.argmin(counts))
    k, per_group = anchors.k, int(min(counts.min(), _MOST_PEOPLE))
    if len(names) * per_group <= k:
        raise UserError(
            f"group '{names[smallest]}' has {counts[smallest]} people among the probes (of all: "
            f"{listed}): too few to find k = {k} neighbours among as many of each group; add "
            "people, or leave the group out of the list"
        )
    rng = np.random.default_rng(seed)
    rows, reference = [], []
    for code in range(len(names)):
        drawn = rng.permutation(first[codes[first] == code])
        rows.append(np.sort(drawn[:_MOST_PEOPLE]))
        reference.append(drawn[:per_group])
    examined, of_reference = np.concatenate(rows), np.concatenate(reference)
    faces, group = probes[examined], codes[examined]
    own = (
        anchors.labels_of(people[examined]) if anchors.names and people.dtype.kind == "U" else None
    )
    balanced = AnchorSet.from_embeddings(
        probes[of_reference], labels=of_reference.astype(np.int32), k=k
    )
    near = _neighbours(faces, anchors, k, own)
    # A row's number stands for its person, so that nobody is a neighbour of their own.
    expected_near = _neighbours(faces, balanced, k, examined.astype(np.int32))
    similarity, expected = near.mean(), expected_near.mean()

    def by_group(values: np.ndarray, summary: Callable[[np.ndarray], float]) -> np.ndarray:
        return np.array([summary(values[group == code]) for code in range(len(names))])

    shift = similarity - expected
    mean = by_group(shift, np.mean)
    high, low = int(np.argmax(mean)), int(np.argmin(mean))
    difference = float(mean[high] - mean[low])
    of_people = by_group(shift, lambda values: float(np.std(values) / np.sqrt(values.size)))
    of_draws = []
    for one, other in zip(near.halves(rng), expected_near.halves(rng), strict=True):
        means = [by_group(half - own, np.nanmean) for half, own in zip(one, other, strict=True)]
        # Halves are twice as uncertain in variance, and so are differences of two of them again.
        of_draws.append(((means[0] - means[1])[high] - (means[0] - means[1])[low]) / 2)
    of_difference = float(
        np.sqrt(of_people[high] ** 2 + of_people[low] ** 2 + np.mean(np.square(of_draws)))
    )
    deviation = float(similarity.std())
    groups = tuple(
        GroupDensity(
            name,
            int(counts[code]),
            float(counts[code] / counts.sum()),
            None if anchor_codes is None else int(np.count_nonzero(anchor_codes == code)),
            float(similarity[group == code].mean()),
            float(expected[group == code].mean()),
        )
        for code, name in enumerate(names)
    )
    uneven = difference > _UNEVEN * deviation and difference > _ERRORS * of_difference
    return GroupCheck(
        groups, names[high], names[low], difference, of_difference, deviation, bool(uneven)
    )


class ListedCheck(NamedTuple):
    """The check, its lines for a terminal, and what it warns of."""

    found: GroupCheck
    lines: list[str]
    findings: list[str]


def check_listed_groups(
    path: Path,
    probes: np.ndarray,
    names: Sequence[str] | None,
    people: Sequence[str] | np.ndarray | None,
    anchors: AnchorSet,
) -> ListedCheck:
    """`check_groups` by a list of people or images and their groups.

    Args:
      path: the list (`ida_jax.tables.groups.read_group_list`).
      probes: float32 [N, D], unit rows.
      names: the probes' names; None where unknown.
      people: who is on each; by the names, PERSON/IMAGE, if None.
      anchors: the set; its groups are those of its names in the list.

    Raises:
      UserError: as `check_groups`; a list that is not by name; nobody is known.
    """
    if people is None and names is not None:
        people = people_of_images(names)
    if people is None:
        raise UserError(
            "--groups are of people, and who is on E's rows is not known: give --labels=L, or "
            "names PERSON/IMAGE"
        )
    listed = read_group_list(path)
    if listed is None:
        raise UserError(f"{path}: expected a list of two columns, a person and a group")
    grouped = groups_of_names(path, listed, names_of_rows(names, np.asarray(people)))
    place = {group: code for code, group in enumerate(grouped.names)}
    of_anchors = np.array([place.get(listed.get(name, ""), -1) for name in anchors.names])
    found = check_groups(
        probes, people, grouped.codes, grouped.names, anchors,
        anchor_codes=of_anchors if np.any(of_anchors >= 0) else None,
    )  # fmt: skip
    findings = []
    if found.uneven:
        findings.append(
            f"the anchors are denser around {found.densest} than around {found.thinnest}, whose "
            "false accept rate IDA then raises beside the other's: build them with --balance=GROUPS"
        )
    return ListedCheck(
        found, [*_lines(found, anchors.k), *without_group(grouped, "probes")], findings
    )


def _lines(found: GroupCheck, k: int) -> list[str]:
    """The check in lines for a terminal."""
    known = sum(group.anchors or 0 for group in found.groups)
    lines = [f"groups: mean cosine to the {k} nearest anchors, and to as many probes of each group"]
    for group in found.groups:
        anchors = "anchors unknown"
        if group.anchors is not None:
            anchors = f"{group.anchors:,} anchors ({group.anchors / max(known, 1):.0%})"
        few = ", too few to say much" if group.people < _FEW_PEOPLE else ""
        lines.append(
            f"  {group.name}: {group.people:,} people ({group.share:.0%}{few}), {anchors}; "
            f"{group.similarity:.3f}, expected {group.expected:.3f}"
        )
    lines.append(
        f"  anchors are denser around {found.densest} than around {found.thinnest} by "
        f"{found.difference:.4f} (standard error {found.error:.4f}; "
        f"{found.difference / (found.deviation or 1):.2f} of the deviation among probes)"
    )
    return lines


class _Near(NamedTuple):
    """Neighbours of P faces among A others: cosines, descending, and rows, both [P, M]."""

    similarities: np.ndarray
    indices: np.ndarray
    others: int
    k: int

    def mean(self) -> np.ndarray:
        """float64 [P]: the mean cosine of the k nearest."""
        return self.similarities[:, : self.k].mean(axis=1)

    def halves(self, rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
        """Of random halves of the others: the mean of the ⌈k/2⌉ nearest in either, NaN if fewer."""
        size = -(-self.k // 2)
        for _ in range(_SPLITS):
            second = (rng.permutation(self.others) % 2 == 1)[self.indices]
            means = []
            for mine in (~second, second):
                used = mine & (np.cumsum(mine, axis=1) <= size)
                total = np.where(used, self.similarities, 0).sum(axis=1)
                means.append(np.where(used.sum(axis=1) == size, total / size, np.nan))
            yield means


def _neighbours(faces: np.ndarray, anchors: AnchorSet, k: int, labels: np.ndarray | None) -> _Near:
    found = support_sets(faces, anchors, k=min(_DEPTH * k, len(anchors) - 1), labels=labels)
    similarities = np.asarray(found.similarities, np.float64)
    return _Near(similarities, np.asarray(found.indices), len(anchors), k)
