import subprocess
import sys

import numpy as np
import pytest
from face_sources import jpeg, write_recordio
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax import prepare
from ida_jax.common.errors import UserError
from ida_jax.data.tfds_faces import load_pairs, load_tfds

IMAGES = [jpeg(25 * i) for i in range(8)]
LABELS = [5, 5, 7, 7, 7, 9, 9, 5]


@pytest.fixture
def source(tmp_path):
    return write_recordio(tmp_path / "source", IMAGES, LABELS)


def _folder(root):
    for number, image in enumerate(IMAGES):
        path = root / f"person_{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return root


def _redness(image):
    """The red channel's mean; a reader that mixes up the channels gives another."""
    assert image[:, :, 1:].mean() < 8
    return image[:, :, 0].mean()


def test_recordio(tmp_path, source, capsys):
    argv = ["recordio", f"--from={source}", "--name=casia_webface", f"--data_dir={tmp_path}"]
    prepare.main(argv)
    out = capsys.readouterr().out
    assert "8 images of 3 identities" in out
    assert "warning: 8 images of 3 identities, but casia_webface has 490,623" in out
    data = load_tfds("casia_webface", data_dir=tmp_path)
    assert [data.identities[label] for label in data.labels] == [str(label) for label in LABELS]
    np.testing.assert_allclose(
        [_redness(image) for image in data.images], 25 * np.arange(8), atol=4
    )
    (source / "train.rec").write_bytes(b"damaged")  # which is not even looked at
    with pytest.raises(UserError, match=r"casia_webface.* already exists"):
        prepare.main(argv)


def test_folder(tmp_path, capsys):
    folder = _folder(tmp_path / "faces")
    (folder / "person_1" / "Thumbs.db").write_bytes(b"")
    argv = ["folder", f"--from={folder}", "--name=ms1m", f"--data_dir={tmp_path}"]
    prepare.main(argv)
    out = capsys.readouterr().out
    assert "8 images of 3 identities" in out
    assert "Thumbs.db" in out
    data = load_tfds("ms1m", data_dir=tmp_path)
    assert data.identities == ("person_0", "person_1", "person_2")
    for image, label in zip(data.images, data.labels, strict=True):
        assert label == round(_redness(image) / 25) % 3
    with pytest.raises(UserError, match="no split 'test': it has train"):
        load_tfds("ms1m", data_dir=tmp_path, split="test")


def test_corrupt_images(tmp_path, capsys):
    folder = _folder(tmp_path / "faces")
    bad = folder / "person_1" / "1.jpg"
    bad.write_bytes(IMAGES[1][:-9])
    argv = ["folder", f"--from={folder}", "--name=faces", f"--data_dir={tmp_path / 'd'}"]
    with pytest.raises(UserError, match=f"1 of 8 are corrupt, .*{bad}.* is truncated"):
        prepare.main(argv)
    assert not list((tmp_path / "d").iterdir())
    prepare.main([*argv, "--skip_corrupt"])
    listed = tmp_path / "d" / "faces.skipped.txt"
    assert f"1 corrupt images were left out: {listed}" in capsys.readouterr().out
    assert str(bad) in listed.read_text()
    assert len(load_tfds("faces", data_dir=tmp_path / "d").images) == 7


def test_bin_there_and_back(tmp_path, capsys):
    folder = _folder(tmp_path / "faces")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("person_0/0.jpg,person_0/3.jpg,1\r\nperson_1/1.jpg,person_2/2.jpg,0\r\n")
    made = tmp_path / "made.bin"
    prepare.main(["bin", f"--images={folder}", f"--pairs={pairs}", f"--output={made}"])
    assert f"2 pairs: {made}" in capsys.readouterr().out
    prepare.main(["bin", f"--from={made}", "--name=pairs", f"--data_dir={tmp_path}", "--size=8"])
    assert "2 pairs, 1 genuine" in capsys.readouterr().out
    found = load_pairs("pairs", data_dir=tmp_path)
    assert found.same.tolist() == [True, False]
    np.testing.assert_allclose([_redness(image) for image in found.images], [0, 75, 25, 50], atol=4)
    with pytest.raises(UserError, match=r"2 of 2 are corrupt.*made\.bin.* is 8×8 pixels"):
        prepare.main(["bin", f"--from={made}", "--name=o", f"--data_dir={tmp_path}", "--size=9"])


