import io
import pickle
import shutil
import tarfile

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from face_sources import encoded_faces, jpeg

from ida_jax.common.errors import UserError
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.data.sources.shards import serialize
from ida_jax.data.sources.tfds_writer import write_faces
from ida_jax.data.tfds_faces import TfdsImages, load_pairs, load_tfds


def _redness(image):
    """The red channel's mean; a reader that mixes up the channels gives another."""
    assert image.shape == (8, 8, 3)
    assert image[:, :, 1:].mean() < 8
    return float(image[:, :, 0].mean())


def _write_lfw(root, encoded=None):
    root.mkdir()
    names = {"Bo_A/Bo_A_0002": 80, "Bo_A/Bo_A_0001": 40, "Cy/Cy_0001": 120, "Al/Al_0001": 160}
    with tarfile.open(root / "lfw_112.tar", "w") as archive:
        for name, value in names.items():
            data = encoded or jpeg(value)
            info = tarfile.TarInfo(f"./{name}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (root / "split.csv").write_text(
        "identity,role,images\r\nBo_A,anchor,2\r\nCy,eval,1\r\nAl,eval,1\r\n"
    )
    return names


def test_lfw_from_a_tar(tmp_path):
    names = _write_lfw(tmp_path / "lfw")
    data = load_lfw(tmp_path / "lfw")
    assert data.names == tuple(sorted(names))
    assert data.identities == ("Al", "Bo_A", "Cy")
    assert [data.identities[label] for label in data.labels] == ["Al", "Bo_A", "Bo_A", "Cy"]
    for name, image in zip(data.names, data.images, strict=True):
        assert abs(_redness(image) - names[name]) <= 4
    assert load_lfw(tmp_path / "lfw", role="eval").identities == ("Al", "Cy")
    first = load_lfw(tmp_path / "lfw", role="anchor", images_per_identity=1)
    assert first.names == ("Bo_A/Bo_A_0001",)


def test_lfw_from_a_folder(tmp_path):
    _write_lfw(tmp_path / "lfw")
    with tarfile.open(tmp_path / "lfw" / "lfw_112.tar") as archive:
        archive.extractall(tmp_path / "lfw" / "lfw_112", filter="data")
    from_tar = load_lfw(tmp_path / "lfw")
    (tmp_path / "lfw" / "lfw_112.tar").unlink()
    from_folder = load_lfw(tmp_path / "lfw")
    assert from_folder.names == from_tar.names
    np.testing.assert_array_equal(from_folder.images[2], from_tar.images[2])


