import io
import os
import pickle
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ida_jax.common.errors import UserError
from ida_jax.data.sources.verification_bin import read_verification_bin, write_verification_bin

JPEG = b"\xff\xd8\xff\x00ab\n'c\xff\xd9"
IMAGES = [JPEG, JPEG + b"x", b"", JPEG]
SAME = [True, False]
# What Python 2.7's pickle (twice) and cPickle wrote of (IMAGES, SAME), protocols 0, 1, 2.
PYTHON_2 = [
    b'((lp0\nS"\\xff\\xd8\\xff\\x00ab\\n\'c\\xff\\xd9"\np1\naS"\\xff\\xd8\\xff\\x00ab\\n\'c\\xff'
    b"\\xd9x\"\np2\naS''\np3\nag1\na(lp4\nI01\naI00\natp5\n.",
    b"(]q\x00(U\x0b\xff\xd8\xff\x00ab\n'c\xff\xd9q\x01U\x0c\xff\xd8\xff\x00ab\n'c\xff\xd9xq\x02U"
    b"\x00q\x03h\x01e]q\x04(I01\nI00\netq\x05.",
    b"\x80\x02]q\x01(U\x0b\xff\xd8\xff\x00ab\n'c\xff\xd9q\x02U\x0c\xff\xd8\xff\x00ab\n'c\xff\xd9x"
    b"q\x03U\x00h\x02e]q\x04(\x88\x89e\x86.",
]


def read(folder, content):
    (folder / "x.bin").write_bytes(content)
    return read_verification_bin(folder / "x.bin")


def refused(folder, content, *words):
    with pytest.raises(UserError) as raised:
        read(folder, content)
    text = str(raised.value)
    assert text.isprintable()
    assert str(folder / "x.bin") in text
    for word in words:
        assert word in text, text


def is_whole(found, images=IMAGES, same=SAME):
    assert list(found.images) == list(images)
    assert all(type(image) is bytes for image in found.images)
    assert found.same.dtype == bool
    assert found.same.tolist() == list(same)


def objects():
    array = np.empty(4, object)
    array[:] = IMAGES
    return array


