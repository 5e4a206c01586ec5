import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ida_jax.data.sources.jpeg import check_image

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (6, 6, 3), np.uint8), (40, 24))


def encoded(kind="JPEG", mode="RGB", **settings):
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        encoded(),
        encoded(progressive=True),
        encoded(subsampling=0, quality=100),
        encoded(restart_marker_rows=1),
        encoded(comment=b"\xff\xd9 is no end here"),
        encoded() + b"trailing",
        encoded("PNG"),
    ],
)
def test_sound_images_keep_their_bytes(image):
    assert check_image(image) == (image, False, None)
    assert check_image(image, size=24).problem == "is 24×40 pixels: expected 24×24"


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (encoded(mode="L"), "JPEG"),
        (encoded(mode="CMYK"), "JPEG"),
        (encoded("PNG", "L"), "PNG"),
        (encoded("PNG", "P"), "PNG"),
        (encoded("PNG", "RGBA"), "PNG"),
        (encoded("PNG", "1"), "PNG"),
    ],
)
def test_other_colours_become_rgb(image, kind):
    checked = check_image(image)
    assert checked.converted
    assert checked.problem is None
    assert check_image(checked.image) == (checked.image, False, None)
    opened = Image.open(io.BytesIO(checked.image))
    assert (opened.format, opened.mode, opened.size) == (kind, "RGB", (40, 24))
    expected = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float64)
    assert np.abs(np.asarray(opened, np.float64) - expected).mean() < 6


def test_sixteen_bits_become_eight():
    image = cv2.imencode(".png", PICTURE.astype(np.uint16) * 257)[1].tobytes()
    checked = check_image(image)
    assert checked.converted
    decoded = cv2.imdecode(np.frombuffer(checked.image, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_truncation_is_found(kind, mode):
    image = encoded(kind, mode)
    for size in range(len(image)):
        checked = check_image(image[:size])
        assert checked.problem is not None
        assert checked.image == image[:size]
        if size > 8:
            assert "truncated" in checked.problem


def test_an_end_marker_in_a_thumbnail_is_no_end():
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(encoded())) + encoded()
    image = b"\xff\xd8" + thumbnail + encoded()[2:]
    assert check_image(image).problem is None
    assert "truncated" in check_image(image[:-30]).problem


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "is empty"),
        (b"GIF89a", "is neither JPEG nor PNG (it begins with 47 49 46 38)"),
        (b"\xff\xd8\xff\xd9", "is damaged: a JPEG without a frame header"),
        (b"\xff\xd8\xff\xe0\x00\x02junk", "is damaged: no JPEG marker at its byte 6"),
    ],
)
def test_what_is_no_image(image, problem):
    assert check_image(image).problem == problem


def test_flipped_sizes_and_checksums():
    image = bytearray(encoded())
    frame = image.index(b"\xff\xc0")
    image[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert "65535×65535" in check_image(bytes(image)).problem
    image[frame + 5 : frame + 7] = b"\0\0"
    assert "0×65535" in check_image(bytes(image)).problem
    png = bytearray(encoded("PNG"))
    png[-20] ^= 1
    assert "checksum" in check_image(bytes(png)).problem
    body = b"IHDR" + struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, end)
    )
    assert check_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).problem == "cannot be decoded"


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["JPEG", "PNG"]),
    mode=st.sampled_from(["L", "RGB"]),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    tail=st.none() | st.binary(max_size=40),
)
def test_never_raises(kind, mode, flips, tail):
    image = bytearray(encoded(kind, mode))
    for at, value in flips:
        image[at % len(image)] = value
    if tail is not None:
        image[len(image) // 2 :] = tail
    checked = check_image(bytes(image))
    assert checked.problem is None or "\n" not in checked.problem
    if checked.problem is None:
        assert cv2.imdecode(np.frombuffer(checked.image, np.uint8), cv2.IMREAD_COLOR) is not None
