"""Readers of a file among others: in a workdir, a prepared data set, a folder of parts."""

import functools
import json
import random
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np

from .mutate import mutated
from .remake import ARTEFACT, JSON, PART, json_values
from .seeds import Reader, image, npy, saved, unit

# Workdirs -----------------------------------------------------------------------------------------


def _metrics(path: Path) -> None:
    from ida_jax.training.loop import open_metrics, read_metrics

    content = path.read_bytes()
    read_metrics(path.parent)
    with open_metrics(path.parent, stage="train", first_step=1):
        pass
    path.write_bytes(content)


_METRICS = b"""{"stage": "train", "step": 1, "loss": 1.0}
{"stage": "train", "step": 2, "loss": 0.5}
"""


def _results(path: Path) -> None:
    from ida_jax.runs.workdir import read_results

    read_results(path.parent)


_RESULTS = b'{"protocols": {"dao": {"accuracy": 0.5}}, "notes": {}, "provenance": {"seed": 1}}\n'


def _config(path: Path) -> None:
    from ml_collections import ConfigDict

    from ida_jax.runs.stages import STAGES
    from ida_jax.runs.workdir import claim_workdir

    claim_workdir(path.parent, ConfigDict(_CONFIG), STAGES)


_CONFIG = {
    "title": "a",
    "seed": 1,
    "stages": ["train"],
    "model": {"network": "iresnet_nano", "options": {"a": [1]}},
}


def _checksums(path: Path) -> None:
    """checksums.json of a checkpoint, which decides whether it is whole."""
    from ida_jax.training import checkpoint

    # The whole of it needs a training's state; what is wrong is said by one function.
    (path.parent / "_CHECKPOINT_METADATA").write_text("{}")
    (path.parent / "a").write_bytes(b"abc")
    checkpoint._own_damage(path.parent, every_byte=True)


def _part(path: Path) -> None:
    from ida_jax.common.parts import read_part

    read_part(path)


def _sealed() -> list[bytes]:
    from ida_jax.common.parts import write_part

    return [saved(lambda path: write_part(path, unit(5)), "p.npy"), npy(unit(5))]


def _lock(path: Path) -> None:
    """The lock of an output that another process holds."""
    from ida_jax.common.outputs import writing

    with writing({"--output": path.parent / "out.npy"}, reading={}):
        pass


def _shard_report(path: Path) -> None:
    """What an interrupted preparation says of a shard that it finished."""
    from ida_jax.data.sources.shards import Example, write_shards

    path.with_suffix("").write_bytes(b"")
    shards = write_shards(
        path.parent, "x.array_record", lambda row: Example({"label": row}), rows=4
    )
    sum(shard.records + shard.bytes for shard in shards)


# Prepared data sets -------------------------------------------------------------------------------


@functools.cache
def _prepared() -> dict[str, bytes]:
    """The files of a data set of four faces, by their names."""
    from ida_jax.data.dataset import EncodedFaces
    from ida_jax.data.sources.tfds_writer import write_faces

    faces = EncodedFaces([image(".jpg")] * 4, np.int32([0, 0, 1, 1]), ("A", "B"), str)
    with tempfile.TemporaryDirectory() as folder:
        written = write_faces("faces", faces, data_dir=folder)
        return {path.name: path.read_bytes() for path in written.path.iterdir()}


def _faces(path: Path) -> None:
    from ida_jax.data.tfds_faces import load_tfds

    content = path.read_bytes()
    folder = path.parent / "data" / "faces" / "1.0.0"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, whole in _prepared().items():
        (folder / name).write_bytes(content if name == path.name else whole)
    faces = load_tfds("faces", data_dir=path.parent / "data")
    for row in range(min(len(faces.images), 4)):
        faces.images[row]


def _of_faces(name: str, mutations: tuple = (mutated,)) -> Reader:
    return Reader(name, lambda: [_prepared()[name]], _faces, mutations)


# Galleries ----------------------------------------------------------------------------------------


@functools.cache
def _gallery() -> dict[str, bytes]:
    """The files of a gallery of five faces, one of them deleted."""
    from ida_jax.rescoring.gallery_file import GalleryFile
    from ida_jax.tables.score_origin import ScoreOrigin

    with tempfile.TemporaryDirectory() as folder:
        new = GalleryFile.new(
            folder,
            origin=ScoreOrigin("ida_r", settings={"k": 3, "tau": 1.0}),
            rule="dao",
            constants=np.float32([1]),
            width=unit(5).shape[1],
            dtype="float32",
        )
        new.append(list("abcdé"), [(unit(5), np.zeros((5, 1), np.float32))]).delete(["b"])
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _of_gallery(name: str, mutations: tuple) -> Reader:
    """A file of a gallery, read with the others as they were."""

    def read(path: Path) -> None:
        from ida_jax.rescoring.gallery import Gallery

        for other, content in _gallery().items():
            if other != name:
                (path.parent / other).write_bytes(content)
        gallery = Gallery.load(path.parent)
        np.asarray(gallery.embeddings)
        gallery.names_of(np.arange(len(gallery.embeddings)))

    return Reader(name, lambda: [_gallery()[name]], read, mutations)


def _listed(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """A gallery's list with other values, whose checksum is that of them."""
    from ida_jax.common.parts import key_of

    try:
        record = json.loads(json_values(seed, other, rng))
        record.pop("checksum", None)
        record["checksum"] = key_of(record, digits=32)
        return json.dumps(record).encode()
    except Exception:  # no JSON any more, or no object
        return mutated(seed, other, rng)


READERS = {
    "gallery_list": _of_gallery("gallery.json", (mutated, _listed)),
    "gallery_segment": _of_gallery("segment-000001.safetensors", ARTEFACT),
    "gallery_deleted": _of_gallery("deleted-000002.safetensors", ARTEFACT),
    "metrics": Reader("metrics.jsonl", lambda: [_METRICS], _metrics, JSON),
    "results": Reader("results.json", lambda: [_RESULTS], _results, JSON),
    "config": Reader("config.json", lambda: [json.dumps(_CONFIG).encode()], _config, JSON),
    "checkpoint": Reader(
        "checksums.json", lambda: [json.dumps({"a": [3, 891568578]}).encode()], _checksums, JSON
    ),
    "part": Reader("p.npy", _sealed, _part, PART),
    "lock": Reader(
        ".out.npy.lock",
        lambda: [json.dumps({"pid": 1, "host": socket.gethostname(), "since": 1.5}).encode()],
        _lock,
        JSON,
    ),
    "shard_report": Reader(
        "x.array_record-00000-of-00001.json",
        lambda: [b'{"records": 3, "bytes": 90, "converted": 0, "corrupt": [[2, "x is no JPEG"]]}'],
        _shard_report,
        JSON,
    ),
    "tfds_info": _of_faces("dataset_info.json", JSON),
    "tfds_features": _of_faces("features.json", JSON),
    "tfds_identities": _of_faces("label.labels.txt"),
    "tfds_shard": _of_faces("faces-train.array_record-00000-of-00001"),
    "tfds_labels": _of_faces("train_labels.safetensors", ARTEFACT),
}
