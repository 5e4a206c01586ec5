"""IJB's lists: what the made-up mistakes of test_ijb leave out, and damage of any kind."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ijb_release import Size, write_release

from ida_jax.common.errors import UserError
from ida_jax.protocols.ijb_files import Galleries, read_galleries, read_ijb

SIZE = Size(images=60, templates=24, subjects=8, pairs=80, genuine=10, width=4)
# What damage by chance rarely makes: overflow, quotes, other line ends, bytes that are no text.
JUNK = (
    b'"', b'"\n', b"\r", b"\0", b"\xff", b"\n\n", b"\t", b"  ", b",", b"-1", b"nan", b"e99",
    b"e300", b"_", b"9223372036854775807", b"99999999999999999999",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ijb") / "release"
    write_release(folder, SIZE)
    return folder


@pytest.fixture
def meta(written, tmp_path):
    """The lists, for a test to damage."""
    return shutil.copytree(written / "meta", tmp_path / "meta")


def _read(meta) -> Galleries | None:
    lists = read_ijb(meta, subset="ijbc")
    return read_galleries(meta, subset="ijbc", template_ids=lists.template_ids)


def _damaged(data, whole: bytes) -> bytes:
    content = bytearray(whole)
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "junk", "random"])):
        case "cut":
            return whole[:place]
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            return bytes(content)
        case "junk":
            end = place + data.draw(st.integers(0, 3))
            return whole[:place] + data.draw(st.sampled_from(JUNK)) + whole[end:]
    return data.draw(st.binary(max_size=80))


@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_one_line_that_names_a_file_or_is_read(written, data):
    source = data.draw(st.sampled_from(sorted((written / "meta").iterdir())))
    folder = written.parent / "damaged"
    shutil.copytree(written / "meta", folder, dirs_exist_ok=True)
    (folder / source.name).write_bytes(_damaged(data, source.read_bytes()))
    message = str(folder)
    try:
        _read(folder)
    except UserError as error:
        message = str(error)
    assert str(folder) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "gallery_G1",
            'TEMPLATE_ID,"SUB\nJECT"\n1,2\n',
            "G1.csv:1: the columns are TEMPLATE_ID",
        ),
        ("gallery_G1", "TEMPLATE_ID,SUBJECT_ID\n4,9\n3,8\n1,1000\n", "G1.csv:3: template 3 has no"),
        ("gallery_G1", "TEMPLATE_ID,SUBJECT_ID\n", "G1.csv has no templates"),
        ("gallery_G1", f"TEMPLATE_ID,SUBJECT_ID\n1,{10**30}\n", "G1.csv has ids beyond 64 bits"),
        ("probe_mixed", "TEMPLATE_ID,SUBJECT_ID\n4,9\n1,1000\n", "template 1 is in ijbc_1N_gall"),
    ],
)
def test_mistakes_of_1n_lists(meta, name, text, message):
    (meta / f"ijbc_1N_{name}.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        _read(meta)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", ["-0.5", "nan", "inf", "1e39", "1e400"])
def test_detector_scores_that_are_no_weights(meta, score):
    path = meta / "ijbc_name_5pts_score.txt"
    lines = path.read_text().splitlines()
    lines[6] = f"7.jpg {'1 ' * 10}{score}"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"5pts_score.txt:7: score .*, expected a finite one"):
        _read(meta)


def test_blank_lines_count(meta):
    path = meta / "ijbc_template_pair_label.txt"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:-1] + "7"
    path.write_text("\n".join([*lines[:2], "", "", *lines[2:]]))
    with pytest.raises(UserError, match=r"label.txt:7: label 7"):
        _read(meta)


def test_galleries_by_both_names_and_any_case(meta):
    expected = _read(meta)
    for key in ("1", "2"):
        path = meta / f"ijbc_1N_gallery_G{key}.csv"
        text = path.read_text().replace("TEMPLATE_ID,SUBJECT_ID", "Template_Id, subject_id")
        path.unlink()
        (meta / f"ijbc_1N_gallery_S{key}.csv").write_text("\ufeff" + text, newline="\r\n")
    found = _read(meta)
    for key, gallery in expected.galleries.items():
        assert found.galleries[key].rows.tolist() == gallery.rows.tolist()
        assert found.galleries[key].subjects.tolist() == gallery.subjects.tolist()
