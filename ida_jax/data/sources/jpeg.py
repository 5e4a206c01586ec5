"""Encoded images, checked by their bytes before they are decoded: size, wholeness, channels.

H height, W width.
"""

import re
import struct
import zlib
from typing import NamedTuple

import numpy as np

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# In entropy-coded data 0xff is followed by 0 (a stuffed byte) or by a restart's number.
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
# SOF0 … SOF15 without the tables (DHT, JPG, DAC) that stand between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
_STANDALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_QUALITY = 95
# A flipped bit may promise 65535×65535: such an image is refused before room is made for it.
MOST_PIXELS = 100_000_000


class CheckedImage(NamedTuple):
    """What became of an encoded image.

    Attributes:
      image: the bytes to keep: those given, or the converted ones.
      converted: whether they were converted to three channels.
      problem: what is wrong with the image, said of it ("is truncated …"); None if nothing is.
    """

    image: bytes
    converted: bool
    problem: str | None


class Layout(NamedTuple):
    """What an image's header says.

    Attributes:
      is_rgb: three channels of 8 bits; False where that is not looked at (BMP, WebP).
    """

    height: int
    width: int
    is_rgb: bool = False


class ImageFault(Exception):
    """What is wrong with an image, said of it ("is truncated …")."""


def image_layout(encoded: bytes) -> Layout:
    """The size that a JPEG, PNG, BMP or WebP promises, before anything is decoded.

    A JPEG's segments and a PNG's chunks are followed to the end, behind which anything may stand
    (phones put a film there).
    """
    if encoded.startswith(_JPEG):
        layout = _jpeg_layout(encoded)
    elif encoded.startswith(_PNG):
        # A chunk may promise a gigabyte, for which OpenCV makes room.
        layout = _png_layout(encoded)
    elif encoded.startswith(b"BM") and len(encoded) >= 26:
        old = int.from_bytes(encoded[14:18], "little") == 12
        width, height = struct.unpack_from("<HH" if old else "<ii", encoded, 18)
        layout = Layout(abs(height), abs(width))
    elif encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        layout = _webp_layout(encoded)
    elif not encoded:
        raise ImageFault("is empty")
    else:
        raise ImageFault(
            f"is not a complete JPEG, PNG, BMP or WebP (it begins with {encoded[:4].hex(' ')})"
        )
    _require_pixels(layout)
    return layout


def check_image(encoded: bytes, *, size: int | None = None) -> CheckedImage:
    """Checks a JPEG or PNG image; what is not RGB of 8 bits is converted.

    A JPEG whose end is missing decodes all the same, grey from there on, so its segments are
    followed to the end marker; a PNG's chunks are held against their checksums. Damage within a
    JPEG's entropy-coded data has no checksum, and is found only where it makes decoding fail. Grey
    and CMYK JPEGs become RGB JPEGs of quality 95; PNGs with grey, a palette, transparency or 16
    bits become RGB PNGs. All others keep their bytes.

    Args:
      size: H and W that are expected, in pixels; any if None.
    """
    try:
        is_jpeg = encoded.startswith(_JPEG)
        if is_jpeg:
            layout = _jpeg_layout(encoded)
        elif encoded.startswith(_PNG):
            layout = _png_layout(encoded)
        elif not encoded:
            raise ImageFault("is empty")
        else:
            raise ImageFault(f"is neither JPEG nor PNG (it begins with {encoded[:4].hex(' ')})")
        _require_pixels(layout)
        if size is not None and (layout.height, layout.width) != (size, size):
            raise ImageFault(f"is {layout.height}×{layout.width} pixels: expected {size}×{size}")
        if not layout.is_rgb:
            return CheckedImage(_as_rgb(encoded, ".jpg" if is_jpeg else ".png"), True, None)
        _require_decodable(encoded)
    except ImageFault as fault:
        return CheckedImage(encoded, False, str(fault))
    return CheckedImage(encoded, False, None)


