import gzip
import io
import os
import struct
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.sources import image_archives, image_names, jpeg
from ida_jax.data.sources.image_files import decode, open_images
from ida_jax.data.sources.image_names import is_hidden, without_suffix

NAMES = ("a/1.jpg", "a/B.PNG", "b/c/2.bmp", "z.jpeg")


def _image(seed, size=9):
    return np.random.default_rng(seed).integers(0, 256, (size, size + 1, 3), np.uint8)


def _encoded(name, seed):
    return cv2.imencode("." + name.rsplit(".")[-1].lower(), _image(seed)[..., ::-1])[1].tobytes()


CONTENT = {name: _encoded(name, seed) for seed, name in enumerate(NAMES)}


def _write_tar(path, content, *, prefix="./", mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in content:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "a" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    shuffled = [(name, CONTENT[name]) for name in (NAMES[2], NAMES[0], NAMES[3], NAMES[1])]
    return _write_tar(tmp_path_factory.mktemp("tar") / "x.tar", [*shuffled, ("n.txt", b"text")])


def _check(files):
    assert files.names == NAMES
    assert len(files) == len(NAMES)
    for row, (name, data) in enumerate(CONTENT.items()):
        assert files.encoded(row) == data
        assert files[row].dtype == np.uint8
        assert name in files.where(row)
        if not name.startswith(("a/1", "z")):  # JPEG loses
            np.testing.assert_array_equal(files[row], _image(row))


def test_webp_is_read_and_every_image_suffix_taken_off(tmp_path):
    (tmp_path / "w.WebP").write_bytes(_encoded("w.webp", 0))
    files = open_images(tmp_path)
    assert files.names == ("w.WebP",)
    assert files[0].shape == _image(0).shape
    names = ["a.JPG", "a.jpeg", "b/a.png", "a.bmp", "a.webp", "a.txt", "a.b.jpg", "a"]
    stems = ["a", "a", "b/a", "a", "a", "a.txt", "a.b", "a"]
    assert [without_suffix(name) for name in names] == stems


def test_a_folder_and_tars_give_the_same(folder, tar, tmp_path):
    _check(open_images(folder))
    _check(open_images(tar))
    for name in ("x.tgz", "x.tar.gz", "gzip_all_the_same.tar"):
        (tmp_path / name).write_bytes(gzip.compress(tar.read_bytes()))
        _check(open_images(tmp_path / name))
    long = {f"{'n' * 150}/{name}": data for name, data in CONTENT.items()}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = _write_tar(tmp_path / "long.tar", long.items(), prefix="", format=form)
        files = open_images(path)
        assert files.names == tuple(long)
        assert [files.encoded(row) for row in range(4)] == list(CONTENT.values())


@pytest.mark.parametrize(
    "form",
    [
        "{}\n",
        "{}\r\n",
        "{}\t1\t2 3\n",
        "{} 0 1.5 2\r\n",
        "  {}   7\n",
    ],
)
def test_a_list_is_taken_in_its_order(folder, tmp_path, form):
    text = "".join(form.format(name) for name in reversed(NAMES))
    for content in (text, "\ufeff" + text, text + "\n\r\n", text.rstrip()):
        (tmp_path / "list.txt").write_bytes(content.encode())
        files = open_images(tmp_path / "list.txt", root=folder)
        assert files.names == NAMES[::-1]
        assert files.encoded(0) == CONTENT[NAMES[3]]


def test_a_lists_own_folder_and_paths_with_blanks(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c d.jpg").write_bytes(CONTENT["a/1.jpg"])
    for text in ("a b/c d.jpg\n", "a b/c d.jpg\t5 4\n"):
        (tmp_path / "list.txt").write_text(text)
        assert open_images(tmp_path / "list.txt").names == ("a b/c d.jpg",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a/1.jpg\nabsent.jpg\n", r"list.txt, line 2: no image at .*absent.jpg.*--root"),
        (b"a/1.jpg\n\nz.jpeg\n", "list.txt, line 2 is blank"),
        (b"a/1.jpg 1\nz.jpeg 2\na/1.jpg 3\n", "list.txt, line 3: a/1.jpg is on line 1 too"),
        (b"", "holds no images"),
        (b" \n\n", "holds no images"),
        (b"a/1.jpg\n\xff\xfe", "line 2: .* is not UTF-8 text.*; images are a folder"),
        (b"a\0b\n", "line 1: .* holds a NUL"),
        (b"a" * 10_000, "line 1: no image"),
    ],
)
def test_mistakes_in_lists(folder, tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_images(tmp_path / "list.txt", root=folder)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_any_list_is_read_or_refused_in_a_line(folder, content):
    path = folder / "any.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_images(path)
    assert len(str(caught.value).splitlines()) == 1


def test_mistakes_in_folders_and_tars(folder, tar, tmp_path):
    with pytest.raises(UserError, match=r"no images at .*absent"):
        open_images(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no images: expected \.jpg"):
        open_images(tmp_path)
    for path in (folder, tar):
        with pytest.raises(UserError, match="--root=x is for lists"):
            open_images(path, root="x")
    with pytest.raises(UserError, match="holds no images"):
        open_images(_write_tar(tmp_path / "none.tar", [("n.txt", b"")]))
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        member = tarfile.TarInfo("b.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"b\.jpg is a link"):
        open_images(tmp_path / "links.tar")


LITTER = (
    ".ipynb_checkpoints/1-checkpoint.jpg",
    ".ipynb_checkpoints/2-checkpoint.jpg",
    "a/._1.jpg",
    "a/.DS_Store",
    "__MACOSX/a/1.jpg",
    "b/Thumbs.db",
    "b/desktop.ini",
)


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tgz"])
def test_hidden_entries_are_no_images_and_are_counted(tmp_path, kind):
    content = {**CONTENT, **dict.fromkeys(LITTER, CONTENT["z.jpeg"])}
    if kind == "folder":
        for name, data in content.items():
            (tmp_path / ".root" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / ".root" / name).write_bytes(data)
        path = tmp_path / ".root"  # what is named by the user is meant
    else:
        mode = "w:gz" if kind == "x.tgz" else "w"
        path = _write_tar(tmp_path / kind, content.items(), mode=mode)
    files = open_images(path)
    _check(files)
    folders = (".ipynb_checkpoints", "__MACOSX")
    assert files.hidden == (*folders, "a/.DS_Store", "a/._1.jpg", "b/Thumbs.db", "b/desktop.ini")
    assert open_images(_write_tar(tmp_path / "y.tar", CONTENT.items())).hidden == ()


def test_hidden_names():
    for name in (".x.jpg", "._x.jpg", ".DS_Store", "__MACOSX", "Thumbs.db", "THUMBS.DB", "@eaDir"):
        assert is_hidden(name)
    for name in ("x.jpg", "_x.jpg", "a.b", ".", "..", "Thumbs.db.jpg", "macosx"):
        assert not is_hidden(name)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    os.symlink("/dev/zero", tmp_path / "y.jpg")
    files = open_images(tmp_path)
    for row, name in enumerate(("x.jpg", "y.jpg")):
        with pytest.raises(UserError, match=rf"{name} is a pipe or a device"):
            files.encoded(row)


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/x.jpg"])
def test_paths_that_lead_out_of_a_tar_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads out of the archive"):
        open_images(_write_tar(tmp_path / "x.tar", [(name, b"x")], prefix=""))


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_archives, "_ROOM", 1 << 20)
    (tmp_path / "x.tgz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(UserError, match=r"x.tgz unpacks to more than 20 times its size"):
        open_images(tmp_path / "x.tgz")
    monkeypatch.setattr(image_names, "_MOST_BYTES", 10)
    (tmp_path / "x.jpg").write_bytes(b"x" * 11)
    with pytest.raises(UserError, match=r"x.jpg has 11 bytes: expected at most 10"):
        open_images(tmp_path).encoded(0)
    with pytest.raises(UserError, match=r"y.jpg has 11 bytes: expected at most 10"):
        open_images(_write_tar(tmp_path / "x.tar", [("y.jpg", b"x" * 11)]))
    with pytest.raises(UserError, match=r"y.jpg has 11 bytes: expected at most 10"):
        open_images(_write_zip(tmp_path / "x.zip", [("y.jpg", b"x" * 11)]))


def _write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of twins
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_as_a_folder_is(tmp_path):
    images = {"b/2.png": b"two", "a/1.JPG": b"one", "ä.webp": b"three"}
    others = [
        ("__MACOSX/a/._1.JPG", b"x"),
        ("a/.DS_Store", b"x"),
        ("a/list.txt", b"x"),
        ("b/", b""),
    ]
    path = _write_zip(tmp_path / "x.ZIP", [("a/1.JPG", b"older"), *others, *images.items()])
    files = open_images(path)
    assert dict(zip(files.names, map(files.encoded, range(3)), strict=True)) == images
    assert files.names == tuple(sorted(images))
    assert files.hidden == ("__MACOSX", "a/.DS_Store")
    before = files.stamp()
    os.utime(path, ns=(0, 1))
    assert open_images(path).stamp() != before
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(files.encoded, [0] * 20)) == [b"one"] * 20


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/x.jpg"])
def test_paths_that_lead_out_of_a_zip_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads out of the archive"):
        open_images(_write_zip(tmp_path / "x.zip", [(name, b"x")]))


def test_a_zip_that_cannot_be_read_is_one_line(tmp_path):
    path = _write_zip(tmp_path / "x.zip", [("a.jpg", bytes(5000)), ("b.jpg", b"b")])
    whole = path.read_bytes()
    for length in (0, 2, 50, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x.zip is not a whole .zip file: .*pack it again"):
            open_images(path)
    path.write_bytes(whole.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"))
    with pytest.raises(UserError, match=r"a.jpg is encrypted: unpack the archive yourself"):
        open_images(path)
    at = whole.index(b"a.jpg") + 7  # in the first image
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    files = open_images(path)
    with pytest.raises(UserError, match=r"image a.jpg of .*x.zip cannot be read: "):
        files.encoded(0)
    assert files.encoded(1) == b"b"


def test_the_last_of_a_tars_twins_counts(tmp_path):
    twins = [("a.jpg", b"old"), ("b.jpg", b"x"), ("a.jpg", b"newer")]
    files = open_images(_write_tar(tmp_path / "twins.tar", twins))
    assert files.names == ("a.jpg", "b.jpg")
    assert files.encoded(0) == b"newer"


def test_links_to_folders(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"x")
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "images" / "linked")
    assert open_images(tmp_path / "images").names == ("linked/1.jpg",)
    os.symlink(tmp_path / "images", tmp_path / "images" / "loop")
    with pytest.raises(UserError, match="loop leads back to a folder around it"):
        open_images(tmp_path / "images")


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"\xff.jpg", b" a.jpg"])
def test_names_that_no_list_can_hold_are_refused(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(UserError, match="rename it") as caught:
        open_images(tmp_path)
    assert "\n" not in str(caught.value)


def _names_or_refusal(path):
    """The names, or None where the file is refused, as it should be, in a line that names it."""
    try:
        return open_images(path).names
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert str(path) in said
    return None


@given(data=st.data(), suffix=st.sampled_from(["tar", "tgz"]))
def test_a_tar_cut_anywhere_is_refused(tar, data, suffix):
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        end = archive.getmembers() and archive.offset
    whole = whole[: end + tarfile.BLOCKSIZE]
    whole = gzip.compress(whole) if suffix == "tgz" else whole
    path = tar.parent / f"cut.{suffix}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert _names_or_refusal(path) is None
    path.write_bytes(whole)
    assert _names_or_refusal(path) == NAMES


@given(data=st.data(), suffix=st.sampled_from(["tar", "tgz"]))
def test_a_flipped_bit_loses_no_image_silently(tar, data, suffix):
    content = bytearray(tar.read_bytes() if suffix == "tar" else gzip.compress(tar.read_bytes()))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path = tar.parent / f"flipped.{suffix}"
    path.write_bytes(content)
    assert _names_or_refusal(path) in (NAMES, None)


@given(st.binary(max_size=2000))
def test_no_tar_at_all(tar, content):
    path = tar.parent / "no.tar"
    path.write_bytes(content)
    assert _names_or_refusal(path) is None


def test_threads_share_a_tar(tmp_path):
    content = {f"{i:03}.jpg": bytes([i]) * (1000 + i) for i in range(200)}
    files = open_images(_write_tar(tmp_path / "x.tar", content.items()))
    rows = np.random.default_rng(0).integers(0, 200, 4000)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(files.encoded, rows))
    assert read == [content[f"{row:03}.jpg"] for row in rows]


def test_a_file_that_shrinks_or_goes(tmp_path):
    tar = _write_tar(tmp_path / "x.tar", [("1.jpg", b"x" * 3000)])
    (tmp_path / "2.jpg").write_bytes(b"x")
    files, folder = open_images(tar), open_images(tmp_path)
    os.truncate(tar, 2000)
    with pytest.raises(UserError, match=r"x.tar ends within 1.jpg"):
        files.encoded(0)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"image .*2.jpg cannot be read: No such file"):
        folder[0]
    with pytest.raises(UserError, match=r"2.jpg cannot be read"):
        folder.stamp()


def test_stamps_tell_changed_images(folder, tar, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"x")
    files = open_images(tmp_path)
    before = files.stamp()
    assert before == open_images(tmp_path).stamp()
    (tmp_path / "1.jpg").write_bytes(b"xy")
    changed = files.stamp()
    os.rename(tmp_path / "1.jpg", tmp_path / "2.jpg")
    assert len({before, changed, open_images(tmp_path).stamp()}) == 3
    assert open_images(tar).stamp() != open_images(folder).stamp()


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp"])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind, monkeypatch):
    encoded = cv2.imencode(kind, _image(0))[1].tobytes()
    assert decode(encoded, where="x").shape == (9, 10, 3)
    monkeypatch.setattr(jpeg, "MOST_PIXELS", 89)
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(UserError, match=r"x cannot be decoded: it is 9×10 pixels: .* most 89"):
        decode(encoded, where="x")


def test_a_jpeg_whose_header_promises_too_much():
    encoded = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    frame = encoded.find(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = struct.pack(">HH", 16000, 60000)
    with pytest.raises(UserError, match="is 16000×60000 pixels"):
        decode(bytes(encoded), where="x")


def test_a_png_whose_chunk_promises_too_much():
    encoded = bytearray(CONTENT["a/B.PNG"])
    start = encoded.index(b"IDAT") - 4
    encoded[start : start + 4] = struct.pack(">I", 900_000_000)
    with pytest.raises(UserError, match="end within a chunk"):
        decode(bytes(encoded), where="x")


def test_what_stands_behind_a_jpegs_end_is_no_part_of_it():
    photo = CONTENT["a/1.jpg"]
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd8\xff" * 9  # a phone's motion photo
    for rest in (film, photo, photo[:99], b"\0", b"\xff\xda"):
        np.testing.assert_array_equal(decode(photo + rest, where="x"), decode(photo, where="x"))
        assert jpeg.check_image(photo + rest).problem is None
    for cut in range(len(photo) - 3, 200, -7):
        with pytest.raises(UserError, match=r"truncated|damaged"):
            decode(photo[:cut] + film[:12], where="x")


def test_decode():
    grey = cv2.imencode(".png", _image(0)[..., 0])[1].tobytes()
    np.testing.assert_array_equal(decode(grey, where="x"), np.repeat(_image(0)[..., :1], 3, axis=2))
    jpeg = CONTENT["a/1.jpg"]
    assert decode(jpeg + b"\0padding", where="x").shape == (9, 10, 3)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_cut_image_is_refused(data, name):
    whole = CONTENT[name]
    with pytest.raises(UserError, match="image x cannot be decoded"):
        decode(whole[: data.draw(st.integers(0, len(whole) - 13))], where="x")


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_damaged_image_is_decoded_or_refused(data, name):
    content = bytearray(CONTENT[name])
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(content), where="x")
    except UserError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
