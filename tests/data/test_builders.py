import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from face_sources import encoded_faces, jpeg, write_recordio

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_tensors, save_tensors
from ida_jax.data import builders
from ida_jax.data.sources import tfds_writer
from ida_jax.data.sources.shards import Example, write_shards
from ida_jax.data.sources.tfds_writer import write_faces, write_pairs
from ida_jax.data.sources.verification_bin import VerificationBin
from ida_jax.data.tfds_faces import TfdsImages, load_pairs, load_tfds

IMAGES = [jpeg(25 * i) for i in range(8)]
LABELS = [0, 0, 1, 1, 1, 2, 2, 0]


def _stored(path):
    """(image's bytes, label) of every record."""
    info = tfds.builder_from_directory(path).info
    split = info.splits["train"]
    rows = TfdsImages(tuple(map(str, split.filepaths)), tuple(split.shard_lengths))
    features = [rows.features(row) for row in range(len(rows))]
    return [
        (row["image"].bytes_list.value[0], row["label"].int64_list.value[0]) for row in features
    ]


def test_images_keep_their_bytes_and_order(tmp_path):
    written = write_faces("faces", encoded_faces(IMAGES, LABELS), data_dir=tmp_path)
    assert written.path == tmp_path / "faces" / "1.0.0"
    assert (written.records, written.converted, written.skipped, written.notes) == (8, 0, (), ())
    assert _stored(written.path) == list(zip(IMAGES, LABELS, strict=True))
    data = load_tfds("faces", data_dir=tmp_path)
    assert data.labels.tolist() == LABELS
    assert data.identities == ("a", "b", "c")
    assert sorted(path.name for path in written.path.iterdir()) == [
        "dataset_info.json", "faces-train.array_record-00000-of-00001", "features.json",
        "label.labels.txt", "train_labels.safetensors",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["faces", "1.0.0"]


def test_labels_are_kept_for_the_records_that_are_there(tmp_path, monkeypatch):
    images = [IMAGES[0], b"no image", *IMAGES[2:]]
    write_faces("faces", encoded_faces(images, LABELS), data_dir=tmp_path, skip_corrupt=True)
    reads = []
    features = TfdsImages.features
    monkeypatch.setattr(
        TfdsImages, "features", lambda self, row: reads.append(row) or features(self, row)
    )
    assert load_tfds("faces", data_dir=tmp_path).labels.tolist() == LABELS[:1] + LABELS[2:]
    assert len(reads) == 16  # a sample that is compared, and no more


@pytest.mark.parametrize(
    "kept",
    [
        {}, {"labels": np.int32(3)}, {"labels": np.zeros((8, 2), np.int32)},
        {"labels": np.int32(LABELS[:7])}, {"other": np.int32(LABELS)},
        {"labels": np.int32(LABELS[::-1])},
    ],
)  # fmt: skip
def test_kept_labels_of_another_form_are_read_again(tmp_path, kept):
    path = write_faces("faces", encoded_faces(IMAGES, LABELS), data_dir=tmp_path).path
    own, _ = load_tensors(path / "train_labels.safetensors", kind="labels")
    tensors = {name: np.array(value) for name, value in own.items() if name != "labels"} | kept
    save_tensors(path / "train_labels.safetensors", tensors, kind="labels", metadata={})
    assert load_tfds("faces", data_dir=tmp_path).labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("dataset_info.json", '"8"', '"-8"', "promises -8 records|cannot be read"),
        ("dataset_info.json", '"8"', '"99999999999999"', "promises 99,999,999,999,999 records"),
        ("dataset_info.json", "{DATASET}", "../../x", "no shard of"),
        ("dataset_info.json", "{DATASET}", "x" * 300, "no shard of"),
        ("dataset_info.json", "{DATASET}", "{WHAT}", "cannot be read"),
        ("dataset_info.json", "array_record", "tfrecord", "tfrecord"),
        ("dataset_info.json", "{", "", "cannot be read"),
        ("features.json", "{", "", "cannot be read"),
    ],
)
def test_descriptions_of_another_form_are_one_line(tmp_path, name, old, new, said):
    path = write_faces("faces", encoded_faces(IMAGES, LABELS), data_dir=tmp_path).path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as caught:
        load_tfds("faces", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "report",
    [
        "", "[]", "null", "{}", '{"records": 3}', "[" * 5000,
        '{"records": "x", "bytes": 1, "converted": 0, "corrupt": []}',
        '{"records": 1, "bytes": Infinity, "converted": 0, "corrupt": []}',
        '{"records": 1, "bytes": 1, "converted": 0, "corrupt": [3]}',
        '{"records": 1, "bytes": 1, "converted": 0, "corrupt": [["x", "y"]]}',
    ],
)  # fmt: skip
def test_a_shard_with_a_damaged_report_is_written_again(tmp_path, report):
    def write():
        return write_shards(tmp_path, "x", lambda row: Example({"label": row}), rows=3)

    whole = write()
    assert [shard.records for shard in whole] == [3]
    (tmp_path / "x-00000-of-00001").write_bytes(b"")
    (tmp_path / "x-00000-of-00001.json").write_text(report)
    assert write() == whole
    assert (tmp_path / "x-00000-of-00001").stat().st_size


