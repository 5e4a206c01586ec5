"""Mutations of a file's bytes: what disks, editors, transfers and attackers do to them."""

import random
import re
import struct

# Numbers that overflow, wrap around, or ask for all memory there is.
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_TEXTS = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\r\n", b"\n\n", b"\t", b" ", b",", b'"', b"'", b"#",
    b"nan", b"inf", b"-1", b"1e30", b"1e999", b"9" * 5000, b"-9223372036854775808", b"1_0",
    "e\u0301".encode(), "\u00e9".encode(), "\u0663".encode(), b"\xed\xa0\x80", b"\x1b[31m",
    b"<script>", b"$", b"=cmd", b"../../x", b"/dev/zero", b"null", b"[]", b"{}", b"[" * 3000,
)  # fmt: skip
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?")


def mutated(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    """A mutation of `seed`, one to four steps from it; `other` is a second seed to splice with."""
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice(_STEPS)(content, other, rng)
    return bytes(content)


def _place(content: bytearray, rng: random.Random) -> int:
    """An offset; half of the time in the first 512 bytes, where headers are."""
    if rng.random() < 0.5:
        return rng.randrange(min(len(content), 512) + 1)
    return rng.randrange(len(content) + 1)


def _flip(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    if content:
        content[min(_place(content, rng), len(content) - 1)] ^= 1 << rng.randrange(8)
    return content


def _byte(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    if content:
        content[min(_place(content, rng), len(content) - 1)] = rng.randrange(256)
    return content


def _cut(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    return content[: _place(content, rng)]


def _remove(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(content, rng)
    del content[at : at + rng.choice((1, 2, 4, 16, 256))]
    return content


def _repeat(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(content, rng)
    run = content[at : at + rng.choice((1, 4, 16, 256))]
    content[at:at] = run * rng.choice((1, 2, 100))
    return content


def _zeros(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(content, rng)
    content[at : at + rng.choice((4, 64, 4096))] = bytes(rng.choice((4, 64, 4096)))
    return content


def _integer(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(content, rng)
    form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    limit = 1 << 8 * struct.calcsize(form)
    value = struct.pack(form, rng.choice(_INTEGERS) % limit)
    content[at : at + len(value)] = value
    return content


def _number(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Another number in the place of one in text: of headers in JSON, CSV and .npy."""
    numbers = list(_NUMBER.finditer(content[:65536]))
    if not numbers:
        return _integer(content, other, rng)
    start, stop = rng.choice(numbers).span()
    number = rng.choice((b"-1", b"0", b"1", b"2147483648", b"99999999999999", b"1e30", b"nan"))
    content[start:stop] = number
    return content


def _text(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = _place(content, rng)
    content[at:at] = rng.choice(_TEXTS)
    return content


def _line(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Lines exchanged, doubled or removed."""
    lines = bytes(content).split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            lines[i], lines[j] = lines[j], lines[i]
        case 1:
            lines.insert(i, lines[j])
        case _:
            del lines[i]
    return bytearray(b"\n".join(lines))


def _splice(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    return content[: _place(content, rng)] + other[_place(bytearray(other), rng) :]


def _utf16(content: bytearray, other: bytes, rng: random.Random) -> bytearray:
    return bytearray(bytes(content).decode("latin-1").encode("utf-16"))


_STEPS = (_flip, _byte, _cut, _remove, _repeat, _zeros, _integer, _number, _number, _text, _text,
          _line, _splice, _utf16)  # fmt: skip
