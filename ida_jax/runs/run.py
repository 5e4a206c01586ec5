"""A run's config and workdir, with the data and artefacts that they name, read on demand.

N faces, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings, UncertaintyModel
from ida_jax.common.parts import Parts, write_npy
from ida_jax.common.validation import require_log_variances
from ida_jax.data.dataset import FaceDataset, LazyImages, image_subset
from ida_jax.data.degrade import Degradation, copies_of, degraded_rows
from ida_jax.data.labelled_pairs import (
    PairList,
    consecutive_pairs,
    kfold_pairs,
    read_lfw_pairs,
)
from ida_jax.data.load import bin_files, load_faces
from ida_jax.data.sources.image_files import decode
from ida_jax.data.sources.verification_bin import read_verification_bin
from ida_jax.data.tfds_faces import load_pairs
from ida_jax.metrics.groups import FaceGroups
from ida_jax.protocols.group_figures import face_groups
from ida_jax.runs.workdir import (
    ANCHOR_VARIANCES,
    ANCHORS,
    GENERATOR,
    LABELS,
    MODEL,
    PFE,
    SSR,
    degraded_training_embeddings,
    ignored_list,
    training_embeddings,
)
from ida_jax.tables.blocks import open_npy
from ida_jax.tables.identity_pairs import KnownPairs, pairs_among, read_identity_pairs

# Faces a file of embeddings: on a CPU the work of half an hour.
_PART = 65_536


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
      run: runs the stage.
      result: the name in the workdir of the file that it ends in; if it exists, the stage is done.
      by_all: all processes of a run take part, not only the first.
      depends_on: the config's sections and options that the result depends on; "" is all of them.
      after: the earlier stages whose results it takes.
      remade: whether it is run again where these have changed; otherwise such a config is refused.
      parts: folders in the workdir that show that it has begun, before there is a result.
    """

    run: Callable[[Any], None]
    result: str
    by_all: bool = False
    depends_on: tuple[str, ...] = ("",)
    after: tuple[str, ...] = ()
    remade: bool = True
    parts: tuple[str, ...] = ()


class Verification(NamedTuple):
    """Images, and pairs of them."""

    images: Sequence[np.ndarray]
    pairs: PairList