def test_lfw_mistakes(tmp_path):
    with pytest.raises(UserError, match="no LFW crops at"):
        load_lfw(tmp_path)
    _write_lfw(tmp_path / "lfw")
    with pytest.raises(UserError, match="role 'test' is not in"):
        load_lfw(tmp_path / "lfw", role="test")
    (tmp_path / "lfw" / "split.csv").unlink()
    with pytest.raises(UserError, match=r"no split at .*split.csv"):
        load_lfw(tmp_path / "lfw", role="eval")
    (tmp_path / "lfw" / "lfw_112.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"not a whole \.tar file"):
        load_lfw(tmp_path / "lfw")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    _write_lfw(tmp_path / "lfw", encoded=b"no jpeg")
    data = load_lfw(tmp_path / "lfw")
    with pytest.raises(UserError, match="Bo_A/Bo_A_0001 cannot be decoded"):
        data.images[1]


def test_lfw_is_read_whole(shared_data):
    data = load_lfw(shared_data / "lfw")
    assert len(data.labels) == 13233
    assert data.num_identities == 5749
    names = (shared_data / "lfw" / "names.txt").read_text().split()
    assert list(data.names) == sorted(names)


def test_an_absent_tfds_data_set(tmp_path):
    with pytest.raises(UserError, match=r"ms1m is not at .*ida-jax prepare folder"):
        load_tfds("ms1m", data_dir=tmp_path)


def _write_tfds(root, name, values, labels):
    return write_faces(name, encoded_faces(map(jpeg, values), labels), data_dir=root).path


def test_images_are_those_of_the_tfds_decoder(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.imencode(".jpg", rng.integers(0, 256, (9, 7, 3), np.uint8))[1].tobytes()
    path = write_faces("colours", encoded_faces([image], [0]), data_dir=tmp_path).path
    import tensorflow_datasets as tfds

    expected = tfds.builder_from_directory(path).as_data_source(split="train")[0]["image"]
    images = load_tfds("colours", data_dir=tmp_path).images
    assert images[0].shape == (9, 7, 3)
    # Decoders may round chroma differently; swapped channels differ by far more.
    np.testing.assert_allclose(images[0].astype(int), expected.astype(int), atol=3)
    assert np.abs(images[0][:, :, ::-1].astype(int) - expected.astype(int)).max() > 50
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[0], images[0])
    with pytest.raises(IndexError):
        images[1]


def test_labels_are_kept_beside_the_records(tmp_path, monkeypatch):
    path = _write_tfds(tmp_path, "one", [0, 40, 80, 120, 160], [0, 1, 2, 1, 0])
    expected = load_tfds("one", data_dir=tmp_path).labels
    assert sorted(expected) == [0, 0, 1, 1, 2]
    assert expected.dtype == np.int32
    kept = path / "train_labels.safetensors"
    reads = []
    features = TfdsImages.features
    monkeypatch.setattr(
        TfdsImages, "features", lambda self, row: reads.append(row) or features(self, row)
    )
    # Only the sample is read where labels are kept: a few rows, over and over in so small a set.
    np.testing.assert_array_equal(load_tfds("one", data_dir=tmp_path).labels, expected)
    assert len(reads) == 16
    # Labels of another set, damaged ones and none: the records decide.
    other = _write_tfds(tmp_path, "two", [0, 40, 80, 120, 160], [2, 0, 1, 1, 2])
    others = load_tfds("two", data_dir=tmp_path).labels
    assert not np.array_equal(others, expected)
    for spoil in (
        lambda: shutil.copy(other / kept.name, kept),
        lambda: kept.write_bytes(b"torn"),
        lambda: (kept.unlink(), kept.mkdir()),  # and nothing can be kept
    ):
        spoil()
        np.testing.assert_array_equal(load_tfds("one", data_dir=tmp_path).labels, expected)


def _overwrite(file, images, labels):
    """Puts other records into a data set's only shard."""
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        writer.write(serialize({"image": image, "label": label}))
    writer.close()


def test_damaged_records_are_named(tmp_path):
    path = _write_tfds(tmp_path, "faces", [40, 80], [0, 1])
    shard = next(path.glob("*.array_record-*"))
    for content in (b"no jpeg", b""):
        _overwrite(shard, [jpeg(40), content], [0, 1])
        images = load_tfds("faces", data_dir=tmp_path).images
        assert images[0].shape == (8, 8, 3)
        with pytest.raises(UserError, match="image of row 1 cannot be decoded"):
            images[1]
    file = tmp_path / "torn"
    file.write_bytes(b"no records")
    with pytest.raises(UserError, match=r"row 3 cannot be read from .*torn"):
        TfdsImages([str(file)], [7])[3]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"splits": 3}'])
def test_a_damaged_description_is_one_line(tmp_path, name, content):
    path = _write_tfds(tmp_path, "faces", [40, 80], [0, 1])
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"1\.0\.0 .*") as raised:
        load_tfds("faces", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_absent_and_other_pairs(tmp_path):
    with pytest.raises(UserError, match=r"pairs is not at .*ida-jax prepare bin --from=X.bin"):
        load_pairs("pairs", data_dir=tmp_path)
    _write_tfds(tmp_path, "faces", [40, 80], [0, 1])
    with pytest.raises(UserError, match="lacks the feature first: it has image, label"):
        load_pairs("faces", data_dir=tmp_path, split="train")
    with pytest.raises(UserError, match="no split 'test': it has train"):
        load_pairs("faces", data_dir=tmp_path)
