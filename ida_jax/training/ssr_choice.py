"""The SSR module with settings chosen, and log F calibrated, on held-out people; ours.

What suits one model's few thousand faces overfits another's, so that settings are not given but
tried. The people are dealt into five folds. Those of the first are left out, of the training and of
the anchors, and each setting of a small grid is trained without them: the one, and the step, that
explain most of their searched log F are taken. A module of these settings is then trained without
each other fold in turn, and the four together show how far log F can be believed
(`metrics.density_calibration`). The module that is kept is trained on all faces and anchors with
the chosen settings, and carries the calibration; where there is nothing to believe, its log F is
one number, and pairs rank by their cosine.

Inputs are centred and scaled, and the copies' noise is a share of the faces' spread: the
embeddings of a weak model lie close together, where noise of a fixed length leads out of them.

N faces, A anchors, D embedding.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import HeldOut, SSRModule
from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.metrics.density_calibration import (
    DensityCalibration,
    calibrate_density,
    explained,
    person_weights,
)
from ida_jax.rescoring.density import searched_log_density
from ida_jax.training.ssr import (
    make_target,
    network_training,
    rows_of,
    spread,
    train_ssr,
    with_copies,
)

FOLDS = 5
# Fewer than ten people in a fold say nothing of a module.
FEWEST_PEOPLE = 10 * FOLDS
# The largest training set for which "auto" chooses.
SMALL = 50_000
# Faces that settings are tried on at most, so that the choice costs minutes for any set.
_MOST_FACES = 20_000
_MOST_STEPS, _STRIDE = 2_000, 100
_COPIES = 8


class Setting(NamedTuple):
    """A member of the grid; its noise is a share of the faces' spread."""

    hidden: int
    copies: int
    noise: float
    weight_decay: float


GRID = (
    Setting(64, 0, 0.0, 3e-2),
    Setting(256, _COPIES, 0.5, 5e-3),
    Setting(256, _COPIES, 0.5, 3e-2),
    Setting(256, _COPIES, 1.0, 5e-3),
    Setting(256, _COPIES, 1.0, 3e-2),
    Setting(64, _COPIES, 1.0, 3e-2),
)


class _Split(NamedTuple):
    """Faces to train on, their identities, their anchors; and faces of other people.

    Attributes:
      faces, own: as `train_chosen_ssr` takes them.
      anchors: without those of the people held out.
      held, searched: float32 [H, D] and [H], the faces held out and their log F.
    """

    faces: np.ndarray
    own: np.ndarray | None
    anchors: AnchorSet
    held: np.ndarray
    searched: np.ndarray


def train_chosen_ssr(
    faces: np.ndarray,
    people: np.ndarray | None,
    own: np.ndarray | None,
    anchors: AnchorSet,
    config: ConfigDict,
    *,
    k: int,
    tau: float,
    fingerprint: str = "",
    workdir: str | os.PathLike[str],
    seed: int,
    searcher: str = "auto",
) -> SSRModule:
    """Chooses settings on held-out people, trains on all with them, and calibrates log F.

    Args:
      faces: float32 [N, D], unit rows.
      people: int [N], who is on them, -1 where unknown; None: every face is a person of its own.
      own: int [N], the same in the anchors' numbering, to be left out of their support sets; None
        where no person is in both sets.
      config: of the section ssr, whose target is kept, and whose steps are the most.

    Raises:
      UserError: fewer than 50 people; a fold without whose people fewer than k anchors are left.
    """
    config = _base(config)
    options: dict[str, Any] = {"k": k, "tau": tau, "searcher": searcher}
    rng = np.random.default_rng(seed)
    persons = _persons(people, len(faces))
    taken, folds = _dealt(persons, rng)
    sample = (faces[taken], None if own is None else own[taken])
    splits = (_split(*sample, anchors, folds == fold, **options) for fold in range(FOLDS))
    with progress_bar(
        total=len(GRID) + FOLDS - 1, desc="ssr: held-out people", unit="training"
    ) as bar:
        first = next(splits)
        weights = person_weights(persons[taken][folds == 0])
        setting, steps = _best(first, weights, config, seed=seed, bar=bar, **options)
        chosen, regressed, searched, crowding = _with(config, setting), [], [], []
        for fold, split in enumerate(splits, 1):
            level, of_held = _regressed(split, chosen, setting, steps, seed=seed, **options)
            regressed.append(of_held - level)
            searched.append(split.searched - level)
            crowding.append(
                _log_density_among(split.held, persons[taken][folds == fold], **options)
            )
            bar.update()
    order = np.concatenate([np.flatnonzero(folds == fold) for fold in range(1, FOLDS)])
    calibration = calibrate_density(
        np.concatenate(regressed),
        np.concatenate(searched),
        np.concatenate(crowding),
        persons[taken][order],
        folds[order],
        seed=seed,
    )
    made = _copies(faces, own, setting, seed=seed)
    log_density = searched_log_density(
        made.embeddings, anchors, k=k, tau=tau, labels=made.labels, searcher=searcher
    )
    module = train_ssr(
        made.embeddings, log_density, chosen, k=k, tau=tau, fingerprint=fingerprint,
        workdir=workdir, seed=seed, steps=steps,
    )  # fmt: skip
    level = float(np.mean(log_density[: len(faces)], dtype=np.float64))
    print(
        f"ssr: width {setting.hidden}, {setting.copies} copies of noise {setting.noise:g}, weight "
        f"decay {setting.weight_decay:g}, {steps:,} steps, by {len(weights):,} faces held out"
    )
    judged = _judged(calibration, setting, steps, len(np.unique(persons[taken][order])))
    print(judged.note())
    return replace(
        module,
        slope=calibration.slope,
        intercept=calibration.offset + (1 - calibration.slope) * level,
        held_out=judged,
    )


