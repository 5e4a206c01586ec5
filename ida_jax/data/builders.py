"""TFDS builders of face data sets; importing this module registers them.

    import ida_jax.data.builders
    tfds.data_source("ms1m", split="train", data_dir=D)

reads what `ida-jax prepare` wrote to D/ms1m. If nothing is there, it is prepared from the
folder that `download_and_prepare_kwargs={"download_config": tfds.download.DownloadConfig(
manual_dir=FOLDER)}` names. Files are ArrayRecord, written and read without TensorFlow.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import EncodedFaces
from ida_jax.data.sources.face_folder import read_face_folder
from ida_jax.data.sources.recordio import read_recordio
from ida_jax.data.sources.tfds_writer import VERSION, face_features, write_faces


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Faces with their identities, of InsightFace's RecordIO unless a subclass says otherwise.

    `download_and_prepare` writes by `write_faces`, which resumes where it was stopped. The two
    generators are TFDS's own way to the same records, shuffled and unchecked.
    """

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the folder with train.rec and train.idx"

    def read(self, folder: Path) -> EncodedFaces:
        """The faces in the user's folder."""
        return read_recordio(folder)

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **_: Any
    ) -> None:
        """Writes the data set from `download_config.manual_dir`, unless it is there."""
        if self.is_prepared():
            return
        if download_config is None or download_config.manual_dir is None:
            raise UserError(
                f"{self.name} is not at {self.data_path}: prepare it with "
                "ida-jax prepare, or give download_config=tfds.download.DownloadConfig(manual_dir="
                f"FOLDER), where {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        faces = self.read(Path(download_config.manual_dir))
        written = write_faces(self.name, faces, data_dir=Path(self.data_path).parents[1])
        print(*written.notes, sep="\n", end="\n" * bool(written.notes))
        # The default is TFRecord, which TFDS reads with TensorFlow alone.
        self.info.set_file_format("array_record", override=True)
        self.info.read_from_directory(self.data_path)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=face_features(None))

    def _split_generators(self, manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        faces = self.read(Path(manager.manual_dir))
        self.info.features["label"].names = list(faces.identities)
        return {"train": self._generate_examples(faces)}

    def _generate_examples(self, faces: EncodedFaces) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image, label) in enumerate(zip(faces.images, faces.labels, strict=True)):
            # A file, since TFDS encodes an array with TensorFlow.
            yield row, {"image": io.BytesIO(image), "label": int(label)}


class Ms1m(FaceBuilder):
    """MS1M refined (ms1m-refine-v2, faces_emore)."""


class Ms1mv3(FaceBuilder):
    """MS1MV3 (ms1m-retinaface-t1)."""


class CasiaWebface(FaceBuilder):
    """CASIA-WebFace (faces_webface_112x112)."""


class Webface(FaceBuilder):
    """WebFace4M, 12M or 42M."""


class FaceFolder(FaceBuilder):
    """A folder of aligned crops per identity."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the folder that holds one folder per identity"

    def read(self, folder: Path) -> EncodedFaces:
        """The faces in the user's folder."""
        return read_face_folder(folder)
