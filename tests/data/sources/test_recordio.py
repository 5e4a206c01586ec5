import pickle
import struct

import cv2
import numpy as np
import pytest
from face_sources import jpeg, write_recordio
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.data.sources import recordio
from ida_jax.data.sources.recordio import load_recordio, read_recordio
from ida_jax.data.sources.tfds_writer import write_faces
from ida_jax.data.tfds_faces import load_tfds

MAGIC = struct.pack("<I", 0xCED7230A)


def record(payload, *, last_padded=True):
    """As dmlc writes it: cut where the magic lies at a word."""
    cuts = [at for at in range(0, len(payload) - 3, 4) if payload[at : at + 4] == MAGIC]
    parts = [payload[a:b] for a, b in zip([0, *(c + 4 for c in cuts)], [*cuts, None], strict=True)]
    written = b""
    for number, part in enumerate(parts):
        kind = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        written += MAGIC + struct.pack("<I", kind << 29 | len(part)) + part
        written += bytes(-len(part) % 4) if last_padded or number < len(cuts) else b""
    return written


def payload(label, image=b"", *, key=0):
    """A payload with a scalar label, or a list of labels (and then a void scalar)."""
    if isinstance(label, list):
        head = struct.pack("<IfQQ", len(label), -7.5, key, 0)
        return head + struct.pack(f"<{len(label)}f", *label) + image
    return struct.pack("<IfQQ", 0, label, key, 0) + image


def write(folder, records, *, line_end="\n"):
    """Writes {key: payload} in the given order; returns {key: offset}."""
    content, offsets = b"", {}
    for key, one in records.items():
        offsets[key] = len(content)
        content += record(one)
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text(
        "".join(f"{k}\t{o}{line_end}" for k, o in offsets.items()), newline=""
    )
    return offsets


def insightface(images):
    """{key: payload} of the label's images: header, images, and a record an identity."""
    records, ranges = {0: None}, {}
    for key, (label, image) in enumerate(images, 1):
        # Both forms of a label are there in the field.
        records[key] = payload([label, 0.0] if key % 2 else label, image, key=key)
        ranges[label] = (ranges.get(label, (key,))[0], key + 1)
    first = len(images) + 1
    for number, (start, stop) in enumerate(ranges.values()):
        records[first + number] = payload([float(start), float(stop)], key=first + number)
    records[0] = payload([float(first), float(first + len(ranges))])
    return records


IMAGES = [(7.0, b"a"), (7.0, b"bc"), (0.0, MAGIC * 2), (12.0, b"defg" + MAGIC + b"h"), (12.0, b"")]


def read(folder):
    """The faces and all their images."""
    faces = read_recordio(folder)
    return faces, list(faces.images)