def _require_pixels(layout: Layout) -> None:
    if not 0 < layout.height * layout.width <= MOST_PIXELS:
        raise ImageFault(
            f"is {layout.height}×{layout.width} pixels: expected at least 1 and at most "
            f"{MOST_PIXELS:,}"
        )


def _webp_layout(encoded: bytes) -> Layout:
    """Of the first chunk: the canvas (VP8X), a lossless image (VP8L) or a lossy one."""
    kind, head = encoded[12:16], encoded[20:30]
    if len(head) < 10:
        raise ImageFault(f"is truncated: its {len(encoded)} bytes hold no header")
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return Layout(height, width)


def _jpeg_layout(encoded: bytes) -> Layout:
    """Follows the segments to the end marker."""
    layout = None
    at = 2
    while True:
        if len(encoded) < at + 2:
            raise ImageFault(f"is truncated: its {len(encoded)} bytes hold no end marker")
        if encoded[at] != 0xFF:
            raise ImageFault(f"is damaged: no JPEG marker at its byte {at}")
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            break
        at += 2
        if marker in _STANDALONE:
            continue
        if len(encoded) < at + 2:
            continue  # to say that it is truncated
        length = int.from_bytes(encoded[at : at + 2], "big")
        if marker in _FRAMES and length >= 8 and len(encoded) >= at + 8:
            depth, height, width, channels = struct.unpack_from(">BHHB", encoded, at + 2)
            layout = Layout(height, width, is_rgb=channels == 3 and depth == 8)
        at += max(length, 2)
        if marker == _SCAN:
            after = _AFTER_SCAN.search(encoded, at)
            at = len(encoded) if after is None else after.end() - 2
    if layout is None:
        raise ImageFault("is damaged: a JPEG without a frame header")
    return layout


def _png_layout(encoded: bytes) -> Layout:
    """Follows the chunks to the last one."""
    layout, kind, at = None, b"", len(_PNG)
    while kind != b"IEND":
        if len(encoded) < at + 12:
            raise ImageFault(f"is truncated: its {len(encoded)} bytes hold no end")
        length, kind = struct.unpack_from(">I4s", encoded, at)
        stop = at + 8 + length
        if len(encoded) < stop + 4:
            raise ImageFault(f"is truncated: its {len(encoded)} bytes end within a chunk")
        if zlib.crc32(encoded[at + 4 : stop]) != int.from_bytes(encoded[stop : stop + 4], "big"):
            raise ImageFault(f"is damaged: the checksum of its byte {at} does not hold")
        if kind == b"IHDR" and length == 13:
            width, height, depth, colour = struct.unpack_from(">IIBB", encoded, at + 8)
            layout = Layout(height, width, is_rgb=colour == 2 and depth == 8)
        elif kind == b"tRNS" and layout is not None:
            layout = layout._replace(is_rgb=False)
        at = stop + 4
    if layout is None:
        raise ImageFault("is damaged: a PNG without a header")
    return layout


def _require_decodable(encoded: bytes) -> None:
    import cv2

    # At an eighth of the size all entropy-coded data is read, in half the time.
    if _decoded(encoded, cv2.IMREAD_REDUCED_COLOR_8) is None:
        raise ImageFault("cannot be decoded")


def _as_rgb(encoded: bytes, suffix: str) -> bytes:
    import cv2

    image = _decoded(encoded, cv2.IMREAD_COLOR)
    if image is None:
        raise ImageFault("cannot be decoded")
    settings = (cv2.IMWRITE_JPEG_QUALITY, _QUALITY) if suffix == ".jpg" else ()
    done, written = cv2.imencode(suffix, image, settings)
    if not done:
        raise ImageFault("cannot be converted to RGB")
    return written.tobytes()


def _decoded(encoded: bytes, mode: int) -> np.ndarray | None:
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)
    except cv2.error:
        return None