def chooses(config: ConfigDict, faces: int, people: int) -> bool:
    """Whether the section ssr leaves its settings to held-out people.

    "auto" does where the faces are few, the people enough and the targets searched beforehand.
    """
    choose = config.get("choose", "given")
    small = faces <= SMALL and people >= FEWEST_PEOPLE and config.targets == "searched"
    return choose == "held_out" or (choose == "auto" and small)


def _base(config: ConfigDict) -> ConfigDict:
    """What all settings share: the grid varies the rest."""
    base = config.copy_and_resolve_references()
    with base.unlocked():
        base.update(
            input="centred", mix=0.0, batch_size=256, steps=min(config.steps, _MOST_STEPS),
            schedule="linear", learning_rate=1e-2, momentum=0.9,
        )  # fmt: skip
    return base


def _with(config: ConfigDict, setting: Setting) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update(hidden=setting.hidden, weight_decay=setting.weight_decay)
    return config


def _persons(people: np.ndarray | None, faces: int) -> np.ndarray:
    """int64 [N], those of unknown identity as persons of their own."""
    if people is None:
        return np.arange(faces)
    people = np.asarray(people, np.int64)
    return np.where(people < 0, people.max(initial=-1) + 1 + np.arange(faces), people)


def _dealt(persons: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all faces of persons drawn at random, up to the most faces, and their folds."""
    names, of_face, sizes = np.unique(persons, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    order = order[np.cumsum(sizes[order]) <= _MOST_FACES]
    if len(order) < FEWEST_PEOPLE:
        raise UserError(
            f"the training set has {len(order)} people with at most {_MOST_FACES:,} faces in all, "
            f"and settings are chosen by {FEWEST_PEOPLE} or more: take more people, or set "
            "ssr.choose to given"
        )
    fold_of = np.full(len(names), -1)
    fold_of[order] = np.arange(len(order)) % FOLDS
    rows = np.flatnonzero(fold_of[of_face] >= 0)
    return rows, fold_of[of_face][rows]


def _split(
    faces: np.ndarray,
    own: np.ndarray | None,
    anchors: AnchorSet,
    held: np.ndarray,
    *,
    k: int,
    tau: float,
    searcher: str,
) -> _Split:
    kept = anchors
    if own is not None:
        known = own[held][own[held] >= 0]
        rows = np.flatnonzero(~np.isin(anchors.labels, known))
        kept = replace(
            anchors, embeddings=anchors.embeddings[rows], labels=anchors.labels[rows], names=()
        )
        own = own[~held]
    most = 0 if own is None else int(np.unique(kept.labels, return_counts=True)[1].max(initial=0))
    if k > len(kept) - most:
        raise UserError(
            f"k is {k}, but without a fifth of the people a support set can have at most "
            f"{len(kept) - most} anchors: lower k, take more people, or set ssr.choose to given"
        )
    searched = searched_log_density(faces[held], kept, k=k, tau=tau, searcher=searcher)
    return _Split(faces[~held], own, kept, faces[held], searched)


def _copies(faces: np.ndarray, own: np.ndarray | None, setting: Setting, *, seed: int) -> Any:
    """`with_copies` by a setting."""
    noise = setting.noise * spread(faces)[1]
    return with_copies(faces, own, copies=setting.copies, mix=0.0, noise=noise, seed=seed)


def _targets(
    split: _Split, setting: Setting, *, seed: int, k: int, tau: float, searcher: str
) -> tuple[np.ndarray, np.ndarray]:
    """The split's training faces and their copies, and the log F of both."""
    made = _copies(split.faces, split.own, setting, seed=seed)
    searched = searched_log_density(
        made.embeddings, split.anchors, k=k, tau=tau, labels=made.labels, searcher=searcher
    )
    return made.embeddings, searched


def _modules(
    targets: tuple[np.ndarray, np.ndarray],
    config: ConfigDict,
    *,
    seed: int,
    steps: int,
    stride: int,
    k: int,
    tau: float,
) -> Iterator[tuple[int, SSRModule]]:
    """The module after every `stride` steps."""
    target = make_target(targets[1], config.target)
    constants = target.mean, target.std, target.floor
    data = targets[0], target.values
    training = network_training(rows_of(config.batch_size, len(data[0])), data, config, seed=seed)
    state = training.state
    for start in range(0, steps, stride):
        state, _ = training.run(state, min(stride, steps - start))
        params = training.module_params(state)
        yield min(start + stride, steps), SSRModule(params, config.target, *constants, k, tau)


def _best(
    split: _Split,
    weights: np.ndarray,
    config: ConfigDict,
    *,
    seed: int,
    bar: Any,
    **options: Any,
) -> tuple[Setting, int]:
    """The setting, and the steps, whose module explains most of the held-out people's log F."""
    best, choice = -np.inf, (GRID[0], config.steps)
    constants = {"k": options["k"], "tau": options["tau"]}
    targets: dict[tuple[int, float], tuple[np.ndarray, np.ndarray]] = {}
    for setting in GRID:
        key = setting.copies, setting.noise
        if key not in targets:
            targets[key] = _targets(split, setting, seed=seed, **options)
        modules = _modules(
            targets[key], _with(config, setting), seed=seed, steps=config.steps, stride=_STRIDE,
            **constants,
        )  # fmt: skip
        for step, module in modules:
            share = explained(
                module.log_density(split.held).astype(np.float64), split.searched, weights
            )
            if share > best:
                best, choice = share, (setting, step)
        bar.update()
    return choice


def _regressed(
    split: _Split, config: ConfigDict, setting: Setting, steps: int, *, seed: int, **options: Any
) -> tuple[float, np.ndarray]:
    """The mean log F of the split's training faces, and log F of those held out by its module."""
    targets = _targets(split, setting, seed=seed, **options)
    constants = {"k": options["k"], "tau": options["tau"]}
    *_, (_, module) = _modules(targets, config, seed=seed, steps=steps, stride=_STRIDE, **constants)
    level = float(np.mean(targets[1][: len(split.faces)], dtype=np.float64))
    return level, module.log_density(split.held)


def _log_density_among(
    faces: np.ndarray, persons: np.ndarray, *, k: int, tau: float, searcher: str
) -> np.ndarray:
    """log F of faces [H, D] among the others' first images, by k of them or all there are."""
    names, first, of_face = np.unique(persons, return_index=True, return_inverse=True)
    labels = np.arange(len(names), dtype=np.int32)
    others = AnchorSet.from_embeddings(faces[first], labels=labels)
    return searched_log_density(
        faces, others, k=min(k, len(names) - 1), tau=tau, labels=of_face.astype(np.int32),
        searcher=searcher,
    )  # fmt: skip


def _judged(calibration: DensityCalibration, setting: Setting, steps: int, people: int) -> HeldOut:
    return HeldOut(
        people=people,
        **setting._asdict(),
        steps=steps,
        r2=calibration.r2.value,
        r2_low=calibration.r2.low,
        r2_high=calibration.r2.high,
        raw_r2=calibration.raw_r2,
        raw_slope=calibration.raw_slope.value,
        raw_bias=calibration.raw_bias,
        bias=calibration.bias,
        doubt=calibration.doubt,
    )