def fails(folder, *words):
    with pytest.raises(UserError) as raised:
        read(folder)
    text = str(raised.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_insightface_set(tmp_path, line_end):
    offsets = write(tmp_path, insightface(IMAGES), line_end=line_end)
    faces = read_recordio(tmp_path)
    assert list(faces.images) == [image for _, image in IMAGES]
    assert faces.labels.dtype == np.int32
    assert faces.labels.tolist() == [1, 1, 0, 2, 2]
    assert faces.identities == ("0", "7", "12")
    assert faces.notes == ()
    assert faces.where(2) == f"{tmp_path / 'train.rec'}, key 3, byte {offsets[3]}"
    assert pickle.loads(pickle.dumps(faces.images))[3] == IMAGES[3][1]
    assert list(read_recordio(tmp_path / "train.rec").images) == list(faces.images)


def test_plain_records_are_all_images(tmp_path):
    # The order of keys is not the order in the file.
    write(tmp_path, {9: payload(2.0, b"x"), 0: payload(5.0, b"yy"), 4: payload(2.0, b"zzz")})
    with (tmp_path / "train.idx").open("a") as file:
        file.write("\n\n")
    faces = read_recordio(tmp_path)
    assert list(faces.images) == [b"yy", b"zzz", b"x"]
    assert faces.labels.tolist() == [1, 0, 0]


def test_key_zero_with_two_labels_and_an_image_is_no_header(tmp_path):
    write(tmp_path, {0: payload([3.0, 1.0], b"x"), 1: payload([4.0, 1.0], b"y")})
    assert list(read_recordio(tmp_path).images) == [b"x", b"y"]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_heads_are_read_by_blocks(tmp_path, monkeypatch, block):
    write(tmp_path, insightface(IMAGES))
    whole = read_recordio(tmp_path)
    monkeypatch.setattr(recordio, "_BLOCK", block)
    assert read_recordio(tmp_path).labels.tolist() == whole.labels.tolist()


@settings(max_examples=60)
@given(parts=st.lists(st.sampled_from([MAGIC, b"a", b"bcde", b""]), max_size=6))
def test_magic_anywhere_in_a_record(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("rec")
    image = b"".join(parts)
    # A label, ids and an image that are the magic themselves: the header is cut, too.
    cut = struct.pack("<I", 1) + MAGIC * 5 + struct.pack("<f", 3) + image
    write(folder, {0: payload(1.0, image), 1: cut, 2: payload(2.0, image)})
    faces = read_recordio(folder)
    assert list(faces.images) == [image] * 3
    assert faces.identities == ("1", "2", "3")
    assert faces.labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("length", range(5))
def test_last_padding_may_be_missing(tmp_path, length):
    write(tmp_path, {0: payload(1.0, b"x")})
    image = b"abcde"[:length]
    content = (tmp_path / "train.rec").read_bytes()
    with (tmp_path / "train.idx").open("a") as file:
        file.write(f"1\t{len(content)}\n")
    content += record(payload(2.0, image), last_padded=False)
    (tmp_path / "train.rec").write_bytes(content)
    assert list(read_recordio(tmp_path).images) == [b"x", image]


def test_every_truncation_is_found(tmp_path):
    write(tmp_path, insightface(IMAGES[:2]))
    content = (tmp_path / "train.rec").read_bytes()
    for size in range(len(content)):
        (tmp_path / "train.rec").write_bytes(content[:size])
        fails(tmp_path, "train.rec", "byte")


def test_notes_of_what_disagrees(tmp_path):
    image = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    records = insightface([(0.0, image), (1.0, b"b"), (1.0, b"c")])
    offsets = write(tmp_path, records)
    (tmp_path / "property").write_text("2,8,8\r\n")
    assert read_recordio(tmp_path).notes == ()
    (tmp_path / "property").write_text("3,112,112")
    classes, size = read_recordio(tmp_path).notes
    assert "promises 3 identities, 2 were found" in classes
    assert "the first one is 8×8 pixels" in size

    (tmp_path / "property").unlink()
    records[4] = payload([1.0, 3.0])
    write(tmp_path, records)
    (note,) = read_recordio(tmp_path).notes
    assert f"1 identity records name other images than one label's, the first at byte {offsets[4]}"\
        in note  # fmt: skip

    records[4] = payload([1.0, 2.0])
    write(tmp_path, records)
    text = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\n".join(text[:-1]))
    lacking, promised = read_recordio(tmp_path).notes
    assert f"lacks, the first at byte {offsets[5]}" in lacking
    assert "promises 2 identity records, 1 were found" in promised


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("", ["train.idx is empty"]),
        ("0\t0\nx\t4\n", ["train.idx:2"]),
        ("0\t0\n1 40\n", ["train.idx:2"]),
        ("0\t0\n1\t-40\n", ["train.idx:2"]),
        ("0\t0\n\n1\t40\t5\n", ["train.idx:3"]),
        ("0\t0\n1\n2\t3\n", ["train.idx:2"]),
        ("0\t0\n0\t40\n", ["the key 0 twice", "entries 1 and 2"]),
        ("0\t0\n1\t0\n", ["the offset 0 twice"]),
        ("0\t0\n1\t4000\n", ["train.idx", "key 1", "byte 4000"]),
        ("0\t0\n1\t2\n", ["key 1", "byte 2"]),
        ("0\t0\n1\t4\n", ["byte 4", "no record begins"]),
        ("0\t0\n2\t84\n", ["lacks the key 1"]),
    ],
)
def test_index_that_disagrees(tmp_path, index, words):
    write(tmp_path, insightface([(0.0, b"aaaa"), (1.0, b"bbbb")]))
    (tmp_path / "train.idx").write_text(index)
    fails(tmp_path, *words)


