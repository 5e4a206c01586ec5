import io
import tarfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.alignment import ARCFACE_POINTS, align, similarity_transform
from ida_jax.data.labelled_pairs import read_calfw_pairs, read_lfw_pairs
from ida_jax.data.landmarks import read_landmarks
from ida_jax.data.lfw_crops import load_lfw, read_split
from ida_jax.data.sources.image_files import open_images
from ida_jax.data.sources.lfw_source import prepare_lfw

NAMES = ("Al_B/Al_B_0001", "Al_B/Al_B_0002", "Cy/Cy_0001", "Cy/Cy_0002", "D-E/D-E_0001")
PAIRS = "2\t1\nAl_B\t1\t2\nAl_B\t1\tCy\t1\nCy\t1\t2\nD-E\t1\tCy\t2\n"
CALFW_PAIRS = "Al_B_0001.jpg 1\nAl_B_0002.jpg 1\nCy_0001.jpg 2\nCy_0002.jpg 2\n" + 2 * (
    "Al_B_0001.jpg 0\nCy_0001.jpg 0\n"
)


def _picture(seed, size):
    """Smooth, so that little is lost by JPEG and by bilinear interpolation."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def _points(seed):
    rng = np.random.default_rng(seed)
    points = ARCFACE_POINTS * rng.uniform(0.7, 1.3) + 60 + rng.normal(0, 3, (5, 2))
    return points.round(1)


def _write(root, *, size=250, suffix=".jpg", top=""):
    """Sources of every kind: folder, pairs.txt, points.txt, split.csv."""
    root.mkdir()
    lines = []
    for seed, name in enumerate(NAMES):
        path = root / "images" / top / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), _picture(seed, size), [cv2.IMWRITE_JPEG_QUALITY, 98])
        lines.append("\t".join([f"{name}.jpg", *map(str, _points(seed).ravel())]))
    (root / "points.txt").write_text("\r\n".join(lines) + "\r\n")
    (root / "pairs.txt").write_text(PAIRS)
    (root / "split.csv").write_text("identity,role,images\r\nAl_B,anchor,2\r\nCy,eval,2\r\n")
    return root


def _pack(folder, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "lfw")
    return path


def _nothing_left(data_dir):
    return not list(data_dir.rglob("*"))


@pytest.mark.parametrize("kind", ["folder", "tar", "tgz"])
def test_originals_are_aligned(tmp_path, kind):
    raw = _write(tmp_path / "raw", top="some/folders")
    source = raw / "images"
    if kind != "folder":
        source = _pack(source, raw / f"lfw.{kind}", "w:gz" if kind == "tgz" else "w")
    done = prepare_lfw(
        source, landmarks=raw / "points.txt", pairs=raw / "pairs.txt", split=raw / "split.csv",
        data_dir=tmp_path / "data",
    )  # fmt: skip
    assert done.folder == tmp_path / "data" / "lfw"
    assert (done.images, done.pairs) == (5, 4)
    assert done.notes == ("5 images were found, the whole LFW has 13,233",)
    assert {path.name for path in done.folder.iterdir()} == {
        "lfw_112.tar",
        "pairs.txt",
        "split.csv",
    }
    assert (done.folder / "pairs.txt").read_text() == PAIRS
    found = load_lfw(done.folder)
    assert found.names == NAMES
    assert found.identities == ("Al_B", "Cy", "D-E")
    assert len(read_lfw_pairs(done.folder / "pairs.txt", found.names).same) == 4
    assert load_lfw(done.folder, role="anchor").names == NAMES[:2]
    for seed, crop in enumerate(found.images):
        expected = align(cv2.cvtColor(_picture(seed, 250), cv2.COLOR_BGR2RGB), _points(seed))
        assert crop.shape == (112, 112, 3)
        assert np.abs(crop.astype(int) - expected.astype(int)).mean() < 2.5
    with pytest.raises(UserError, match=r"lfw_112.tar already exists: remove it"):
        prepare_lfw(source, pairs=raw / "pairs.txt", data_dir=tmp_path / "data")


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".png"])
def test_crops_keep_their_bytes(tmp_path, suffix):
    raw = _write(tmp_path / "raw", size=112, suffix=suffix)
    (raw / "images" / "Cy" / f"._Cy_0001{suffix}").write_bytes(b"of a Mac")
    done = prepare_lfw(raw / "images", pairs=raw / "pairs.txt", data_dir=tmp_path / "data")
    assert done.images == 5
    written = open_images(done.folder / "lfw_112.tar")
    assert written.names == tuple(name + suffix.lower() for name in NAMES)
    for row, name in enumerate(NAMES):
        assert written.encoded(row) == (raw / "images" / (name + suffix)).read_bytes()
    assert load_lfw(done.folder).names == NAMES
    assert not (done.folder / "split.csv").exists()


def test_grey_crops_become_rgb(tmp_path):
    raw = _write(tmp_path / "raw", size=112)
    grey = cv2.cvtColor(_picture(0, 112), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(raw / "images" / f"{NAMES[0]}.jpg"), grey)
    done = prepare_lfw(raw / "images", pairs=raw / "pairs.txt", data_dir=tmp_path / "data")
    encoded = np.frombuffer(open_images(done.folder / "lfw_112.tar").encoded(0), np.uint8)
    assert cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).shape == (112, 112, 3)


def test_calfw(tmp_path):
    raw = _write(tmp_path / "raw")
    (raw / "pairs.txt").write_text(CALFW_PAIRS)
    done = prepare_lfw(
        raw / "images", landmarks=raw / "points.txt", pairs=raw / "pairs.txt",
        data_dir=tmp_path / "data", name="calfw",
    )  # fmt: skip
    images = open_images(done.folder / "calfw_112.tar")
    assert images.names == tuple(f"{name.split('/')[1]}.jpg" for name in NAMES)
    listed = read_calfw_pairs(done.folder / "pairs_CALFW.txt", images.names)
    assert done.pairs == len(listed.same) == 4


def test_mistakes_are_named_and_nothing_is_written(tmp_path):
    raw, data = _write(tmp_path / "raw"), tmp_path / "data"
    data.mkdir()
    images, points = raw / "images", raw / "points.txt"

    def refused(message, *, source=images, pairs=raw / "pairs.txt", **options):
        with pytest.raises(UserError, match=message) as caught:
            prepare_lfw(source, pairs=pairs, data_dir=data, **options)
        assert "\n" not in str(caught.value)
        assert _nothing_left(data)

    def text(content):
        (raw / "list.txt").write_text(content)
        return raw / "list.txt"

    lines = points.read_text().splitlines()
    refused("data set 'cplfw' is unknown: choose lfw or calfw", name="cplfw")
    refused("a split is for lfw", name="calfw", split=raw / "split.csv")
    refused("Al_B_0001.jpg is 250×250: without landmarks.*--landmarks=FILE")
    refused("no images at", source=raw / "absent")
    refused("no list of pairs at", pairs=raw / "absent")
    refused("no landmarks at", landmarks=raw / "absent")
    refused(r"list.txt:5: D-E/D-E_0002 is not among", pairs=text(PAIRS.replace("D-E\t1", "D-E\t2")))
    refused("'Fay' has no image", split=text("identity,role\nFay,eval\n"), landmarks=points)
    refused(r"'Fay\\nB' has", split=text('identity,role\n"Fay\nB",eval\n'), landmarks=points)
    few = "\n".join(lines[:3])
    refused("no points for 2 of 5 images: Cy/Cy_0002, D-E/D-E_0001; add", landmarks=text(few))
    flat = "\n".join([lines[0], "Al_B_0002.jpg" + 10 * " 7", *lines[2:]])
    refused("list.txt, line 2: the five points give no alignment", landmarks=text(flat))
    refused("two lines for 'Cy_0001'", landmarks=text("\n".join([*lines, f"x/{lines[2]}"])))
    good = (images / "Cy" / "Cy_0002.jpg").read_bytes()
    (images / "Cy" / "Cy_0002.jpg").write_bytes(good[: len(good) // 2])
    refused("Cy_0002.jpg is truncated", landmarks=points)
    (images / "Cy" / "Cy_0002.jpg").write_bytes(good)
    (images / "copy").mkdir()
    (images / "copy" / "Cy_0001.jpg").write_bytes(good)
    refused("copy/Cy_0001.jpg: .*images/Cy/Cy_0001.jpg has the same name", landmarks=points)
    (images / "copy" / "Cy_0001.jpg").rename(images / "copy" / "map.jpg")
    refused("map.jpg: expected images named NAME_0001.jpg", landmarks=points)


@pytest.mark.parametrize(("blocked", "split"), [("pairs.txt", None), ("split.csv", "split.csv")])
def test_what_fails_late_leaves_the_folder_as_it_was(tmp_path, blocked, split):
    raw = _write(tmp_path / "raw")
    folder = tmp_path / "data" / "lfw"
    folder.mkdir(parents=True)
    (folder / "own.txt").write_text("mine")
    (folder / ".lfw_112.tar.abcdefgh").write_text("of a kill")
    (folder / blocked).mkdir()  # cannot be replaced
    with pytest.raises(UserError, match=f"cannot write .*{blocked}"):
        prepare_lfw(
            raw / "images", landmarks=raw / "points.txt", pairs=raw / "pairs.txt",
            split=split and raw / split, data_dir=tmp_path / "data",
        )  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"own.txt", blocked}


def test_splits(tmp_path):
    path = tmp_path / "split.csv"
    path.write_bytes(b"\xef\xbb\xbfrole,identity\r\neval,Al\r\nanchor,Bo\r\n\r\n")
    assert read_split(path) == {"Al": "eval", "Bo": "anchor"}
    for content, message in (
        (b"", "line 1: expected a header identity,role"),
        (b"name,role\n", "line 1: expected a header identity,role"),
        (b"identity,role\nAl\n", "line 2: expected identity,role,images"),
        (b"identity,role\nAl,eval\nAl,eval\n", "line 3: Al comes twice"),
        (b"identity,role\n\xff,eval\n", "line 2: .* is not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"split.csv.*{message}"):
            read_split(path)


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_split_is_a_user_error_or_read(tmp_path_factory, data):
    content = bytearray(b"identity,role,images\r\nAl_B,anchor,2\r\nCy,eval,2\r\n")
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        content = data.draw(st.binary(max_size=60))
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(content)
    message = ""
    try:
        found = read_split(path)
    except UserError as error:
        message = str(error)
    assert "damaged.csv" in message if message else all(found.values())
    assert "\n" not in message


@settings(max_examples=25)
@given(st.data())
def test_damaged_archives_are_user_errors_or_read(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        _pack(_write(root, size=112) / "images", root / "good.tar")
        _pack(root / "images", root / "good.tgz", "w:gz")
    suffix = data.draw(st.sampled_from([".tar", ".tgz"]))
    content = bytearray((root / f"good{suffix}").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    else:
        # Most of a tar are the images: its first headers are met more often this way.
        at = data.draw(st.one_of(st.integers(0, 2047), st.integers(0, len(content) - 1)))
        content[at] ^= data.draw(st.integers(1, 255))
    (root / f"bad{suffix}").write_bytes(content)
    into = tmp_path_factory.mktemp("data")
    message = ""
    try:
        prepare_lfw(root / f"bad{suffix}", pairs=root / "pairs.txt", data_dir=into)
    except UserError as error:
        message = str(error)
    if message:
        assert "\n" not in message
        assert _nothing_left(into)
    else:
        assert len(load_lfw(into / "lfw").names) == 5


def test_lfws_own_crops_and_landmarks(shared_data, tmp_path):
    """Crops put back to where the landmarks say they were come out of it as they were."""
    crops = open_images(shared_data / "lfw" / "lfw_112.tar")
    points = read_landmarks(shared_data / "protocols" / "lfw_landmark_5pt_original_lfw.txt")
    place = {name: row for row, name in enumerate(points.names)}
    people = ("Abel_Pacheco", "Akhmed_Zakayev", "Amber_Tamblyn")
    rows = [row for row, name in enumerate(crops.names) if name.split("/")[0] in people]
    with tarfile.open(tmp_path / "lfw.tgz", "w:gz") as archive:
        for row in rows:
            back = similarity_transform(points.points[place[crops.names[row]]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            picture = cv2.warpAffine(crops[row][:, :, ::-1], back, (500, 500), flags=flags)
            encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
            member = tarfile.TarInfo(f"lfw/{crops.names[row]}")
            member.size = len(encoded)
            archive.addfile(member, io.BytesIO(encoded))
    (tmp_path / "pairs.txt").write_text(
        "1\t2\nAbel_Pacheco\t1\t4\nAkhmed_Zakayev\t1\t3\n"
        "Abel_Pacheco\t1\tAkhmed_Zakayev\t1\nAbel_Pacheco\t2\tAmber_Tamblyn\t2\n"
    )
    done = prepare_lfw(
        tmp_path / "lfw.tgz", pairs=tmp_path / "pairs.txt", data_dir=tmp_path,
        landmarks=shared_data / "protocols" / "lfw_landmark_5pt_original_lfw.txt",
    )  # fmt: skip
    assert done.images == len(rows)
    found = load_lfw(tmp_path / "lfw")
    for row, crop in zip(rows, found.images, strict=True):
        inside = np.s_[8:-8, 8:-8]
        difference = crops[row][inside].astype(int) - crop[inside].astype(int)
        assert np.abs(difference).mean() < 6
