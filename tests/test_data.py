import io
import sys
import tarfile

import cv2
import numpy as np
import pytest

from ida_jax import prepare
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.lfw import load_lfw
from ida_jax.data.pipeline import training_batches
from ida_jax.data.tfds_faces import load_tfds
from ida_jax.errors import UserError


def _dataset(n=23, classes=5):
    # Column 0 differs from column 1, so that a mirrored image is seen.
    images = np.zeros((n, 4, 2, 3), np.uint8)
    images[:, :, 0] = np.arange(n)[:, None, None]
    images[:, :, 1] = 200
    labels = (np.arange(n) % classes).astype(np.int32)
    return FaceDataset(images, labels, tuple(map(str, range(classes))))


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def _numbers(batch):
    return np.minimum(batch.images[:, 0, 0, 0], batch.images[:, 0, 1, 0])


def test_epochs_are_shuffled_and_complete():
    data = _dataset()
    batches = _take(training_batches(data, batch_size=5, seed=0), 14)
    seen = np.concatenate([_numbers(b) for b in batches])
    for epoch in range(3):
        assert sorted(seen[23 * epoch : 23 * (epoch + 1)]) == list(range(23))
    assert not np.array_equal(seen[:23], seen[23:46])
    labels = np.concatenate([b.labels for b in batches])
    np.testing.assert_array_equal(labels, seen % 5)


@pytest.mark.parametrize("first_step", [0, 1, 6])
def test_a_resumed_run_sees_the_same_batches(first_step):
    data = _dataset()
    whole = _take(training_batches(data, batch_size=5, seed=3), 9)[first_step:]
    resumed = _take(training_batches(data, batch_size=5, seed=3, first_step=first_step), len(whole))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_about_half_the_images_are_mirrored():
    batches = _take(training_batches(_dataset(), batch_size=50, seed=0), 8)
    mirrored = np.concatenate([b.images[:, 0, 0, 0] == 200 for b in batches])
    assert 0.4 < mirrored.mean() < 0.6


def test_labels_outside_the_classes():
    data = _dataset()
    with pytest.raises(UserError, match="label 4 of row 4 is outside the 4 classes"):
        next(training_batches(data._replace(identities=data.identities[:4]), batch_size=2, seed=0))
    with pytest.raises(UserError, match="no faces"):
        next(training_batches(data._replace(labels=data.labels[:0]), batch_size=2, seed=0))


def _jpeg(value):
    """Red by `value`, and no other colour."""
    bgr = np.zeros((8, 8, 3), np.uint8)
    bgr[:, :, 2] = value
    return cv2.imencode(".jpg", bgr)[1].tobytes()


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
            data = encoded or _jpeg(value)
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
    with pytest.raises(UserError, match="not a whole tar file"):
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


def _write_folder(root):
    for i in range(7):
        path = root / f"person_{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(30 * i))


@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets' own, while it writes
def test_a_folder_becomes_a_tfds_data_set(tmp_path, capsys):
    _write_folder(tmp_path / "faces")
    argv = [
        "prepare", "folder", f"--from={tmp_path / 'faces'}", "--name=ms1m",
        f"--data_dir={tmp_path}",
    ]  # fmt: skip
    prepare.main(argv)
    assert "7 images of 3 identities" in capsys.readouterr().out
    data = load_tfds("ms1m", data_dir=tmp_path)
    assert data.identities == ("person_0", "person_1", "person_2")
    assert len(data.images) == len(data.labels) == 7
    seen = set()
    for image, label in zip(data.images, data.labels, strict=True):
        i = round(_redness(image) / 30)
        seen.add(i)
        assert label == i % 3
    assert seen == set(range(7))
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match="no split 'test': it has train"):
        load_tfds("ms1m", data_dir=tmp_path, split="test")
    with pytest.raises(UserError, match="is there already"):
        prepare.main(argv)


def test_prepare_mistakes(tmp_path):
    (tmp_path / "empty").mkdir()
    for argv, message in (
        (["folder"], "expected folder --from"),
        (["recordio", "--from=x", "--name=x"], "expected folder --from"),
        (["folder", "--from=absent", "--name=x"], "no folder at absent"),
        (["folder", f"--from={tmp_path / 'empty'}", "--name=x"], "no JPEG at"),
        (["folder", "--fro=x"], "Unknown command line flag 'fro'"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.main(["prepare", *argv])


def test_an_absent_tfds_data_set(tmp_path):
    with pytest.raises(UserError, match=r"ms1m is not at .*ida_jax.prepare folder"):
        load_tfds("ms1m", data_dir=tmp_path)
