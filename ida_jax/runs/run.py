"""A run's config, its workdir, and what both name, read when it is asked for.

N faces, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings, UncertaintyModel
from ida_jax.common.parts import Parts, write_npy
from ida_jax.common.validation import require_log_variances
from ida_jax.data.dataset import FaceDataset, ImageSubset
from ida_jax.data.labelled_pairs import (
    PairList,
    consecutive_pairs,
    kfold_pairs,
    read_lfw_pairs,
)
from ida_jax.data.load import load_faces
from ida_jax.data.tfds_faces import load_pairs

# Faces a file of embeddings: on a CPU the work of half an hour.
_PART = 65_536


class Verification(NamedTuple):
    """Images, and pairs of them."""

    images: Sequence[np.ndarray]
    pairs: PairList


@dataclass(frozen=True, eq=False)
class Run:
    """A config and its workdir; data and artefacts are read when a stage asks for them."""

    config: ConfigDict
    workdir: Path

    @property
    def model_path(self) -> Path:
        return self.workdir / "model.safetensors"

    @property
    def generator_path(self) -> Path:
        return self.workdir / "generator.safetensors"

    @property
    def anchors_path(self) -> Path:
        return self.workdir / "anchors" / "anchors.safetensors"

    @property
    def ssr_path(self) -> Path:
        return self.workdir / "ssr.safetensors"

    @property
    def pfe_path(self) -> Path:
        return self.workdir / "pfe.safetensors"

    @property
    def csn_path(self) -> Path:
        return self.workdir / "csn.safetensors"

    @property
    def results_path(self) -> Path:
        return self.workdir / "results.json"

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
    def verification(self) -> Verification:
        """The held-out pairs of verify_data: faces' (by its name as evaluate.pairs), or listed."""
        c = self.config
        if c.verify_data.name == "pairs":
            listed = load_pairs(c.verify_data.dataset, data_dir=c.data_dir)
            pairs = consecutive_pairs(listed.same, folds=c.evaluate.folds)
            return Verification(listed.images, pairs)
        faces = load_faces(c.verify_data, data_dir=c.data_dir, seed=c.seed)
        pairs = _pairs(c, c.verify_data.name, faces, folds=c.evaluate.folds)
        return Verification(faces.images, pairs)

    @property
    def model_preprocessing(self) -> Preprocessing:
        c = self.config.model
        return Preprocessing(c.image_size, tuple(c.mean), tuple(c.std))

    @cached_property
    def model(self) -> FaceModel:
        return FaceModel.load(self.model_path)

    @cached_property
    def generator(self) -> FaceGenerator:
        """anchors.generator's, or else the one that the stage gan has trained."""
        return FaceGenerator.load(self.config.anchors.generator or self.generator_path)

    @cached_property
    def anchors(self) -> AnchorSet:
        anchors = AnchorSet.load(self.anchors_path)
        anchors.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return anchors

    @cached_property
    def ssr(self) -> SSRModule:
        ssr = SSRModule.load(self.ssr_path)
        ssr.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return ssr

    @cached_property
    def uncertainty(self) -> UncertaintyModel:
        return UncertaintyModel.load(self.pfe_path)

    @property
    def anchor_variances_path(self) -> Path:
        return self.workdir / "anchors" / "log_variances.npy"

    @cached_property
    def uncertain_anchors(self) -> ProbabilisticEmbeddings | None:
        """The anchors with their variances; None where they have no images (class weights)."""
        if not self.anchor_variances_path.is_file():
            return None
        log_variances = require_log_variances(np.load(self.anchor_variances_path))
        return ProbabilisticEmbeddings(np.asarray(self.anchors.embeddings), log_variances)

    @cached_property
    def train_embeddings(self) -> np.ndarray:
        """Float32 [N, D], in files of a part each: an interrupted pass goes on where it was."""
        images, flip = self.train_faces.images, "-flip" if self.config.flip else ""
        folder = self.workdir / "embeddings" / f"train-{self.model.fingerprint}{flip}"
        folder.mkdir(parents=True, exist_ok=True)
        # Whose they are: `python -m ida_jax.anchors fake` has this folder alone.
        write_npy(folder / "labels.npy", self.train_faces.labels)

        def part(rows: range) -> np.ndarray:
            title = f"embed the training set, {rows.start} … {rows[-1]} of {len(images)}"
            return self.embed(ImageSubset(images, np.arange(rows.start, rows.stop)), title)

        return Parts(folder, len(images), _PART).whole(part, (self.model.width,))

    def embed(self, images: Sequence[np.ndarray], title: str) -> np.ndarray:
        # Anchors, the SSR module's faces and the evaluated ones alike: one distribution.
        return self.model.embed(images, flip=self.config.flip, progress=title)


def _pairs(config: ConfigDict, kind: str, faces: FaceDataset, *, folds: int) -> PairList:
    """LFW's own pairs where the kind is "lfw"; drawn from the labels otherwise."""
    if kind == "lfw":
        return read_lfw_pairs(Path(config.data_dir) / "lfw" / "pairs.txt", faces.names)
    return kfold_pairs(faces.labels, folds=folds, seed=config.seed)