@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets' own, while it writes
def test_tfds_writes_the_same_records(tmp_path):
    source = write_recordio(tmp_path / "source", IMAGES, LABELS)
    manual = tfds.download.DownloadConfig(manual_dir=source)
    theirs = builders.Ms1m(data_dir=tmp_path / "theirs", file_format="array_record")
    tfds.core.GeneratorBasedBuilder.download_and_prepare(theirs, download_config=manual)
    ours = builders.Ms1m(data_dir=tmp_path / "ours")
    ours.download_and_prepare(download_config=manual)
    assert sorted(_stored(theirs.data_path)) == sorted(_stored(ours.data_path))
    assert len(_stored(ours.data_path)) == 8
    assert ours.info.features["label"].names == theirs.info.features["label"].names
    assert ours.info.splits["train"].num_bytes == theirs.info.splits["train"].num_bytes
    read = load_tfds("ms1m", data_dir=tmp_path / "theirs")
    assert sorted(read.labels.tolist()) == sorted(LABELS)


@pytest.mark.parametrize("name", ["ms1m", "ms1mv3", "casia_webface", "webface"])
def test_data_source_prepares_recordio(tmp_path, name):
    source = write_recordio(tmp_path / "source", IMAGES, LABELS)
    kwargs = {"download_config": tfds.download.DownloadConfig(manual_dir=source)}
    for _ in range(2):  # then what is there is read, and the source no longer needed
        faces = tfds.data_source(
            name, split="train", data_dir=tmp_path / "d", download_and_prepare_kwargs=kwargs
        )
        assert [face["label"] for face in faces] == LABELS
        kwargs = {}
    ours = load_tfds(name, data_dir=tmp_path / "d").images
    for face, image in zip(faces, ours, strict=True):
        np.testing.assert_allclose(face["image"].astype(int), image.astype(int), atol=3)
    assert "tensorflow" not in sys.modules


def test_data_source_reads_what_prepare_wrote(tmp_path, capsys):
    for name in ("ms1m", "another_name"):
        write_faces(name, encoded_faces(IMAGES, LABELS), data_dir=tmp_path)
        faces = tfds.data_source(name, split="train", data_dir=tmp_path)
        assert [face["label"] for face in faces] == LABELS
    assert tfds.builder("ms1m", data_dir=tmp_path).info.features["label"].names == ["a", "b", "c"]


def test_face_folder_builder(tmp_path):
    for number, label in enumerate(LABELS):
        path = tmp_path / "source" / f"person_{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[number])
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "source")
    faces = tfds.data_source(
        "face_folder",
        split="train",
        data_dir=tmp_path / "d",
        download_and_prepare_kwargs={"download_config": manual},
    )
    assert [face["label"] for face in faces] == sorted(LABELS)