def test_lfw(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("Al_0001", "Al_0002", "Bo_0001", "Cy_0001"):
        (images / f"{name}.jpg").write_bytes(jpeg(90, size=112))
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("1\t1\nAl\t1\t2\nBo\t1\tCy\t1\n")
    argv = ["lfw", f"--from={images}", f"--pairs={pairs}", f"--data_dir={tmp_path / 'd'}"]
    prepare.main(argv)
    assert f"4 images, 2 pairs: {tmp_path / 'd' / 'lfw'}" in capsys.readouterr().out
    assert (tmp_path / "d" / "lfw" / "lfw_112.tar").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["folders"], "'folders' is unknown: expected recordio, folder, bin, lfw"),
        (["folder"], "the following arguments are required: --from, --name"),
        (
            ["folder", "--from=x", "--name=x", "--nam=y"],
            "unknown flag '--nam': did you mean --name",
        ),
        (["folder", "--from=x", "--name=x", "--size=big"], "argument --size: invalid int"),
        (["folder", "--from=x", "--name=x", "--size=0"], "--size is 0: expected"),
        (["folder", "--from=absent", "--name=x"], "no folder at absent"),
        (["folder", "--from=empty", "--name=x"], "empty"),
        (["recordio", "--from=absent", "--name=x"], "absent"),
        (["recordio", "--from=empty", "--name=x"], "train.rec"),
        (["recordio", "--from=empty", "--name=X"], "'X' is not a data set's name"),
        (["bin"], "expected --from and --name, or --images, --pairs and --output"),
        (["bin", "--from=a.bin", "--name=x", "--output=b.bin"], "expected --from and --name, or"),
        (["bin", "--from=absent.bin", "--name=x"], "no verification set at absent.bin"),
        (["bin", "--images=empty", "--pairs=absent", "--output=x.bin"], "absent|empty"),
        (["lfw", "--from=absent", "--pairs=absent"], "absent"),
        (["lfw", "--from=absent"], "the following arguments are required: --pairs"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        prepare.main(argv)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_help_and_exit_codes(tmp_path, capsys):
    with pytest.raises(UserError, match="no source was named"):
        prepare.main([])
    prepare.main(["--help"])
    assert "recordio" in capsys.readouterr().out
    for source in ("recordio", "folder", "bin", "lfw"):
        with pytest.raises(SystemExit) as ended:
            prepare.main([source, "--help"])
        assert ended.value.code == 0
        assert f"ida-jax prepare {source}" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "ida_jax.prepare", "folder", "--from=absent", "--name=x"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: no folder at absent")


@settings(max_examples=25)
@given(
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 7)), max_size=3),
    st.booleans(),
)
def test_a_damaged_source_gives_a_data_set_or_one_line(tmp_path_factory, cut, flips, skip):
    root = tmp_path_factory.mktemp("fuzz")
    source = write_recordio(root / "source", IMAGES, LABELS)
    content = bytearray((source / "train.rec").read_bytes())
    for byte, bit in flips:
        content[byte % len(content)] ^= 1 << bit
    (source / "train.rec").write_bytes(content[: len(content) - cut])
    argv = ["recordio", f"--from={source}", "--name=faces", f"--data_dir={root / 'd'}"]
    message = _mistake([*argv, *["--skip_corrupt"] * skip])
    if message is not None:
        assert "\n" not in message
        assert not list(root.glob("d/*"))
        return
    data = load_tfds("faces", data_dir=root / "d")
    assert 0 < len(data.images) == len(data.labels) <= len(IMAGES)
    assert all(image.ndim == 3 for image in data.images)


def _mistake(argv):
    try:
        prepare.main(argv)
    except UserError as error:
        return str(error)
    return None