@pytest.mark.parametrize("content", PYTHON_2)
def test_what_python_2_wrote(tmp_path, content):
    found = read(tmp_path, content)
    is_whole(found)
    assert found.where(3) == f"{tmp_path / 'x.bin'}, image 3"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "written",
    [
        (IMAGES, SAME),
        [tuple(IMAGES), tuple(SAME)],
        (IMAGES, [1, 0]),
        (IMAGES, np.array(SAME)),
        (IMAGES, np.array([1, 0])),
        (IMAGES, np.array([1, 0], np.uint8)),
        (IMAGES, [np.bool_(True), np.bool_(False)]),
        ([np.frombuffer(image, np.uint8) for image in IMAGES], SAME),
        ([np.array(list(image), np.uint8) for image in IMAGES], SAME),
        ([bytearray(image) for image in IMAGES[:2]] + IMAGES[2:], SAME),
        (np.array(IMAGES), SAME),
        (objects(), np.array(SAME, object)),
    ],
)
def test_every_protocol_and_container(tmp_path, written, protocol, old):
    content = pickle.dumps(written, protocol)
    if old:  # NumPy 1's name; from protocol 4 on the names have a length before them
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    if protocol < 5 and any(isinstance(item, bytearray) for item in written[0]):
        refused(tmp_path, content, "bytearray")  # built by a name; only protocol 5 has it plain
    else:
        is_whole(read(tmp_path, content))


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (Call(os.system, "touch ran"), "posix.system"),
        (Call(eval, "open('ran', 'w')"), "eval"),
        (Call(np.save, "ran", 1), "save"),
        (Call(open, "ran", "w"), "io.open"),
        (Call(getattr, "x", "y"), "getattr"),
        (Call(bytearray, 1 << 40), "bytearray"),
    ],
)
def test_code_is_refused_by_name(tmp_path, monkeypatch, bad, name, protocol):
    monkeypatch.chdir(tmp_path)
    for written in ((IMAGES, [bad]), bad, ([bad], SAME), ([bad], SAME, {"a": 1}, 2.5)):
        refused(tmp_path, pickle.dumps(written, protocol), name)
    assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", ["byte 0", "tries to load os.system"]),
        (b"(S'touch ran'\nios\nsystem\n.", ["byte 14", "tries to load os.system"]),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", ["byte 14", "tries to load os.system"]),
        (b"cos\x1b\nsystem\n.", ["tries to load os\\x1b"]),
        (b"cos\nsys\xfftem\n.", ["can't decode"]),
        (pickle.dumps(([Call(bytes, 1 << 40)], SAME)), ["damaged"]),
        (b"cnumpy\nload\n.", ["tries to load numpy.load"]),
        (b"\x80\x02}.", ["byte 2", "EMPTY_DICT"]),
        (b"Ppid\n.", ["byte 0", "PERSID"]),
        (b"\x82\x01.", ["byte 0", "EXT1"]),
        (pickle.dumps({1: 2}), ["EMPTY_DICT"]),
        (pickle.dumps(1.5), ["BINFLOAT"]),
        (b"", ["byte 0", "ends early"]),
        (b"\xff\xd8\xff", ["byte 0", "no instruction"]),
        (pickle.dumps(5), ["int where a list was expected"]),
        (pickle.dumps((IMAGES, SAME, 1)), ["not in this format"]),
        (pickle.dumps((IMAGES, ["a", b"b"])), ["neither 0 nor 1"]),
        (pickle.dumps((IMAGES, [2, 0])), ["neither 0 nor 1"]),
        (pickle.dumps((IMAGES, [None, 0])), ["neither 0 nor 1"]),
        (pickle.dumps((["a", "b"], [True])), ["str where an image's bytes were expected"]),
        (pickle.dumps((IMAGES, [True])), ["4 images for 1 pairs"]),
        (pickle.dumps(([], [])), ["0 images for 0 pairs"]),
        (pickle.dumps((IMAGES, np.ones((2, 1), bool))), ["shape"]),
        (pickle.dumps((np.zeros(4), SAME)), ["damaged"]),
    ],
)
def test_other_forms_are_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, content, *words)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"(lp999999999\n.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b").",
        # Arrays of no content and any length, and one of a type without width.
        pickle.dumps((IMAGES, np.empty(0, bool)), 2).replace(
            b"K\x00\x85", b"J\xff\xff\xff\x7f\x85"
        ),
        pickle.dumps((np.array([b"ab"]), SAME), 2).replace(b"S2", b"S0"),
    ],
)
def test_memory_bombs(tmp_path, content):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_bytes_built_again_and_again_are_refused(tmp_path):
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x01"
    build = b"c_codecs\nencode\nh\x01X\x06\0\0\0latin1\x86R"
    refused(tmp_path, b"\x80\x02](" + text + build * 500 + b"e.", "more bytes than")
    array = (
        b"cnumpy.core.numeric\n_frombuffer\n(h\x01cnumpy\ndtype\nX\x02\0\0\0u1\x85RJ\0\0\x10\0\x85"
    )
    array += b"X\x01\0\0\0CtR"
    body = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01"
    pairs = b"](" + b"\x88" * 250 + b"e"
    whole = b"\x80\x03](" + body + array * 499 + b"e" + pairs + b"\x86."
    refused(tmp_path, whole, "more images than the file has bytes for")


@settings(max_examples=400)
@given(
    content=st.sampled_from(
        [*PYTHON_2, *(pickle.dumps((IMAGES, np.array(SAME)), protocol) for protocol in range(6))]
    ),
    cut=st.integers(0, 600),
    flips=st.lists(st.tuples(st.integers(0, 599), st.integers(0, 255)), max_size=4),
    noise=st.none() | st.binary(max_size=60),
)
def test_nothing_but_user_errors(tmp_path_factory, content, cut, flips, noise):
    path = tmp_path_factory.mktemp("bin") / "x.bin"
    changed = bytearray(content)
    for at, value in flips:
        changed[at % len(changed)] = value
    path.write_bytes(changed[:cut] if noise is None else noise)
    try:
        found = read_verification_bin(path)
    except UserError as error:
        message = str(error)
    else:
        message = str(path)
        assert len(found.images) == 2 * len(found.same)
        assert all(type(image) is bytes for image in found.images)
    assert "\n" not in message
    assert str(path) in message