def test_a_builder_without_a_source(tmp_path):
    with pytest.raises(UserError, match=r"ms1m is not at .*manual_dir") as raised:
        tfds.data_source("ms1m", split="train", data_dir=tmp_path)
    assert "\n" not in str(raised.value)
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path)
    with pytest.raises(UserError, match=r"train\.rec"):
        builders.Ms1m(data_dir=tmp_path).download_and_prepare(download_config=manual)
    assert not list(tmp_path.iterdir())


def test_counts_of_known_sets_are_told(tmp_path, monkeypatch):
    faces = encoded_faces(IMAGES, LABELS)._replace(notes=("the source's own note",))
    told = write_faces("casia_webface", faces, data_dir=tmp_path).notes
    assert told[0] == "the source's own note"
    assert "8 images of 3 identities, but casia_webface has 490,623 images of 10,572" in told[1]
    monkeypatch.setitem(tfds_writer.EXPECTED, "ms1m", ((7, 3), (8, 3)))
    assert write_faces("ms1m", faces, data_dir=tmp_path).notes == told[:1]


def test_corrupt_images_are_listed_and_nothing_is_written(tmp_path):
    for corrupt in (1, 10, 12):
        images = [b"no image"] * corrupt + IMAGES[:1]
        faces = encoded_faces(images, [0] * len(images))
        with pytest.raises(UserError, match=f"^{corrupt} of {corrupt + 1} are corrupt") as raised:
            write_faces("faces", faces, data_dir=tmp_path)
        assert str(raised.value).count("is neither JPEG nor PNG") == min(corrupt, 10)
        assert "row 0 is neither" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert not list(tmp_path.iterdir())


def test_corrupt_images_are_skipped_on_request(tmp_path):
    class Source(list):
        def __getitem__(self, row):
            if row == 6:
                raise UserError("train.rec, byte 96: no record")
            return super().__getitem__(row)

    images = Source(IMAGES)
    images[2] = IMAGES[2][:-20]
    faces = encoded_faces(IMAGES, LABELS)._replace(images=images)
    written = write_faces("faces", faces, data_dir=tmp_path, skip_corrupt=True)
    assert written.records == 6
    assert [label for _, label in _stored(written.path)] == [0, 0, 1, 1, 2, 0]
    listed = (tmp_path / "faces.skipped.txt").read_text().splitlines()
    assert tuple(listed) == written.skipped
    assert listed[0].startswith("row 2 is truncated")
    assert listed[1:] == ["train.rec, byte 96: no record"]
    nothing = encoded_faces([b"no image"], [0])
    with pytest.raises(UserError, match="1 of 1 are corrupt"):
        write_faces("none", nothing, data_dir=tmp_path, skip_corrupt=True)


def test_grey_images_and_sizes(tmp_path):
    faces = encoded_faces([IMAGES[0], jpeg(90, grey=True)], [0, 1])
    assert write_faces("faces", faces, data_dir=tmp_path, size=8).converted == 1
    grey = load_tfds("faces", data_dir=tmp_path).images[1]
    assert grey.shape == (8, 8, 3)
    assert abs(grey.astype(int) - 90).max() < 4
    with pytest.raises(UserError, match="row 0 is 8×8 pixels: expected 9×9"):
        write_faces("others", faces, data_dir=tmp_path, size=9)


KILLED = """
import os, signal, sys
from functools import partial
sys.path.insert(0, sys.argv[1])
from face_sources import encoded_faces, jpeg
from ida_jax.data.sources import tfds_writer
tfds_writer.write_shards = partial(tfds_writer.write_shards, rows_per_shard=20)
class Source(list):
    reads = 0
    def __getitem__(self, row):
        Source.reads += 1
        if Source.reads > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)
faces = encoded_faces([], [0] * 60)._replace(images=Source(jpeg(i) for i in range(60)))
tfds_writer.write_faces("faces", faces, data_dir=sys.argv[2])
"""


