"""A run's config, its workdir, and what both name, read when it is asked for.

N faces, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.load import load_faces
from ida_jax.face_model import FaceModel, Preprocessing
from ida_jax.protocols.pair_lists import PairList, kfold_pairs, read_lfw_pairs
from ida_jax.rescoring.density import DensityRegressor


@dataclass(frozen=True, eq=False)
class Run:
    """A config and its workdir; data and artefacts are read when a stage asks for them."""

    config: ConfigDict
    workdir: Path

    @property
    def model_path(self) -> Path:
        return self.workdir / "model.safetensors"

    @property
    def anchors_path(self) -> Path:
        return self.workdir / "anchors" / "anchors.safetensors"

    @property
    def ssr_path(self) -> Path:
        return self.workdir / "ssr.safetensors"

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
    def verify_faces(self) -> FaceDataset:
        c = self.config
        return load_faces(c.verify_data, data_dir=c.data_dir, seed=c.seed)

    @cached_property
    def verify_pairs(self) -> PairList:
        c = self.config
        return _pairs(c, c.verify_data.name, self.verify_faces, folds=10)

    @property
    def model_preprocessing(self) -> Preprocessing:
        c = self.config.model
        return Preprocessing(c.image_size, tuple(c.mean), tuple(c.std))

    @cached_property
    def model(self) -> FaceModel:
        return FaceModel.load(self.model_path)

    @cached_property
    def anchors(self) -> AnchorSet:
        anchors = AnchorSet.load(self.anchors_path)
        anchors.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return anchors

    @cached_property
    def ssr(self) -> DensityRegressor:
        ssr = DensityRegressor.load(self.ssr_path)
        ssr.check_model(fingerprint=self.model.fingerprint, width=self.model.width)
        return ssr

    @cached_property
    def train_embeddings(self) -> np.ndarray:
        return self.embed(self.train_faces.images, "embed the training set")

    def embed(self, images: Sequence[np.ndarray], title: str) -> np.ndarray:
        # Anchors, the SSR module's faces and the evaluated ones alike: one distribution.
        return self.model.embed(images, flip=self.config.flip, progress=title)


def _pairs(config: ConfigDict, kind: str, faces: FaceDataset, *, folds: int) -> PairList:
    """LFW's own pairs where the kind is "lfw"; drawn from the labels otherwise."""
    if kind == "lfw":
        return read_lfw_pairs(Path(config.data_dir) / "lfw" / "pairs.txt", faces.names)
    return kfold_pairs(faces.labels, folds=folds, seed=config.seed)