def _photo(shade, kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 10)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    found = {}
    for number, name in enumerate(["Ann/Ann_0001", "Ann/Ann_0002", "Bo/Bo_0001", "Bo/Bo_0002"]):
        found[name] = _photo(50 * number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(found[name])
    return folder, found


def test_lfw_pairs_become_a_bin(tmp_path, photos):
    folder, found = photos
    pairs = tmp_path / "pairs.txt"
    pairs.write_bytes(b"1\t2\r\nAnn\t1\t2\r\nBo\t2\t1\r\nAnn\t1\tBo\t1\r\nBo\t2\tAnn\t2\r\n")
    assert write_verification_bin(tmp_path / "y.bin", images=folder, pairs=pairs) == (4, ())
    names = ["Ann/Ann_0001", "Ann/Ann_0002", "Bo/Bo_0002", "Bo/Bo_0001"]
    names += ["Ann/Ann_0001", "Bo/Bo_0001", "Bo/Bo_0002", "Ann/Ann_0002"]
    expected = [found[name] for name in names]
    is_whole(read_verification_bin(tmp_path / "y.bin"), expected, [True, True, False, False])
    # As InsightFace reads it.
    with (tmp_path / "y.bin").open("rb") as file:
        assert pickle.load(file, encoding="bytes") == (expected, [True, True, False, False])


@pytest.mark.parametrize(
    "head", ["", "\ufeff", "name1,name2,same\n", "\n\ufefffirst,second,same\r\n"]
)
def test_csv_pairs_become_a_bin(tmp_path, photos, head):
    folder, found = photos
    if not head.startswith("\n"):
        text = (
            f"{head}Ann/Ann_0001.jpg,Bo/Bo_0001,0\r\n\r\nAnn/Ann_0001, Ann/Ann_0002.jpg ,True\n\n"
        )
    else:
        text = f"{head.strip()}\nAnn/Ann_0001,Bo/Bo_0001,false\nAnn/Ann_0001,Ann/Ann_0002,1"
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8", newline="")
    write_verification_bin(tmp_path / "y.bin", images=folder, pairs=tmp_path / "pairs.csv")
    names = ["Ann/Ann_0001", "Bo/Bo_0001", "Ann/Ann_0001", "Ann/Ann_0002"]
    is_whole(
        read_verification_bin(tmp_path / "y.bin"), [found[name] for name in names], [False, True]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no pairs"),
        ("name1,name2,same\n", "holds no pairs"),
        ("Ann/Ann_0001,Bo/Bo_0001\n", "pairs.csv:1: 2 fields"),
        ("a,b,same\nAnn/Ann_0001,Bo/Bo_0001,2\n", "pairs.csv:2: same is '2'"),
        ("Ann/Ann_0001,Bo/Bo_0001,yes\n", "pairs.csv:1: same is 'yes'"),
        ("\nAnn/Ann_0001,Bo/Bo_0009,1\n", "pairs.csv:2: 'Bo/Bo_0009' is not among the images"),
        ("Ann/Ann_0001,Bo/Bo_0001,1\n\n'\0',x,1\n", "pairs.csv"),
        (b"\xff,x,1", "is not UTF-8"),
        (b'"' + b"a" * 200_000, "is not a list of pairs"),
    ],
)
def test_wrong_csv_pairs(tmp_path, photos, text, words):
    (tmp_path / "pairs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as raised:
        write_verification_bin(tmp_path / "y.bin", images=photos[0], pairs=tmp_path / "pairs.csv")
    assert words in str(raised.value)
    assert str(raised.value).isprintable()
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.csv", "photos"}


def test_damaged_and_absent_images(tmp_path, photos):
    folder, found = photos
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("Ann/Ann_0001,Bo/Bo_0001,0\n")
    (folder / "Bo" / "Bo_0001.jpg").write_bytes(found["Bo/Bo_0001"][:-40])
    with pytest.raises(UserError, match=r"Bo_0001\.jpg.*truncated"):
        write_verification_bin(tmp_path / "y.bin", images=folder, pairs=pairs)
    with pytest.raises(UserError):
        write_verification_bin(tmp_path / "y.bin", images=tmp_path / "absent", pairs=pairs)
    with pytest.raises(UserError, match="no verification set at"):
        read_verification_bin(tmp_path / "y.bin")


def test_values_without_end_are_never_printed(tmp_path):
    bomb = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    bomb += b"(K\x01K\x01K\x01\x86\x94"
    for place in range(60):  # each tuple holds the one before it twice
        bomb += b"h" + bytes([place]) + b"\x86\x94"
    nested = bomb + b"cnumpy\ndtype\n(\x8c\x02u1K\x00K\x01tR\x89C\x00tb."
    (tmp_path / "x.bin").write_bytes(nested)
    with pytest.raises(UserError, match="whose shape is not a tuple of whole numbers") as caught:
        read_verification_bin(tmp_path / "x.bin")
    assert len(str(caught.value)) < 400