def test_damaged_lengths_and_labels(tmp_path):
    offsets = write(tmp_path, {0: payload(0.0, b"aaaa"), 1: payload(1.0, b"bbbb")})
    content = bytearray((tmp_path / "train.rec").read_bytes())
    for length in (20, 24, 40, 64):
        struct.pack_into("<I", content, 4, length)
        (tmp_path / "train.rec").write_bytes(content)
        fails(tmp_path, "byte 0", "train.rec")
    struct.pack_into("<I", content, 4, 28)
    struct.pack_into("<I", content, offsets[1] + 4, 2 << 29 | 28)
    (tmp_path / "train.rec").write_bytes(content)
    fails(tmp_path, f"byte {offsets[1]}", "out of place")
    for label in (0.5, float("nan"), float("inf"), 1e9):
        write(tmp_path, {0: payload(0.0, b"a"), 1: payload(label, b"b")})
        fails(tmp_path, f"byte {offsets[1]}", "key 1", "whole number")
    write(tmp_path, {0: payload([float("nan"), 2.0])})
    fails(tmp_path, "key 0, byte 0", "nan")
    write(tmp_path, {0: payload([1.0, 1.0])})
    fails(tmp_path, "holds no image")


def test_absent_and_empty_files(tmp_path):
    fails(tmp_path, "train.rec")
    (tmp_path / "train.rec").write_bytes(b"")
    fails(tmp_path, "train.idx")
    (tmp_path / "train.idx").write_text("0\t0\n")
    fails(tmp_path, "train.rec has 0 bytes")
    write(tmp_path, insightface(IMAGES))
    for text in ("", "x,112,112", "3,112", "²,1,1"):
        (tmp_path / "property").write_text(text, encoding="utf-8")
        fails(tmp_path, "property:1")


@settings(max_examples=300)
@given(
    name=st.sampled_from(["train.rec", "train.idx", "property"]),
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=4),
    noise=st.none() | st.binary(max_size=60),
)
def test_nothing_but_user_errors(tmp_path_factory, name, cut, flips, noise):
    folder = tmp_path_factory.mktemp("rec")
    write(folder, insightface(IMAGES))
    (folder / "property").write_text("3,112,112")
    content = bytearray((folder / name).read_bytes())
    for at, value in flips:
        content[at % len(content)] = value
    (folder / name).write_bytes(content[:cut] if noise is None else noise)
    try:
        faces, images = read(folder)
    except UserError as error:
        message = str(error)
    else:
        message = str(folder)
        assert len(images) == len(faces.labels)
    assert "\n" not in message
    assert str(folder) in message


def test_in_place_they_are_the_faces_of_the_prepared_data_set(tmp_path):
    labels = [7, 7, 0, 12, 12]
    folder = write_recordio(tmp_path / "faces", [jpeg(40 * n) for n in range(5)], labels)
    write_faces("faces_tfds", read_recordio(folder), data_dir=tmp_path)
    prepared, in_place = load_tfds("faces_tfds", data_dir=tmp_path), load_recordio(folder)
    np.testing.assert_array_equal(in_place.labels, prepared.labels)
    assert in_place.labels.dtype == prepared.labels.dtype
    assert in_place.identities == prepared.identities == ("0", "7", "12")
    # As a worker process has them; the index travels, the records do not.
    pickled = pickle.dumps(in_place.images)
    assert len(pickled) < 600
    for images in (in_place.images, pickle.loads(pickled)):
        assert len(images) == len(prepared.images) == 5
        for a, b in zip(images, prepared.images, strict=True):
            np.testing.assert_array_equal(a, b)


def test_in_place_what_cannot_be_read_is_named(tmp_path):
    folder = write_recordio(tmp_path / "faces", [jpeg(80), b"no jpeg"], [0, 1])
    images = load_recordio(folder).images
    with pytest.raises(UserError, match=r"train\.rec, key 2, byte \d+ cannot be decoded"):
        images[1]
    (folder / "train.idx").unlink()
    with pytest.raises(UserError, match=r"train\.rec has no train\.idx beside it"):
        load_recordio(folder)