@dataclass(frozen=True, eq=False)
class Run:
    """A config and its workdir; data and artefacts are read on demand."""

    config: ConfigDict
    workdir: Path

    @cached_property
    def train_faces(self) -> FaceDataset:
        c = self.config
        return load_faces(c.train_data, data_dir=c.data_dir, seed=c.seed)

    @cached_property
    def eval_faces(self) -> FaceDataset:
        c = self.config
        return load_faces(c.eval_data, data_dir=c.data_dir, seed=c.seed)

    @cached_property
    def pair_list(self) -> PairList:
        c = self.config
        return _pairs(c, c.evaluate.pairs, self.eval_faces, folds=c.evaluate.folds)

    @cached_property
    def verifications(self) -> dict[str, Verification]:
        """The held-out pairs of verify_data, by name: its verification sets (.bin), or its own."""
        c = self.config
        if isinstance(c.verify_data, ConfigDict):
            return {c.verify_data.name: self._verification_of_a_data_set()}
        return {
            name: _verification_set(Path(c.data_dir) / file, folds=c.evaluate.folds)
            for name, file in bin_files(c.verify_data).items()
        }

    def _verification_of_a_data_set(self) -> Verification:
        """Pairs that are listed, or those of faces (by the data set's name as evaluate.pairs)."""
        c = self.config
        if c.verify_data.name == "pairs":
            listed = load_pairs(c.verify_data.dataset, data_dir=c.data_dir)
            pairs = consecutive_pairs(listed.same, folds=c.evaluate.folds)
            return Verification(listed.images, pairs)
        faces = load_faces(c.verify_data, data_dir=c.data_dir, seed=c.seed)
        pairs = _pairs(c, c.verify_data.name, faces, folds=c.evaluate.folds)
        return Verification(faces.images, pairs)

    @cached_property
    def one_person(self) -> KnownPairs | None:
        """The evaluated people whose pairs count neither way, by their labels."""
        path = ignored_list(self.config)
        if path is None:
            return None
        return pairs_among(read_identity_pairs(path), self.eval_faces.identities, what="people")

    @cached_property
    def groups(self) -> FaceGroups | None:
        """Those of the evaluated faces, by the list `evaluate.groups` of people."""
        path, faces = self.config.evaluate.get("groups"), self.eval_faces
        return path and face_groups(path, [faces.identities[label] for label in faces.labels])

    @property
    def model_preprocessing(self) -> Preprocessing:
        c = self.config.model
        return Preprocessing(c.image_size, tuple(c.mean), tuple(c.std))

    @cached_property
    def model(self) -> FaceModel:
        return FaceModel.load(self.workdir / MODEL)

    @cached_property
    def given_class_weights(self) -> np.ndarray | None:
        """float32 [C, D], those of `model.class_weights` in data_dir; None where it names none."""
        from ida_jax.interop.weights import class_weight_files, read_class_weights

        c = self.config.model
        if c.get("class_weights") is None:  # a section from before the entry
            return None
        named = [str(Path(self.config.data_dir) / part) for part in c.class_weights.split(",")]
        return read_class_weights(
            class_weight_files(",".join(named)), width=c.options.embedding_dim, model="the config"
        )

    @cached_property
    def generator(self) -> FaceGenerator:
        """The one that anchors.generator names, or else the one trained by the stage gan."""
        return FaceGenerator.load(self.config.anchors.generator or self.workdir / GENERATOR)

    @cached_property
    def anchors(self) -> AnchorSet:
        anchors = AnchorSet.load(self.workdir / ANCHORS)
        anchors.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return anchors

    @cached_property
    def ssr(self) -> SSRModule:
        ssr = SSRModule.load(self.workdir / SSR)
        ssr.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return ssr

    @cached_property
    def uncertainty(self) -> UncertaintyModel:
        return UncertaintyModel.load(self.workdir / PFE)

    @cached_property
    def uncertain_anchors(self) -> ProbabilisticEmbeddings | None:
        """The anchors with their variances; None where they have no images (class weights)."""
        path = self.workdir / ANCHOR_VARIANCES
        if not path.is_file():
            return None
        log_variances = require_log_variances(open_npy(path, what="variances"))
        return ProbabilisticEmbeddings(np.asarray(self.anchors.embeddings), log_variances)

    @cached_property
    def train_embeddings(self) -> np.ndarray:
        """float32 [N, D], embedded in parts: an interrupted pass continues."""
        images = self.train_faces.images
        folder = training_embeddings(self.workdir, self.model.fingerprint, flip=self.config.flip)
        folder.mkdir(parents=True, exist_ok=True)
        # Identities too: `ida-jax anchors fake` reads this folder alone.
        write_npy(folder / LABELS, self.train_faces.labels)

        def part(rows: range) -> np.ndarray:
            title = f"embed the training set, {rows.start} … {rows[-1]} of {len(images)}"
            return self.embed(image_subset(images, np.arange(rows.start, rows.stop)), title)

        return Parts(folder, len(images), _PART).whole(part, (self.model.width,))

    def degraded_embeddings(self, how: Degradation) -> tuple[np.ndarray, np.ndarray]:
        """Degraded copies of some training faces: their rows int64 [C], and float32 [C, D].

        Embedded in parts: an interrupted pass continues.
        """
        faces = self.train_faces
        chosen = np.flatnonzero(degraded_rows(how, np.arange(len(faces.labels))))
        images = copies_of(image_subset(faces.images, chosen), how, numbers=chosen)
        folder = degraded_training_embeddings(
            self.workdir, self.model.fingerprint, flip=self.config.flip, how=how.described()
        )
        folder.mkdir(parents=True, exist_ok=True)

        def part(rows: range) -> np.ndarray:
            title = f"embed degraded copies, {rows.start} … {rows[-1]} of {len(images)}"
            return self.embed(image_subset(images, np.arange(rows.start, rows.stop)), title)

        copies = Parts(folder, len(images), _PART).whole(part, (self.model.width,))
        return np.tile(chosen, how.copies), copies

    def embed(self, images: Sequence[np.ndarray], title: str) -> np.ndarray:
        # Anchors, the SSR module's faces and the evaluated ones alike: one distribution.
        return self.model.embed(images, flip=self.config.flip, progress=title)


def _verification_set(path: Path, *, folds: int) -> Verification:
    of = read_verification_bin(path)
    images = LazyImages(len(of.images), lambda row: decode(of.images[row], where=of.where(row)))
    return Verification(images, consecutive_pairs(of.same, folds=folds))


def _pairs(config: ConfigDict, kind: str, faces: FaceDataset, *, folds: int) -> PairList:
    """LFW's own pairs where the kind is "lfw"; drawn from the labels otherwise."""
    if kind == "lfw":
        return read_lfw_pairs(Path(config.data_dir) / "lfw" / "pairs.txt", faces.names)
    return kfold_pairs(faces.labels, folds=folds, seed=config.seed)