def test_a_killed_preparation_goes_on(tmp_path):
    def prepare(data_dir, reads):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(data_dir)]
        return subprocess.run([*command, str(reads)], env=os.environ, check=False).returncode

    assert prepare(tmp_path / "whole", 1000) == 0
    # 16 are looked at to know the source again, 20 go into each shard.
    assert prepare(tmp_path / "killed", 16 + 20 + 25) == -signal.SIGKILL
    with pytest.raises(UserError, match="faces is not at"):
        load_tfds("faces", data_dir=tmp_path / "killed")
    folder = tmp_path / "killed" / "faces" / "incomplete"
    kept = folder / "faces-train.array_record-00000-of-00003"
    before = kept.stat()
    assert len(list(folder.glob("*.array_record-*.json"))) == 2
    # Two shards are there and need no reading: one read more would kill it again.
    assert prepare(tmp_path / "killed", 16 + 20) == 0
    kept = tmp_path / "killed" / "faces" / "1.0.0" / kept.name
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for path in (tmp_path / "whole" / "faces" / "1.0.0").iterdir():
        assert path.read_bytes() == (kept.parent / path.name).read_bytes(), path.name
    # What the killed process was writing is no part of the data set.
    assert {path.name for path in kept.parent.iterdir()} == {
        path.name for path in (tmp_path / "whole" / "faces" / "1.0.0").iterdir()
    }


def test_shards_of_another_source_are_not_gone_on_with(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tfds_writer, "_describe", stop)
        with pytest.raises(KeyboardInterrupt):
            write_faces("faces", encoded_faces(IMAGES, LABELS), data_dir=tmp_path)
    others = encoded_faces(IMAGES[::-1], LABELS)
    assert _stored(write_faces("faces", others, data_dir=tmp_path).path) == list(
        zip(IMAGES[::-1], LABELS, strict=True)
    )


def test_names_that_cannot_be(tmp_path):
    faces = encoded_faces(IMAGES, LABELS)
    for name in ("MS1M", "ms-1m", "1m", "", "../up", "é"):
        with pytest.raises(UserError, match="is not a data set's name"):
            write_faces(name, faces, data_dir=tmp_path)
    for identity in (" a", "a\nb", "", "a\r"):
        unfit = faces._replace(identities=(identity, "b", "c"))
        with pytest.raises(UserError, match="is not a name"):
            write_faces("faces", unfit, data_dir=tmp_path)
    with pytest.raises(UserError, match="holds no image"):
        write_faces("faces", encoded_faces([], [0])._replace(labels=[]), data_dir=tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_faces("faces", faces, data_dir=file)
    assert list(tmp_path.iterdir()) == [file]
    write_faces("faces", faces, data_dir=tmp_path)
    with pytest.raises(UserError, match="already exists"):
        write_faces("faces", faces, data_dir=tmp_path)


def test_pairs(tmp_path):
    same = np.array([True, False, False, True])
    pairs = VerificationBin(IMAGES, same, "lfw.bin, image {}".format)
    written = write_pairs("lfw_pairs", pairs, data_dir=tmp_path)
    assert written.records == 4
    found = load_pairs("lfw_pairs", data_dir=tmp_path)
    np.testing.assert_array_equal(found.same, same)
    assert found.same.dtype == bool
    assert len(found.images) == 8
    redness = [image[:, :, 0].mean() for image in found.images]
    np.testing.assert_allclose(redness, 25 * np.arange(8), atol=4)
    with pytest.raises(IndexError):
        found.images[8]
    theirs = tfds.data_source("lfw_pairs", split="test", data_dir=tmp_path)
    for row, pair in enumerate(theirs):
        assert pair["same"] == same[row]
        np.testing.assert_allclose(
            pair["second"].astype(int), found.images[2 * row + 1].astype(int), atol=3
        )
    with pytest.raises(UserError, match="lacks the feature image: it has"):
        load_tfds("lfw_pairs", data_dir=tmp_path, split="test")


def test_a_corrupt_pair(tmp_path):
    pairs = VerificationBin([*IMAGES[:3], b""], np.array([True, False]), "lfw.bin, image {}".format)
    with pytest.raises(UserError, match=r"1 of 2 are corrupt.*lfw\.bin, image 3 is empty"):
        write_pairs("lfw_pairs", pairs, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())
